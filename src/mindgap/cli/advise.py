"""mindgap advise: what acquiring an absent sequence would bring a patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mindgap.cli.terminal import parse, print_table, say

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Advise:
    """Say for each absent sequence how the Dice is expected to change when it is acquired.

    From the cases the network was calibrated on, each with and without the sequence; the change may be negative. Files
    are recognised by name and not opened.

    Attributes:
        case: Folder of the patient.
        model: Calibrated run folder, a model folder of several networks, or a network that comes with mindgap; the
            one in the box by default.
    """

    case: Annotated[Path, tyro.conf.Positional]
    model: Path | None = None


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Advise, words, verb="advise")
    from mindgap.data.cohort import case_from_folder
    from mindgap.inference.advice import advise
    from mindgap.inference.selection import read_members
    from mindgap.inference.shipped import model_folder
    from mindgap.regions import REGIONS
    from mindgap.sequences import SEQUENCES

    files = case_from_folder(settings.case, label=False)
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
