"""mindgap advise: what acquiring an absent sequence would bring a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mindgap.cli.terminal import parse, print_table, say

if TYPE_CHECKING:
    from mindgap.data.case import CaseFiles


@dataclass(frozen=True)
class Advise:
    """Say for each absent sequence how the Dice is expected to change when it is acquired.

    From the cases the network was calibrated on, each with and without the sequence; the change may be negative. Files
    are recognised by name and not opened.

    Attributes:
        case: Folder of the patient, of NIfTI files.
        t1: T1 image.
        t1ce: Contrast-enhanced T1 image.
        t2: T2 image.
        flair: FLAIR image.
        model: Calibrated run folder, a model folder of several networks, or a network that comes with mindgap; the
            one in the box by default.
    """

    case: Annotated[Path | None, tyro.conf.Positional] = None
    t1: Path | None = None
    t1ce: Path | None = None
    t2: Path | None = None
    flair: Path | None = None
    model: Path | None = None


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Advise, words, verb="advise")
    from mindgap.inference.advice import advise
    from mindgap.inference.selection import read_members
    from mindgap.inference.shipped import model_folder
    from mindgap.regions import REGIONS
    from mindgap.sequences import SEQUENCES

    files = _find(settings)
    now, found = advise(read_members(model_folder(settings.model)), files.case_id, files.sequences)
    say(now.describe(files.sequences))
    told = {*files.sequences, *(advice.sequence for advice in found)}
    unknown = [str(sequence) for sequence in SEQUENCES if sequence not in told]
    if unknown:
        say(f"nothing is known of acquiring {', '.join(unknown)}: no network uses it, or none was measured with it.")
    if not found:
        return 0
    names = ("mean", *map(str, REGIONS))
    print_table(
        ["acquire", *(f"change of {name} Dice" for name in names), "n", "who answers then"],
        (
            [
                str(advice.sequence),
                *(advice.change[name].text(signed=True) for name in names),
                str(advice.change["mean"].n),
                advice.network,
            ]
            for advice in found
        ),
    )
    say("means over the calibration cases, each with and without the sequence; 95 % bootstrap intervals over cases.")
    return 0


def _find(settings: Advise) -> CaseFiles:
    """The sequences there are.

    Raises:
        SettingError: A folder and files are named, or neither.
        InputError: A folder of DICOM, or files that cannot be a case.
    """
    from mindgap.cli.named_files import check_one_way, find_case, named_files
    from mindgap.data.dicom import holds_dicom
    from mindgap.errors import InputError

    named = named_files(t1=settings.t1, t1ce=settings.t1ce, t2=settings.t2, flair=settings.flair)
    check_one_way(settings.case, named)
    if settings.case is not None and holds_dicom(settings.case):
        raise InputError(
            case=str(settings.case),
            expected="a folder of NIfTI files",
            found="DICOM",
            mend="look at which series there are (mindgap segment shows them), convert them, and name the files by "
            "their sequence: --t1, --t1ce, --t2, --flair",
        )
    return find_case(settings.case, named)
