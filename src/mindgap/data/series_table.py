"""The table of all series of many examinations: what each is taken for and why, for a person to read and correct.

A row is known by the uid of its series. Its column `sequence` says T1, T1ce, T2, FLAIR, `-` for none of these, or `?`
for what is not decided; it counts as decided where it differs from the column `proposed`, which is what headers say.
Nothing is decided by leaving a cell empty, or by a proposal that is no longer made.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mindgap.data.dicom_sequence import LEAVE_OUT, NONE, UNDECIDED, Proposal
from mindgap.data.spreadsheet import read_sheet
from mindgap.errors import InputError
from mindgap.files import write_text
from mindgap.sequences import SEQUENCES, sequence_from_alias
from mindgap.sequences import Sequence as MriSequence

TABLE = "series.csv"
COLUMNS = ("case", "series", "description", "images", "sequence", "proposed", "reason", "uid")
_NEEDED = ("case", "sequence", "uid")


@dataclass(frozen=True)
class Seen:
    """One series as its headers describe it, without its slices, of which there may be very many.

    Attributes:
        proposal: What it is taken for; its series has no slices.
        images: How many there are.
    """

    proposal: Proposal
    images: int

    @classmethod
    def of(cls, proposal: Proposal) -> Seen:
        """Forget the slices."""
        series = proposal.series
        return cls(replace(proposal, series=replace(series, slices=())), len(series.slices))

    @property
    def uid(self) -> str:
        """By which the series is known."""
        return self.proposal.series.uid


@dataclass(frozen=True)
class Decision:
    """What one series is.

    Attributes:
        seen: The series.
        word: T1, T1ce, T2, FLAIR, ``-`` or ``?``.
    """

    seen: Seen
    word: str

    @property
    def sequence(self) -> MriSequence | None:
        """The sequence, or None."""
        return None if self.word in (NONE, UNDECIDED) else sequence_from_alias(self.word)

    @property
    def name(self) -> str:
        """What a person calls the series."""
        return self.seen.proposal.series.name

    @property
    def uid(self) -> str:
        """By which the series is known."""
        return self.seen.uid

    def line(self, case_id: str) -> dict[str, str]:
        """Its row."""
        series, reason = self.seen.proposal.series, self.seen.proposal.reason
        if self.word != self.seen.proposal.word:
            why = "left open, new, or its row was removed" if self.word == UNDECIDED else "decided by hand"
            reason = f"{why}; by its headers: {reason}"
        number = "" if series.number is None else str(series.number)
        about = (case_id, number, series.description, str(self.seen.images))
        return dict(zip(COLUMNS, (*about, self.word, self.seen.proposal.word, reason, self.uid), strict=True))


@dataclass(frozen=True)
class Table:
    """The table as it lies on the disk, with columns that a person may have added.

    Attributes:
        lines: Column -> cell of each line.
        delimiter: What parts its cells.
    """

    lines: tuple[Mapping[str, str], ...] = ()
    delimiter: str = ","

    def decide(self, series: Sequence[Seen]) -> tuple[Decision, ...]:
        """What the series of one examination are: what a person wrote, or else what their headers say.

        A series that is not in the table, of an examination that is, has come since, or its row was removed: it is not
        decided.
        """
        lines = {line["uid"]: line for line in self.lines}
        known = any(one.uid in lines for one in series)
        return tuple(Decision(one, _word(one.proposal.word, lines.get(one.uid), known=known)) for one in series)

    def with_decisions(self, decided: Mapping[str, Sequence[Decision]]) -> Table:
        """The same with what is known now; lines of series that were not seen stay as they are.

        Args:
            decided: Examination -> its series.
        """
        before = {line["uid"]: line for line in self.lines}
        made = [{**before.get(one.uid, {}), **one.line(case_id)} for case_id in decided for one in decided[case_id]]
        seen = {line["uid"] for line in made}
        rest = [dict(line) for line in self.lines if line["uid"] not in seen]
        return Table(tuple(sorted([*made, *rest], key=lambda line: line["case"])), self.delimiter)


def read_table(path: Path) -> Table:
    """Read a table, as mindgap or a spreadsheet wrote it; where there is none, an empty one.

    Args:
        path: As :func:`mindgap.data.spreadsheet.read_sheet` takes it.

    Raises:
        InputError: It is no such table, or says two things of one series.
    """
    if not path.exists():
        return Table()
    sheet = read_sheet(path)
    names = [_known(name) for name in sheet.header]
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise _no_table(path, f"none of {', '.join(names) or 'no column'} called {' or '.join(missing)}")
    rows: dict[str, dict[str, str]] = {}
    for number, cells in sheet.rows:
        if len(cells) > len(names):
            raise _no_table(path, f"{len(cells)} cells under {len(names)} names in row {number}")
        line = dict(zip(names, [*(cell.strip() for cell in cells), *[""] * (len(names) - len(cells))], strict=True))
        line["sequence"] = _word_of(line["sequence"], path, number)
        before = rows.setdefault(line["uid"], line)
        if not line["uid"] or before["sequence"] != line["sequence"]:
            what = f"{before['sequence']} and {line['sequence']} for one uid" if line["uid"] else "no uid"
            raise _no_table(path, f"{what} in row {number}")
    return Table(tuple(rows.values()), sheet.delimiter)


def write_table(path: Path, table: Table) -> None:
    """Write a table, atomically; in UTF-8 with the mark by which spreadsheets know it."""
    added = dict.fromkeys(name for line in table.lines for name in line if name not in COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *added], restval="", lineterminator="\n", delimiter=table.delimiter)
    writer.writeheader()
    writer.writerows(table.lines)
    write_text(path, "\ufeff" + text.getvalue())


def _word(headers: str, line: Mapping[str, str] | None, *, known: bool) -> str:
    """What counts: the word by the headers, that of a person, or that nothing is decided."""
    if line is None:
        return UNDECIDED if known and headers != NONE else headers
    word, proposed = line["sequence"], line.get("proposed", "")
    if word in ("", proposed):
        return headers if word and proposed == headers else UNDECIDED
    return word


def _known(name: str) -> str:
    """A column of ours in whichever case, others as they are."""
    return name.lower() if name.lower() in COLUMNS else name


def _word_of(text: str, path: Path, number: int) -> str:
    if text in ("", NONE, UNDECIDED):
        return text
    sequence = sequence_from_alias(text)
    if sequence is None and text.lower() != LEAVE_OUT:
        raise InputError(
            case=f"{path}, row {number}",
            expected=f"{', '.join(map(str, SEQUENCES))}, {NONE} or {UNDECIDED} in the column sequence",
            found=repr(text),
            mend="correct it",
        )
    return NONE if sequence is None else str(sequence)


def _no_table(path: Path, found: str) -> InputError:
    return InputError(
        case=str(path),
        expected="the table of series that mindgap wrote, with case, sequence and uid in every row",
        found=found,
        mend="correct it, or move it away and have it written again",
    )
