"""What the paper's tables are made of: cells with intervals, tests, and the paper's printed numbers."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from mindgap.evaluation.statistics import attainable, holm
from mindgap.evaluation.summary import BASELINE
from mindgap.study.grid import Choice, Run
from mindgap.study.results import AVERAGE, COLUMNS, Cell, Compared, Measured, Results

NOT_RUN = "not run"
THRESHOLD = "best single threshold"
"""Name of the row of the baseline that every table carries."""
ACROSS = "\u2020"
"""Marks a difference of two trainings in different arithmetic."""
ACROSS_NOTE = (
    f"{ACROSS} The two sides were trained with different precision or vector width. That alone moves a run by some "
    "points, so that such a difference is no measure of what it is named after."
)
METHOD_NAMES = {"kdnet": "KD-Net", "pmkl": "PMKL", "protokd": "ProtoKD", "smunet": "SMU-Net"}
ANCHOR_NAMES = {"none": "without alignment", "normal": "P_N", "k": "P_k", "mixture": "P_*"}


@dataclass
class Table:
    """A finished table.

    Attributes:
        name: Of the preset.
        title: One line.
        header: Names of the columns.
        rows: Cells as text.
        notes: What the columns mean, and what cannot be said.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """As Markdown."""
        lines = [f"## {self.title}", "", f"| {' | '.join(self.header)} |", "|" + "---|" * len(self.header)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def csv(self) -> str:
        """As CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()

    def html(self) -> str:
        """As one self-contained page."""

        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "\n".join(row(cells, "td") for cells in self.rows)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return _PAGE.format(title=html.escape(self.title), head=row(self.header, "th"), body=body, notes=notes)


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#1b1f24}} table{{border-collapse:collapse}}
th,td{{padding:.25rem .6rem;border-bottom:1px solid #d8dee4;text-align:right;white-space:nowrap}}
th:nth-child(-n+3),td:nth-child(-n+3){{text-align:left}} th{{border-bottom:2px solid #57606a}}
</style></head><body><h1>{title}</h1><div style="overflow-x:auto"><table><thead>{head}</thead>
<tbody>{body}</tbody></table></div><ul>{notes}</ul></body></html>
"""


def paper() -> dict[str, Any]:
    """The paper's numbers as printed."""
    value: dict[str, Any] = json.loads((files("mindgap.study") / "paper.json").read_text(encoding="utf-8"))
    return value


def quoted_rows(table: str, sequence: str) -> Any:
    """What the paper prints for a sequence in one of its tables."""
    return paper()[table]["Flair" if sequence == "FLAIR" else sequence]


def measured_header() -> list[str]:
    """Names of the columns of :func:`cells`."""
    return [*COLUMNS, "between seeds"]


def printed_header() -> list[str]:
    """Names of the columns of :func:`printed`."""
    return ["paper WT", "TC", "EC", "Avg printed", "Avg recomputed"]


def cells(results: Results, seeds: Sequence[Run], *, subset: str | None = None, model: str = "") -> list[str]:
    """Mean and interval of every column, and the spread between seeds.

    Args:
        results: Of the study.
        seeds: Runs that differ by their seed.
        subset: Of an any-subset network.
        model: Another row of the same scores, such as the threshold.
    """
    return mean_cells(results, [(seeds, subset)], model=model)


def mean_cells(results: Results, several: Sequence[Cell], *, model: str = "") -> list[str]:
    """The columns of :func:`cells` for the mean over several cells, by the seeds that all of them have."""
    found = [results.measure_over(several, column, model=model) for column in COLUMNS]
    return [*map(cell, found), "" if model else between_seeds(found[-1], len(several[0][0]))]


def between_seeds(measured: Measured | None, asked: int) -> str:
    """The spread between seeds, and how many there are where some were not run."""
    if measured is None:
        return ""
    spread = f"{measured.spread:.2f}" if measured.seeds > 1 else ""
    return "; ".join(filter(None, [spread, missing_seeds(measured.seeds, asked)]))


def counted_cell(measured: Measured | None, asked: int) -> str:
    """Mean and interval, and how many seeds there are where some were not run."""
    return "; ".join(filter(None, [cell(measured), missing_seeds(measured.seeds, asked) if measured else ""]))


def missing_seeds(found: int, asked: int) -> str:
    """Said where not every seed was run."""
    return f"{found} of {asked} seeds" if found < asked else ""


def threshold_row(
    results: Results, candidates: Iterable[Sequence[Run]], *, subsets: Sequence[str | None] = (None,)
) -> list[str] | None:
    """Cells of the best single threshold on what the first of some runs saw; None if none was scored beside it.

    Args:
        results: Of the study.
        candidates: Runs that differ by their seed, several times.
        subsets: Of any-subset networks; the row is their mean.
    """
    for seeds in candidates:
        several = [(seeds, subset) for subset in subsets]
        if results.measure_over(several, AVERAGE, model=BASELINE) is not None:
            return mean_cells(results, several, model=BASELINE)
    return None


def cell(measured: Measured | None) -> str:
    """Mean and interval, in percent."""
    return NOT_RUN if measured is None else measured.interval.text(2)


def compared_text(compared: Compared) -> str:
    """A difference and its 95 % interval, marked where the two sides were trained in different arithmetic."""
    return compared.difference.text(2, signed=True) + (f" {ACROSS}" if compared.across else "")


def p_text(p: float) -> str:
    """An adjusted p."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def number(value: float | None) -> str:
    """A number of the paper."""
    return "" if value is None else f"{value:.2f}"


def printed(numbers: Sequence[float] | None) -> list[str]:
    """WT, TC, EC and average as printed, and the average of the three; empty where the paper has nothing."""
    return [""] * 5 if numbers is None else [*map(number, numbers[:4]), f"{sum(numbers[:3]) / 3:.2f}"]


class Tests:
    """The tests of a table, adjusted together when all rows are there.

    Args:
        table: Whose rows they stand in.
        columns: Names of the columns of difference and p.
    """

    def __init__(self, table: Table, *columns: str) -> None:
        self.table, self.columns = table, tuple(map(table.header.index, columns))
        self.found: list[tuple[int, Compared]] = []

    def add(self, compared: Compared | None) -> None:
        """Write a difference into the row that was added last; nothing where a run is missing."""
        if compared is None:
            return
        self.table.rows[-1][self.columns[0]] = compared_text(compared)
        self.found.append((len(self.table.rows) - 1, compared))

    def finish(self) -> None:
        """Fill in adjusted p-values, and say what the smallest possible one is."""
        if not self.found:
            return
        for (row, _), p in zip(self.found, holm([compared.p for _, compared in self.found]), strict=True):
            self.table.rows[row][self.columns[1]] = p_text(p)
        reach = attainable([compared.difference for _, compared in self.found])
        self.table.notes.append(
            f"p: Wilcoxon across cases on the average of seeds, zeros by Pratt, Holm over {len(self.found)} tests. "
            f"With {reach.counted} the smallest adjusted p that can be reached is {reach.p:.2g}{reach.verdict}."
        )
        if any(compared.fewer for _, compared in self.found):
            self.table.notes.append(
                "Differences use the seeds both have: where one was run with more, they are not the difference of the "
                "two averages."
            )
        if any(compared.across for _, compared in self.found):
            self.table.notes.append(ACROSS_NOTE)


def common_notes(choice: Choice) -> list[str]:
    """What every table says about its numbers."""
    count = choice.seeds
    return [
        "Ours: mean over test cases with the 95 % bootstrap interval over cases; "
        + (
            f"{count} seeds, averaged per case first; between seeds: standard deviation of Avg."
            if count > 1
            else "1 seed: the variation between trainings is not in the interval."
        ),
        "Avg is the mean of WT, TC and ET in each case; ETpp is ET without predictions below 500 mm^3, a rule of other "
        "papers. Numbers of the paper: BraTS 2018, 57 test cases at 1 mm, one run each, no intervals. Only differences "
        "within a column of ours compare like with like.",
    ]
