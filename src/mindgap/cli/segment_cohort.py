"""The part of mindgap segment that takes a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mindgap.cli.segment import Segment
from mindgap.cli.terminal import ProgressLine, say

if TYPE_CHECKING:
    from mindgap.data.raw import RawOptions
    from mindgap.inference.status import CaseStatus

_MOST_NAMED = 10


def is_for_cohort(settings: Segment) -> bool:
    """Whether many cases are meant: a CSV table, or a folder of folders without images of its own.

    Raises:
        SettingError: Settings of a cohort are given for one patient.
    """
    from mindgap.errors import SettingError

    many = settings.case is not None and (settings.layout == "bids" or _is_cohort(settings.case))
    if not many and (settings.resume or settings.shard is not None):
        raise SettingError("--resume and --shard are for cohorts: name a folder of case folders, or a CSV table.")
    return many


def run_cohort(settings: Segment, raw: RawOptions | None) -> int:
    """Segment a cohort and say what failed.

    Args:
        settings: Of the command line.
        raw: What is done to raw scans.

    Returns:
        0 when all went well, 1 when some cases failed.

    Raises:
        SettingError: Settings of one patient are given for a cohort.
    """
    from mindgap.api import segment_cohort
    from mindgap.data.nifti import is_nifti
    from mindgap.errors import SettingError
    from mindgap.inference.status import read_status

    assert settings.case is not None
    assert settings.model is not None
    if any(path is not None for path in (settings.t1, settings.t2, settings.t1ce, settings.flair)):
        raise SettingError(f"{settings.case} is a cohort: --t1 --t2 --t1ce --flair name the files of one patient.")
    for flag, path in (("--entropy", settings.entropy), ("--picture", settings.picture)):
        if path is not None:
            raise SettingError(f"{flag} is for one patient: name a case folder, or leave it out.")
    if is_nifti(settings.out):
        raise SettingError(
            f"{settings.case} holds no images of its own, and is taken for a cohort, whose masks go into a folder: "
            "name it with -o OUTDIR, or name the folder of one patient."
        )
    begun = cache(ProgressLine)  # its clock runs from the first picture, not from the first case
    outcome = segment_cohort(
        settings.case,
        settings.model,
        settings.out,
        convention=settings.labels,
        shard=settings.shard or "1/1",
        resume=settings.resume,
        device=settings.device,
        precision=settings.precision,
        coverage=settings.coverage,
        engine=settings.engine,
        tta=settings.tta,
        force=settings.force,
        layout=settings.layout,
        probabilities=settings.probabilities,
        raw=raw,
        progress=ProgressLine("segmenting"),
        drawing=lambda done, total, case_id: begun("drawing")(done, total, case_id),
        say=say,
    )
    before = f", {len(outcome.skipped)} done before" if outcome.skipped else ""
    counts = f"{len(outcome.done)} segmented{before}, {len(outcome.failed)} failed"
    say(f"{counts} (labels {settings.labels}; research use only)")
    for reason in outcome.failed.values():
        say(f"failed: {reason}")
    _say_what_to_look_at([line for case, line in read_status(settings.out).items() if case in set(outcome.done)])
    return 1 if outcome.failed else 0


def _say_what_to_look_at(lines: Sequence[CaseStatus]) -> None:
    """Name the masks that a human should look at, and those that came with a warning; all stand in the summary."""
    for what, told in (
        ("please review", {line.case: "; ".join(line.review) for line in lines if line.review}),
        ("beware", {line.case: line.reason for line in lines if line.reason}),
    ):
        for case, why in list(told.items())[:_MOST_NAMED]:
            say(f"{what}: {case}: {why}")
        if len(told) > _MOST_NAMED:
            say(f"{what}: {len(told) - _MOST_NAMED} more, see summary.csv")


def _is_cohort(place: Path) -> bool:
    from mindgap.data.bids import is_bids, read_bids
    from mindgap.data.channels import channel_folder
    from mindgap.data.folders import visible

    if place.suffix.lower() == ".csv":
        return True
    if is_bids(place):  # a subject or session is a patient where it holds one case
        cases, rejected = read_bids(place)
        return not visible(place).name.startswith(("sub-", "ses-")) or len(cases) + len(rejected) > 1
    if place.is_dir() and channel_folder(place) is not None:
        return True
    if not place.is_dir() or _holds_images(place):
        return False
    return any(folder.is_dir() and not folder.name.startswith(".") for folder in place.iterdir())


def _holds_images(folder: Path) -> bool:
    """Whether a file directly in a folder is named as a sequence of a patient."""
    from mindgap.data.nifti import is_nifti, stem_of
    from mindgap.sequences import split_filename

    return any(is_nifti(path) and split_filename(stem_of(path)) is not None for path in folder.iterdir())
