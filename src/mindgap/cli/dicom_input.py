"""DICOM at the command line: which series is which sequence, shown and confirmed, and the mask as DICOM SEG."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mindgap.cli.terminal import print_table, say

if TYPE_CHECKING:
    from mindgap.data.case import CaseFiles
    from mindgap.data.dicom import DicomSeries
    from mindgap.data.dicom_sequence import Proposal
    from mindgap.data.dicom_stack import Stack
    from mindgap.inference.predictor import Segmentation
    from mindgap.networks.card import ModelCard
    from mindgap.sequences import Sequence

_BY_HEADERS = "auto"


@dataclass(frozen=True)
class DicomFlags:
    """What only DICOM input takes.

    Attributes:
        series_t1: The series that is T1 (number, uid or none); by the headers if auto.
        series_t1ce: The series that is T1ce.
        series_t2: The series that is T2.
        series_flair: The series that is FLAIR.
        dicom_seg: Also write the mask as DICOM SEG to this file.
        yes: Take the series as shown, without asking.
    """

    series_t1: str = _BY_HEADERS
    series_t1ce: str = _BY_HEADERS
    series_t2: str = _BY_HEADERS
    series_flair: str = _BY_HEADERS
    dicom_seg: Path | None = None
    yes: bool = False

    def named(self) -> dict[Sequence, str]:
        """Sequence -> what the user wrote, where there is something."""
        from mindgap.sequences import SEQUENCES

        words = {sequence: str(getattr(self, f"series_{sequence.value.lower()}")) for sequence in SEQUENCES}
        return {sequence: word for sequence, word in words.items() if word != _BY_HEADERS}


@dataclass(frozen=True)
class DicomCase:
    """A case that may have come from DICOM.

    Attributes:
        files: NIfTI files to segment.
        stacks: The DICOM series they were made from; empty where there was none.
    """

    files: CaseFiles
    stacks: Mapping[Sequence, Stack]


def refuse_flags(flags: DicomFlags) -> None:
    """Refuse flags of DICOM where the input is none; --yes, which asks for nothing, is only said to do nothing.

    Raises:
        SettingError: One is set.
    """
    from mindgap.errors import SettingError

    given = [f"--series-{sequence.value.lower()}" for sequence in flags.named()]
    given += ["--dicom-seg"] if flags.dicom_seg is not None else []
    if given:
        raise SettingError(f"{', '.join(given)} needs DICOM input: name a folder (or .zip) of DICOM series.")
    if flags.yes:
        say("--yes does nothing here: it confirms which DICOM series is which, and the input is no DICOM.")


@contextmanager
def open_dicom(path: Path, flags: DicomFlags, model: Path, *, raw: bool = False) -> Iterator[DicomCase]:
    """Find, show and confirm the series a model needs, and convert these; the files are gone at the end.

    Args:
        path: Folder of DICOM files, or a .zip of one.
        flags: What the user decided.
        model: Run folder or model folder; series it does not use are not opened.
        raw: Whether the scans are to be registered.

    Raises:
        InputError: The series cannot be used, or one that is needed is not among them.
        SettingError: Something is left to decide, the user said no, or a package is missing.
    """
    from mindgap.data.cohort import case_from_files
    from mindgap.data.dicom import dicom_folder, need, read_series
    from mindgap.data.dicom_convert import convert_series, origin_of
    from mindgap.data.dicom_doubts import doubts_about_series
    from mindgap.data.dicom_sequence import propose
    from mindgap.data.folders import visible
    from mindgap.inference.selection import joint_card

    for package in ("pydicom", "dcm2niix", *(("highdicom",) if flags.dicom_seg is not None else ())):
        need(package)
    card = joint_card(model)
    _check_seg_path(flags.dicom_seg)
    case_id = path.stem if path.is_file() else visible(path).name
    with dicom_folder(path) as folder, tempfile.TemporaryDirectory(prefix="mindgap-nifti-") as made:
        proposals = propose(read_series(folder, say), flags.named())
        _show(proposals)
        chosen = _choose_needed(case_id, proposals, card, decided=flags.named())
        _confirm(flags, chosen)
        paths = {sequence: Path(made) / f"{case_id}_{sequence.value.lower()}.nii.gz" for sequence in chosen}
        stacks = {sequence: convert_series(series, paths[sequence]) for sequence, series in chosen.items()}
        others = tuple(one.series.name for one in proposals if one.series not in chosen.values())
        origins = {sequence: origin_of(path, series, others) for sequence, series in chosen.items()}
        doubts = doubts_about_series(chosen.values(), registered=raw)
        yield DicomCase(replace(case_from_files(paths, case_id), origins=origins, doubts=doubts), stacks)


def write_dicom_seg(path: Path, found: Segmentation, case: DicomCase) -> None:
    """Write what was found on the series whose grid the mask has, and say so."""
    from mindgap.data.dicom_seg import write_seg

    owner = next(s for s, source in case.files.images.items() if source.path == found.like.path)
    stack = case.stacks[owner]
    write_seg(path, found.target, found.like.affine, stack)
    empty = "" if found.target.any() else "; no tumour was found, all segments are empty"
    say(f"wrote {path} (DICOM SEG on {stack.series.name}{empty})")


def _show(proposals: tuple[Proposal, ...]) -> None:
    rows = [
        [
            "?" if proposal.series.number is None else str(proposal.series.number),
            proposal.series.description,
            str(len(proposal.series.slices)),
            proposal.word,
            proposal.reason,
        ]
        for proposal in proposals
    ]
    print_table(["series", "description", "images", "sequence", "reason"], rows, words=True)


def _choose_needed(
    case_id: str, proposals: tuple[Proposal, ...], card: ModelCard, *, decided: Collection[Sequence]
) -> dict[Sequence, DicomSeries]:
    """The series of the sequences a network uses; the user has said what becomes of some."""
    from mindgap.data.dicom_sequence import rivals
    from mindgap.errors import InputError, SettingError
    from mindgap.sequences import format_subset

    for sequence, series in rivals(proposals).items():
        if sequence in card.sequences:
            names = " and ".join(one.name for one in series)
            flag = f"--series-{sequence.value.lower()}"
            raise SettingError(f"{names} both look like {sequence}: choose with {flag} NUMBER (or {flag} none).")
    there = {proposal.sequence: proposal.series for proposal in proposals if proposal.sequence is not None}
    chosen = {sequence: there[sequence] for sequence in card.sequences if sequence in there}
    missing = [sequence for sequence in card.sequences if sequence not in there]
    if not chosen or (missing and not card.any_subset):
        flags = " ".join(f"--series-{sequence.value.lower()} NUMBER" for sequence in missing)
        raise InputError(
            case=case_id,
            expected=f"series of {format_subset(card.sequences)}, which the model uses",
            found=format_subset(there) if there else "none that was recognised",
            mend=f"name the series by number or uid ({flags}), or name a model that needs fewer sequences",
        )
    _refuse_unclear(proposals, [sequence for sequence in missing if sequence not in decided])
    say(f"for this model: {', '.join(f'{sequence} = {series.name}' for sequence, series in chosen.items())}")
    return chosen


def _refuse_unclear(proposals: tuple[Proposal, ...], missing: list[Sequence]) -> None:
    """Ask for what a network could use and what may be there, but is not known to be."""
    from mindgap.errors import SettingError

    for proposal in proposals:
        wanted = [sequence for sequence in missing if sequence in proposal.may_be]
        if proposal.unclear and wanted:
            flags = [f"--series-{sequence.value.lower()}" for sequence in wanted]
            word = str(proposal.series.number or proposal.series.uid)
            raise SettingError(
                f"{proposal.series.name} may be {' or '.join(map(str, wanted))}, and its headers do not tell: say "
                f"{' or '.join(f'{flag} {word}' for flag in flags)}, or that there is none of these ("
                f"{' '.join(f'{flag} none' for flag in flags)})."
            )


def _confirm(flags: DicomFlags, chosen: Collection[Sequence]) -> None:
    """Have the mapping confirmed, unless the user made all of it."""
    from mindgap.errors import SettingError

    say("The images have to be skull-stripped and co-registered, or raw (--raw); conversion does neither.")
    if flags.yes or set(chosen) <= set(flags.named()):
        return
    if not sys.stdin.isatty():
        raise SettingError("nobody is there to confirm which series is which: read the table and add --yes.")
    try:
        answer = input("Is every series what the table says? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise SettingError(
            "not confirmed: name the series with --series-t1, --series-t1ce, --series-t2, --series-flair (none leaves "
            "a sequence out)."
        )


def _check_seg_path(path: Path | None) -> None:
    from mindgap.data.dicom_seg import is_own_seg
    from mindgap.errors import SettingError

    if path is not None and path.exists() and not is_own_seg(path):
        raise SettingError(f"{path} exists and is no DICOM SEG of mindgap's: choose another file for --dicom-seg.")
