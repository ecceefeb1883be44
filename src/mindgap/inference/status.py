"""The books of a segmented cohort: one line per case and attempt, one file per process, and what they add up to."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mindgap.errors import MindgapError, SettingError
from mindgap.files import explain_unwritten, read_json, remove_leftovers, write_json, write_text
from mindgap.regions import REGIONS
from mindgap.runfiles import COHORT, OVERLAYS, STATUS, SUMMARY, read_lines
from mindgap.sequences import Sequence as MriSequence
from mindgap.sequences import parse_subset

State = Literal["done", "failed", "skipped"]
_EXPECTED = tuple(f"{region}_expected_dice" for region in REGIONS)
_UNJUDGED = "unknown: the network was not calibrated"
COLUMNS = ("case", "status", "subset", *(f"{r}_ml" for r in REGIONS), *_EXPECTED, "review", "seconds", "reason")
_FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """One of several shares of a cohort.

    Attributes:
        number: Which, from 1.
        count: How many there are.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/4".

        Raises:
            SettingError: It is no share.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise SettingError(f"shard {text!r} is no share: write 2/4 for the second of four (from 1/4 to 4/4).")
        return cls(int(match[1]), int(match[2]))

    def share(self, case_ids: Iterable[str]) -> list[str]:
        """Every ``count``-th of the sorted names: each name is in exactly one share, however often one asks."""
        return sorted(case_ids)[self.number - 1 :: self.count]

    @property
    def status_name(self) -> str:
        """File of this process: status.jsonl, or status-2-of-4.jsonl."""
        stem = Path(STATUS).stem
        return STATUS if self.count == 1 else f"{stem}-{self.number}-of-{self.count}.jsonl"


@dataclass(frozen=True)
class CaseStatus:
    """How one attempt at a case ended.

    Attributes:
        case: Its name.
        status: "done"; "failed", for the reason given; "skipped", because it was done before.
        reason: One line, empty where all went well.
        subset: What the network looked at.
        available: What the case had.
        files: Sequence -> file taken.
        sha256: Sequence -> SHA-256 of that file.
        bytes: Sequence -> its length.
        mask_sha256: Of the mask as it was written.
        volumes_ml: Region -> volume.
        seconds: "read", "compute" and "write".
        expected_dice: Region -> expected Dice, None where it cannot be told; empty without a calibrated network.
        review: Why a human should look at the mask.
        native: The sequence on whose grid the mask lies, where scans were raw.
        at: When, in UTC (ISO 8601).
    """

    case: str
    status: State
    reason: str = ""
    subset: str = ""
    available: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    mask_sha256: str = ""
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    expected_dice: Mapping[str, float | None] = field(default_factory=dict)
    review: Sequence[str] = ()
    native: str = ""
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    @property
    def grid(self) -> MriSequence:
        """The sequence on whose grid the mask lies."""
        return parse_subset(self.native or self.subset)[0]


class StatusBook:
    """The status file of one process, to which a line is added as soon as a case has ended.

    A context manager. A last half line, left by a kill, is dropped; a line that does not fit on the disk is taken back.

    Args:
        out: Folder of the cohort's masks.
        shard: Whose book.

    Raises:
        MindgapError: The place cannot be written.
    """

    def __init__(self, out: Path, shard: Shard) -> None:
        self.path = out / shard.status_name
        if self.path.is_file():
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in read_lines(self.path)))
        try:
            self._handle = self.path.open("ab", buffering=0)
        except OSError as error:
            raise MindgapError(explain_unwritten(self.path, error)) from error

    def __enter__(self) -> StatusBook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()

    def add(self, status: CaseStatus) -> None:
        """Add a line and bring it to the disk.

        Raises:
            MindgapError: The disk is full.
        """
        line = (json.dumps(asdict(status)) + "\n").encode()
        before, written = self.path.stat().st_size, 0
        try:
            while written < len(line):  # where there is room for a part, only the next part meets the error
                written += self._handle.write(line[written:])
            os.fsync(self._handle.fileno())
        except OSError as error:
            self._handle.truncate(before)
            raise MindgapError(explain_unwritten(self.path, error)) from error


