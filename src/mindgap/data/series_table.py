"""The table of all series of many examinations: what each is taken for and why, for a person to read and correct.

A row is known by the uid of its series. Its column `sequence` says T1, T1ce, T2, FLAIR, `-` for none of these, or `?`
for what is not decided; it counts as decided where it differs from the column `proposed`, which is what headers say.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindgap.data.dicom import DicomSeries
from mindgap.data.dicom_sequence import LEAVE_OUT, Proposal
from mindgap.errors import InputError
from mindgap.files import write_text
from mindgap.sequences import SEQUENCES, sequence_from_alias
from mindgap.sequences import Sequence as MriSequence

TABLE = "series.csv"
UNDECIDED = "?"
NONE = "-"
COLUMNS = ("case", "series", "description", "images", "sequence", "proposed", "reason", "uid")
_NEEDED = ("case", "sequence", "uid")


@dataclass(frozen=True)
class Decision:
    """What one series is.

    Attributes:
        series: The series.
        word: T1, T1ce, T2, FLAIR, ``-`` or ``?``.
        proposed: The same, by its headers alone.
        reason: Why.
        may_be: Which sequences it can be, where it is not decided.
    """

    series: DicomSeries
    word: str
    proposed: str
    reason: str
    may_be: tuple[MriSequence, ...] = ()

    @property
    def sequence(self) -> MriSequence | None:
        """The sequence, or None."""
        return None if self.word in (NONE, UNDECIDED) else sequence_from_alias(self.word)

    @property
    def by_hand(self) -> bool:
        """Whether a person said so."""
        return self.word != self.proposed

    def line(self, case_id: str) -> dict[str, str]:
        """Its row."""
        number = "" if self.series.number is None else str(self.series.number)
        cells = (case_id, number, self.series.description, str(len(self.series.slices)))
        return dict(zip(COLUMNS, (*cells, self.word, self.proposed, self.reason, self.series.uid), strict=True))


@dataclass(frozen=True)
class Table:
    """The table as it lies on the disk, with columns that a person may have added.

    Attributes:
        lines: Column -> cell of each line.
        delimiter: What parts its cells.
    """

    lines: tuple[Mapping[str, str], ...] = ()
    delimiter: str = ","

    def decide(self, proposals: Sequence[Proposal]) -> tuple[Decision, ...]:
        """What the series of one examination are: what a person wrote, or else what their headers say.

        A series that is not in the table, of an examination that is, has come since, or its row was removed: it is not
        decided.
        """
        lines = {line["uid"]: line for line in self.lines}
        known = any(proposal.series.uid in lines for proposal in proposals)
        return tuple(_decide(proposal, lines.get(proposal.series.uid), known=known) for proposal in proposals)

    def with_decisions(self, decided: Mapping[str, Sequence[Decision]]) -> Table:
        """The same with what is known now; lines of series that were not seen stay as they are.

        Args:
            decided: Examination -> its series.
        """
        before = {line["uid"]: line for line in self.lines}
        made = [
            {**before.get(one.series.uid, {}), **one.line(case_id)} for case_id in decided for one in decided[case_id]
        ]
        seen = {line["uid"] for line in made}
        rest = [dict(line) for line in self.lines if line["uid"] not in seen]
        return Table(tuple(sorted([*made, *rest], key=lambda line: line["case"])), self.delimiter)


def read_table(path: Path) -> Table:
    """Read a table, as mindgap or a spreadsheet wrote it; where there is none, an empty one.

    Args:
        path: In UTF-8 or UTF-16, or else in Windows-1252; cells parted by commas, semicolons or tabs.

    Raises:
        InputError: It is no such table, or says two things of one series.
    """
    if not path.exists():
        return Table()
    try:
        text = _text_of(path.read_bytes())
        first = text.splitlines()[0] if text.strip() else ""
        delimiter = max(",;\t", key=first.count)
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _no_table(path, str(error)) from error
    names = [_known(name.strip()) for name in lines[0]] if lines else []
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise _no_table(path, f"none of {', '.join(names) or 'no column'} called {' or '.join(missing)}")
    rows: dict[str, dict[str, str]] = {}
    for number, cells in enumerate(lines[1:], 2):
        if len(cells) > len(names):
            raise _no_table(path, f"{len(cells)} cells under {len(names)} names in row {number}")
        line = dict(zip(names, [*(cell.strip() for cell in cells), *[""] * (len(names) - len(cells))], strict=True))
        line["sequence"] = _word_of(line["sequence"], path, number)
        before = rows.setdefault(line["uid"], line)
        if not line["uid"] or before["sequence"] != line["sequence"]:
            what = f"{before['sequence']} and {line['sequence']} for one uid" if line["uid"] else "no uid"
            raise _no_table(path, f"{what} in row {number}")
    return Table(tuple(rows.values()), delimiter)


def write_table(path: Path, table: Table) -> None:
    """Write a table, atomically; in UTF-8 with the mark by which spreadsheets know it."""
    added = dict.fromkeys(name for line in table.lines for name in line if name not in COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *added], restval="", lineterminator="\n", delimiter=table.delimiter)
    writer.writeheader()
    writer.writerows(table.lines)
    write_text(path, "\ufeff" + text.getvalue())


def _decide(proposal: Proposal, line: Mapping[str, str] | None, *, known: bool) -> Decision:
    headers = str(proposal.sequence) if proposal.sequence is not None else NONE if proposal.aside else UNDECIDED
    likely = proposal.contested or proposal.sequence
    may_be = proposal.may_be if likely is None else (likely,)
    if line is None:
        word = UNDECIDED if known and headers != NONE else headers
    else:
        word = headers if line["sequence"] in ("", line.get("proposed", "")) else line["sequence"]
    if word == headers:
        return Decision(proposal.series, word, headers, proposal.reason, may_be)
    why = "left open, new, or its row was removed" if word == UNDECIDED else "decided by hand"
    return Decision(proposal.series, word, headers, f"{why}; by its headers: {proposal.reason}", may_be)


def _text_of(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


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
