"""Many cases, read, computed and written side by side; a failed case is listed, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindgap.data.brain import allow_hd_bet, stop_hd_bet
from mindgap.data.case import CaseFiles
from mindgap.data.cohort import Cohort
from mindgap.data.masks import is_own_mask, is_own_probabilities
from mindgap.data.nifti import read_volume
from mindgap.data.raw import RawOptions
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import is_full, remove_leftovers, sha256_of
from mindgap.inference.layout import (
    Layout,
    check_bids,
    check_probability_files,
    describe_bids,
    mask_of,
    open_bids,
    probability_files,
    write_region_probabilities,
)
from mindgap.inference.outputs import STALE, remove_mask, set_aside
from mindgap.inference.panel import Answer, Panel
from mindgap.inference.raw import RawReading, find_raw, read_raw
from mindgap.inference.record import Found, Reading, check_sidecar, find_in, place_of, read_for, write_mask
from mindgap.inference.status import CaseStatus, Shard, StatusBook, cases_written, open_folder, read_status
from mindgap.lock import hold
from mindgap.progress import Progress, silent
from mindgap.regions import LabelConvention
from mindgap.sequences import SEQUENCES, format_subset, parse_subset
from mindgap.sequences import Sequence as MriSequence

WHOLE = Shard()


@dataclass
class Outcome:
    """How the cases of a share ended.

    Attributes:
        done: Segmented now.
        skipped: Done before, with a mask that still is what was written.
        failed: Name -> reason in one line.
    """

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def segment_cases(
    panel: Panel,
    cohort: Cohort,
    out: Path,
    *,
    convention: LabelConvention,
    shard: Shard = WHOLE,
    resume: bool = False,
    force: bool = False,
    layout: Layout = "folders",
    probabilities: bool = False,
    raw: RawOptions | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Segment a share of a cohort into ``out/CASE/CASE_seg.nii.gz`` and keep book of every case.

    While one case is computed the next is read and the one before is written, each by one thread, so that at most
    three cases are in memory. A line is added to the status file once the mask is on the disk: after a kill at any
    moment every case that is called done has its mask. The mask that a case has from before, when it fails now, gets
    another name (``.stale``): it is of other inputs.

    Args:
        panel: The network, or those of a set.
        cohort: Who to segment; what it rejected is listed as failed.
        out: Folder of the masks.
        convention: How labels are numbered in the masks.
        shard: The share of the sorted cases that is taken.
        resume: Leave alone what is done; a mask that is missing or damaged, or was made when the case had other
            sequences, or files of other names or contents, is made again.
        force: Accept affines that disagree.
        layout: A folder per case, or a BIDS derivative.
        probabilities: Also write the probabilities of the regions.
        raw: How raw scans are registered and stripped, while the case before is computed; None for co-registered,
            stripped images.
        progress: Called when a case has ended.

    Raises:
        SettingError: The folder holds results and ``resume`` is not set, or masks made otherwise (network, convention,
            coverage, layout, probabilities); or another process is at this share.
        MindgapError: The disk is full or the status file cannot be written: no case can be any more.
    """
    identity = {
        "model_sha256": panel.sha256,
        "labels": convention.name,
        "coverage": panel.coverage,
        "mirrored": panel.tta,
        "layout": layout,
        "probabilities": probabilities,
        "raw": None if raw is None else raw.describe(),
    }
    if layout == "bids":
        check_bids(out, [files.case_id for files in cohort.cases])
    open_folder(out, shard, identity, resume=resume)
    if layout == "bids":
        open_bids(out)
    outcome = Outcome()
    cases = {files.case_id: files for files in cohort.cases}
    mine = shard.share({*cases, *cohort.rejected})
    share = f"share {shard.number}/{shard.count} of {out}"
    with hold(out / f".{shard.status_name}.lock", what=share), StatusBook(out, shard) as book:
        known = read_status(out)  # of whoever held this share before, to its last line
        run = _Run(panel, out, convention, force, book, cases_written(out), outcome, layout, probabilities, raw)
        waiting = []
        for case_id in mine:
            if case_id not in cases:
                run.fail(case_id, f"{case_id}: {cohort.rejected[case_id]}")
            elif resume and _is_done(known.get(case_id), cases[case_id], out, layout, probabilities=probabilities):
                outcome.skipped.append(case_id)
                book.add(CaseStatus(case_id, "skipped", "done before; its mask is what was written"))
            else:
                waiting.append(cases[case_id])
        ended = len(mine) - len(waiting)
        run.all(waiting, lambda done, case_id: progress(ended + done, len(mine), case_id))
    return outcome


@dataclass(frozen=True)
class _Read:
    """A case that was read, and who answers for it."""

    who: Answer
    reading: Reading | RawReading