def open_folder(out: Path, shard: Shard, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Make or check the folder of a cohort's masks, before any work.

    Args:
        out: The folder.
        shard: The share this process takes; other shares of as many may be at work in the same folder.
        identity: What all masks of the folder have in common, such as the network's SHA-256.
        resume: Whether to go on where an earlier run stopped.

    Raises:
        SettingError: The folder holds masks of another network or convention, results and ``resume`` is not set, or
            files of others with the names of ours.
    """
    record = {"format": _FORMAT, **identity}
    if (out / COHORT).is_file():
        known = read_json(out / COHORT)
        differ = [name for name in record if known.get(name) != record[name]]
        if differ:
            said = ", ".join(f"{name} {str(known.get(name))[:12]} (now {str(record[name])[:12]})" for name in differ)
            raise SettingError(f"{out} holds masks made otherwise: {said}. Choose another output folder.")
    books = {path.name for path in _books(out)}
    own = {shard.status_name}
    others = {Shard(number, shard.count).status_name for number in range(1, shard.count + 1)} - own
    if not resume and books - others:
        raise SettingError(
            f"{out} holds results of a cohort ({', '.join(sorted(books - others))}): add --resume to go on with it, or "
            "choose another output folder."
        )
    if shard.count == 1:  # other shares may be writing there, from other machines
        remove_leftovers(out)
    if not (out / COHORT).is_file():
        strange = [name for name in (SUMMARY, OVERLAYS) if (out / name).exists()]
        if strange and not books:
            raise SettingError(f"{out} holds {' and '.join(strange)} of somebody else: choose another output folder.")
        write_json(out / COHORT, record)


def read_status(out: Path) -> dict[str, CaseStatus]:
    """The last attempt at every case, over the books of all processes; that a case was skipped says nothing new."""
    return {line.case: line for line in sorted(_attempts(out), key=lambda line: (line.case, line.at))}


def cases_written(out: Path) -> set[str]:
    """The cases whose mask was written here by any attempt."""
    return {line.case for line in _attempts(out) if line.status == "done"}


def write_summary(out: Path) -> Path:
    """Write summary.csv, one row per case, from the books.

    Columns: case, status, subset, volumes in mL, expected Dice (empty without a calibrated network), why to review
    (empty: nothing speaks for it), seconds for reading, computing and writing together, reason. It is written again
    where a share added a line meanwhile, so that the last of several shares to end leaves all of them in it.
    """
    length = -1
    while length != (length := sum(book.stat().st_size for book in _books(out))):
        _write_summary(out)
    return out / SUMMARY


def _write_summary(out: Path) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in read_status(out).values():
        done = line.status == "done"
        volumes = [f"{line.volumes_ml[str(region)]:.3f}" if done else "" for region in REGIONS]
        seconds = f"{sum(line.seconds.values()):.2f}" if done else ""
        told = [line.expected_dice.get(str(region)) for region in REGIONS]
        expected = ["" if value is None else f"{value:.3f}" for value in told]
        review = "; ".join(line.review) or (_UNJUDGED if done and not line.expected_dice else "")
        writer.writerow([line.case, line.status, line.subset, *volumes, *expected, review, seconds, line.reason])
    write_text(out / SUMMARY, buffer.getvalue())


def _attempts(out: Path) -> list[CaseStatus]:
    known = {column.name for column in fields(CaseStatus)}
    lines = (line for book in _books(out) for line in read_lines(book))
    attempts = [CaseStatus(**{name: value for name, value in line.items() if name in known}) for line in lines]
    return [attempt for attempt in attempts if attempt.status != "skipped"]


def _books(out: Path) -> Sequence[Path]:
    return sorted(out.glob(f"{Path(STATUS).stem}*.jsonl"))