@dataclass(frozen=True)
class _Segmented:
    """What was found in a case, and by whom."""

    who: Answer
    found: Found


@dataclass(frozen=True)
class _Run:
    """One pass over the cases: three steps, of which the first and the last have a thread of their own.

    Networks are loaded between the steps, by the thread that computes.
    """

    panel: Panel
    out: Path
    convention: LabelConvention
    force: bool
    book: StatusBook
    written_before: set[str]
    outcome: Outcome
    layout: Layout
    probabilities: bool
    raw: RawOptions | None = None

    def all(self, waiting: Sequence[CaseFiles], progress: Callable[[int, str], None]) -> None:
        """Take every case through the three steps."""
        behind: Future[None] | None = None
        with _threads() as (reader, writer):
            ahead = [reader.submit(self.read, *self.asked(files)) for files in waiting[:1]]
            for number, files in enumerate(waiting):
                read = ahead.pop().result()
                ahead = [reader.submit(self.read, *self.asked(after)) for after in waiting[number + 1 : number + 2]]
                found = read if isinstance(read, str) else self.find(read)
                del read
                if behind is not None:
                    behind.result()
                    progress(number, waiting[number - 1].case_id)
                behind = writer.submit(self.write, files.case_id, found)
                del found
            if behind is not None:
                behind.result()
                progress(len(waiting), waiting[-1].case_id)

    def asked(self, files: CaseFiles) -> tuple[CaseFiles, Answer | str]:
        """The case, and who answers for it or why nobody can."""
        try:
            return files, self.panel.answer(files.case_id, files.sequences)
        except SettingError:  # of no case in particular
            raise
        except Exception as error:  # whatever one case brings, the others go on
            return files, _one_line(files.case_id, error)

    def read(self, files: CaseFiles, who: Answer | str) -> _Read | str:
        """The case, or why it cannot be used."""
        if isinstance(who, str):
            return who
        try:
            grid = who.predictor.serve(files.case_id, files.sequences)[0]
            if self.raw is None:
                self._check_place(files.case_id, grid)
                return _Read(who, read_for(who.predictor, files, force=self.force))
            given = read_raw(who.predictor, files, self.raw, force=self.force)
            self._check_place(files.case_id, _grid_of(given.reading.raw, grid))
            return _Read(who, given)
        except Exception as error:
            return _one_line(files.case_id, error)

    def find(self, read: _Read) -> _Segmented | str:
        """What is in the case, or why that cannot be told."""
        who, reading = read.who, read.reading
        files = reading.reading.files if isinstance(reading, RawReading) else reading.files
        try:
            if isinstance(reading, RawReading):
                return _Segmented(who, find_raw(who.predictor, reading, who.confidence))
            found = find_in(who.predictor, reading, who.confidence)
            if not self.probabilities:  # they are large, and the case may wait while the next is computed
                found = replace(found, segmentation=replace(found.segmentation, native=None))
            return _Segmented(who, found)
        except Exception as error:
            return _one_line(files.case_id, error)

    def write(self, case_id: str, result: _Segmented | str) -> None:
        """Write the mask, then the line that says so.

        Raises:
            MindgapError: The disk is full, or the status file cannot be written.
        """
        if isinstance(result, str):
            self.fail(case_id, result)
            return
        try:
            status = self._write(case_id, result)
        except Exception as error:
            if isinstance(error, MindgapError) and is_full(error):  # no case can be written any more
                raise
            self.fail(case_id, _one_line(case_id, error))
            return
        self.book.add(status)
        self.outcome.done.append(case_id)

    def _write(self, case_id: str, result: _Segmented) -> CaseStatus:
        who, found = result.who, result.found
        grid = _grid_of(found.reading.raw, found.segmentation.subset[0])
        mask = mask_of(self.out, case_id, grid, self.layout)
        record = write_mask(mask, found, who.predictor, convention=self.convention, force=self.force, choice=who.choice)
        if self.layout == "bids":
            describe_bids(mask, record, self.convention)
        if self.probabilities:
            write_region_probabilities(mask, found.segmentation, self.layout, record)
        if self.layout == "bids":  # whose names tell the grid: what an earlier call found on another one is past
            for other in set(SEQUENCES) - {grid}:
                remove_mask(mask_of(self.out, case_id, other, self.layout), self.layout)
        return CaseStatus(
            case_id,
            "done",
            "; ".join(record["warnings"]),
            subset=record["subset"],
            available=format_subset(found.reading.files.sequences),
            files={sequence: _place(taken) for sequence, taken in record["inputs"].items()},
            sha256={sequence: taken["sha256"] for sequence, taken in record["inputs"].items()},
            bytes={sequence: _length(Path(taken["file"])) for sequence, taken in record["inputs"].items()},
            mask_sha256=record["mask"]["sha256"],
            volumes_ml=record["volumes_ml"],
            seconds=record["seconds"],
            expected_dice=(record["confidence"] or {}).get("expected_dice", {}),
            review=(record["confidence"] or {}).get("review", []),
            native=record.get("raw", {}).get("native", ""),
        )

    def fail(self, case_id: str, reason: str) -> None:
        """List a case as failed; a mask that an earlier attempt wrote, from other inputs, is set aside."""
        reason += self._set_aside(case_id) if case_id in self.written_before else ""
        self.book.add(CaseStatus(case_id, "failed", reason))
        self.outcome.failed[case_id] = reason

    def _set_aside(self, case_id: str) -> str:
        """Set the earlier mask of a case aside, and say so in a clause."""
        masks = dict.fromkeys(mask_of(self.out, case_id, grid, self.layout) for grid in SEQUENCES)
        try:
            names = [mask.name + STALE for mask in masks if set_aside(mask, self.layout)]
        except OSError as error:
            return f"; its earlier mask is there still, and could not be set aside ({error.strerror or error})"
        return f"; its earlier mask was set aside as {', '.join(names)}" if names else ""

    def _check_place(self, case_id: str, grid: MriSequence) -> None:
        """Refuse to write over what is not ours, such as a corrected mask or somebody's notes.

        Raises:
            InputError: It is one of these.
        """
        mask = mask_of(self.out, case_id, grid, self.layout)
        remove_leftovers(mask.parent)
        if mask.exists() and not is_own_mask(mask) and not (case_id in self.written_before and not _is_readable(mask)):
            raise InputError(
                case=case_id,
                expected=f"no other file at {mask}",
                found="one that mindgap did not write, or that was changed since (a reference, a corrected mask?)",
                mend="move it away, or choose another output folder",
            )
        check_sidecar(mask)
        if self.probabilities:
            check_probability_files(mask, self.layout)


@contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """One that reads and one that writes, both ended in the end; after an error or a signal without what they run."""
    try:
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
            try:
                yield reader, writer
            except BaseException:
                stop_hd_bet()
                raise
    finally:
        allow_hd_bet()


def _is_done(status: CaseStatus | None, files: CaseFiles, out: Path, layout: Layout, *, probabilities: bool) -> bool:
    """Whether a case is done from what it has now, and its mask still is the file that was written.

    Probabilities that were asked for have to be there, too.
    """
    if status is None or status.status != "done":
        return False
    if status.available and status.available != format_subset(files.sequences):
        return False  # a sequence has come, or gone
    if any(_name(files, sequence) != Path(place).name for sequence, place in status.files.items()):
        return False
    mask = mask_of(out, status.case, status.grid, layout)
    if not mask.is_file() or sha256_of(mask) != status.mask_sha256:
        return False
    if probabilities and not all(is_own_probabilities(path) for path in probability_files(mask, layout)):
        return False
    return not any(_is_changed(files, sequence, status, since=mask.stat().st_mtime) for sequence in status.sha256)


def _is_changed(files: CaseFiles, sequence: str, status: CaseStatus, *, since: float) -> bool:
    """Whether a file of the same name holds something else now; one as long and older than the mask is not read."""
    (one,) = parse_subset(sequence)
    path = files.images[one].path
    try:
        now = path.stat()
        if now.st_size == status.bytes[sequence] and now.st_mtime <= since:
            return False
        return sha256_of(path) != status.sha256[sequence]
    except OSError:  # said when it is read
        return True


def _length(path: Path) -> int:
    """Bytes of a file; -1 where it went away after it was read."""
    return path.stat().st_size if path.is_file() else -1


def _name(files: CaseFiles, sequence: str) -> str:
    """The file of a sequence without its folder, which may have moved."""
    (one,) = parse_subset(sequence)
    if one not in files.images:
        return ""
    source = files.images[one]
    return Path(_place({"file": place_of(source.path), "channel": source.channel})).name


def _grid_of(raw: Mapping[str, Any] | None, first: MriSequence) -> MriSequence:
    """The sequence on whose grid a mask lies: the first the network looked at, or the native one of raw scans."""
    return MriSequence(raw["native"]) if raw else first


def _is_readable(mask: Path) -> bool:
    try:
        read_volume(mask, case=mask.name)
    except InputError:
        return False
    return True


def _place(taken: dict[str, str | int | None]) -> str:
    """A file as a manifest of cases names it: FILE, or FILE#CHANNEL."""
    return str(taken["file"]) if taken["channel"] is None else f"{taken['file']}#{taken['channel']}"


def _one_line(case_id: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MindgapError):
        return text
    return f"{case_id}: {type(error).__name__}: {text or 'no word'}"
