"""The paper's tables from our runs, beside its printed numbers and their recomputed averages."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from mindgap.evaluation.statistics import holm, smallest_attainable_p
from mindgap.sequences import SUBSETS, format_subset, make_subset, sequence_from_alias
from mindgap.study import grid
from mindgap.study.grid import ANCHORS, ANY_SUBSET, SINGLES, STUDENTS, Choice, Run
from mindgap.study.results import ALL, AVERAGE, COLUMNS, Results, by_seed

NOT_RUN = "not run"
METHOD_NAMES = {"kdnet": "KD-Net", "pmkl": "PMKL", "protokd": "ProtoKD", "smunet": "SMU-Net"}
ANCHOR_NAMES = {"none": "without alignment", "normal": "P_N", "k": "P_k", "mixture": "P_*"}
_PAPER_KEYS = {"none": "W", "normal": "N", "k": "k", "mixture": "*"}
_PAPER_ANCHORS = {"none": "none", "normal": "P_N", "k": "P_k", "mixture": "P_*"}


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


def build_table(name: str, results: Results, choice: Choice) -> Table:
    """The table of a preset from the runs that are there; cells without runs say "not run"."""
    return _BUILDERS[name](results, choice)


def _table1(results: Results, choice: Choice) -> Table:
    table = Table(
        "table1",
        "Table I: students by method, anchor and sequence (Dice, %)",
        [
            "sequence",
            "method",
            "anchor",
            *_measured_header(),
            "minus without alignment",
            "p (Holm)",
            *_printed_header(),
        ],
    )
    printed = paper()["table1"]
    tests: list[tuple[int, float]] = []
    methods, anchors = choice.pick("methods", STUDENTS), choice.pick("anchors", ANCHORS)
    for sequence in choice.pick("subsets", SINGLES):
        quoted = printed["Flair" if sequence == "FLAIR" else sequence]
        own = by_seed(grid.unimodal(sequence, 0), choice.seeds)
        table.rows.append([sequence, "unimodal", "", *_cells(results, own), "", "", *_printed(quoted["Unimodal"]["O"])])
        for method in methods:
            numbers = quoted[METHOD_NAMES[method]]
            original = [sequence, METHOD_NAMES[method], "original (quoted)", *[""] * 5, "", ""]
            table.rows.append([*original, *_printed(numbers["O"])])
            without = by_seed(grid.student(method, "none", sequence, 0)[-1], choice.seeds)
            for anchor in anchors:
                runs = by_seed(grid.student(method, anchor, sequence, 0)[-1], choice.seeds)
                found = results.compare(runs, without, AVERAGE) if anchor != "none" else None
                if found:
                    tests.append((len(table.rows), found[1]))
                difference = _interval(found[0], signed=True) if found else ""
                row = [sequence, METHOD_NAMES[method], ANCHOR_NAMES[anchor], *_cells(results, runs), difference, ""]
                table.rows.append([*row, *_printed(numbers[_PAPER_KEYS[anchor]])])
    _adjust(table, tests, column=table.header.index("p (Holm)"), cases=_case_count(results, choice))
    table.notes += _common_notes(choice)
    table.notes.append(
        "original (quoted) is what the paper quotes from other papers, under other pipelines; the comparator of an "
        "anchor is the run without alignment. Both are shown, and quoted numbers are never run."
    )
    return table


def _table2(results: Results, choice: Choice) -> Table:
    table = Table(
        "table2",
        "Table II: P_k with k = T1ce and k = T2 (Dice, %)",
        ["sequence", "method", "k", *_measured_header(), "T2 minus T1ce", "p (Holm)", *_printed_header()],
    )
    printed = paper()["table2"]
    tests: list[tuple[int, float]] = []
    for sequence in choice.pick("subsets", SINGLES):
        rows = printed["Flair" if sequence == "FLAIR" else sequence]
        for method in choice.pick("methods", STUDENTS):
            numbers = rows[1 + STUDENTS.index(method)]
            suited = by_seed(grid.student(method, "k", sequence, 0, k="T1ce")[-1], choice.seeds)
            other = by_seed(grid.student(method, "k", sequence, 0, k="T2")[-1], choice.seeds)
            table.rows.append(
                [
                    sequence,
                    METHOD_NAMES[method],
                    "T1ce",
                    *_cells(results, suited),
                    "",
                    "",
                    "",
                    "",
                    "",
                    _number(numbers[4]),
                    "",
                ]
            )
            found = results.compare(other, suited, AVERAGE)
            if found:
                tests.append((len(table.rows), found[1]))
            difference = _interval(found[0], signed=True) if found else ""
            row = [sequence, METHOD_NAMES[method], "T2", *_cells(results, other), difference, ""]
            table.rows.append([*row, *_printed(numbers[:4])])
    _adjust(table, tests, column=table.header.index("p (Holm)"), cases=_case_count(results, choice))
    table.notes += _common_notes(choice)
    return table


def _table3(results: Results, choice: Choice) -> Table:
    printed = paper()
    order = [_subset_name(name) for name in printed["table3_subset_order"]]
    regions = dict(zip(("WT", "TC", "ET"), ("WT", "TC", "ET"), strict=True))
    table = Table(
        "table3", "Table III: PMKL on every subset (Dice, %)", ["region", "anchor", "source", *order, "mean of 14"]
    )
    for region in regions:
        for anchor, key in (("none", "PMKL"), ("mixture", "PMKL_Pstar")):
            numbers = printed["table3"][region][key]
            recomputed = f"{sum(numbers[:14]) / 14:.2f}"
            table.rows.append([region, ANCHOR_NAMES[anchor], "paper", *map(_number, numbers), recomputed])
            found = []
            for name in order:
                first = grid.teacher(anchor, 0) if name == ALL else grid.student("pmkl", anchor, name, 0)[-1]
                found.append(results.measure(by_seed(first, choice.seeds), region))
            cells = [NOT_RUN if m is None else f"{m.interval.mean:.2f}" for m in found]
            means = [m.interval.mean for m in found[:14] if m is not None]
            table.rows.append(
                [
                    region,
                    ANCHOR_NAMES[anchor],
                    "ours",
                    *cells,
                    f"{sum(means) / 14:.2f}" if len(means) == 14 else NOT_RUN,
                ]
            )
    table.notes += [
        *_common_notes(choice),
        "The last column of the paper is its teacher; its printed averages are over all fifteen, ours leave it out.",
    ]
    return table


def _table4(results: Results, choice: Choice) -> Table:
    table = Table(
        "table4",
        "Table IV: teachers by anchor, all four sequences (Dice, %)",
        ["network", "sees", "anchor", *_measured_header(), "minus without alignment", "p (Holm)", *_printed_header()],
    )
    tests: list[tuple[int, float]] = []
    without = by_seed(grid.teacher("none", 0), choice.seeds)
    for anchor in choice.pick("anchors", ANCHORS):
        runs = by_seed(grid.teacher(anchor, 0), choice.seeds)
        found = results.compare(runs, without, AVERAGE) if anchor != "none" else None
        if found:
            tests.append((len(table.rows), found[1]))
        difference = _interval(found[0], signed=True) if found else ""
        numbers = paper()["table4"][_PAPER_ANCHORS[anchor]]
        table.rows.append(
            ["teacher", ALL, ANCHOR_NAMES[anchor], *_cells(results, runs), difference, "", *_printed(numbers)]
        )
    baseline = [_cell(results.measure(without, column, model="threshold")) for column in COLUMNS]
    table.rows.append(["best single threshold", ALL, "", *baseline, "", "", "", *[""] * 5])
    _adjust(table, tests, column=table.header.index("p (Holm)"), cases=_case_count(results, choice, without))
    table.notes += _common_notes(choice)
    return table


def _anysubset(results: Results, choice: Choice) -> Table:
    methods = choice.pick("methods", ANY_SUBSET)
    runs = {method: by_seed(Run(f"{method}-s0", method, "all", 0), choice.seeds) for method in methods}
    header = [
        "sees",
        *(f"{method} {region}" for method in methods for region in COLUMNS),
        *(f"threshold {r}" for r in COLUMNS),
    ]
    table = Table("anysubset", "One network for every subset (Dice, %)", header)
    sums: list[list[float]] = []
    for subset in map(format_subset, sorted(SUBSETS, key=len)):
        found = [results.measure(runs[method], column, subset=subset) for method in methods for column in COLUMNS]
        found += [results.measure(runs[methods[0]], column, subset=subset, model="threshold") for column in COLUMNS]
        table.rows.append([subset, *(NOT_RUN if m is None else f"{m.interval.mean:.1f}" for m in found)])
        sums.append([float("nan") if m is None else m.interval.mean for m in found])
    means = [sum(column) / len(column) for column in zip(*sums, strict=True)]
    table.rows.append(["mean of 15", *(NOT_RUN if mean != mean else f"{mean:.1f}" for mean in means)])
    table.notes += _common_notes(choice)
    return table


_BUILDERS: dict[str, Callable[[Results, Choice], Table]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "anysubset": _anysubset,
}


def _measured_header() -> list[str]:
    return [*COLUMNS, "between seeds"]


def _printed_header() -> list[str]:
    return ["paper WT", "TC", "EC", "Avg printed", "Avg recomputed"]


def _cells(results: Results, seeds: Sequence[Run]) -> list[str]:
    found = [results.measure(seeds, column) for column in COLUMNS]
    spread = "" if found[-1] is None or found[-1].seeds < 2 else f"{found[-1].spread:.2f}"
    return [*map(_cell, found), spread]


def _cell(measured: Any) -> str:
    return NOT_RUN if measured is None else _interval(measured.interval)


def _interval(interval: Any, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{interval.mean:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _printed(numbers: Sequence[float]) -> list[str]:
    """WT, TC, EC and average as printed, and the average of the three."""
    return [*map(_number, numbers[:4]), f"{sum(numbers[:3]) / 3:.2f}"]


def _subset_name(alias: str) -> str:
    if alias == "all":
        return ALL
    found = [sequence_from_alias("flair" if part == "fl" else part) for part in alias.split("+")]
    return format_subset(make_subset(sequence for sequence in found if sequence is not None))


def _case_count(results: Results, choice: Choice, seeds: Sequence[Run] | None = None) -> int:
    if seeds is None:
        seeds = by_seed(grid.unimodal(choice.pick("subsets", SINGLES)[0], 0), choice.seeds)
    return len(results.cases(seeds, AVERAGE))


def _adjust(table: Table, tests: Sequence[tuple[int, float]], *, column: int, cases: int) -> None:
    """Fill in adjusted p-values, and say what the smallest possible one is."""
    for (row, _), p in zip(tests, holm([p for _, p in tests]), strict=True):
        table.rows[row][column] = f"{p:.3f}"
    if tests:
        least = smallest_attainable_p(cases, len(tests))
        verdict = ": no difference, however large, can be significant here" if least > 0.05 else ""
        table.notes.append(
            f"p: Wilcoxon across cases on the average of seeds, zeros by Pratt, Holm over {len(tests)} tests. With "
            f"{cases} cases the smallest adjusted p that can be reached is {least:.3g}{verdict}."
        )


def _common_notes(choice: Choice) -> list[str]:
    count = choice.seeds
    return [
        "Ours: mean over test cases with the 95 % bootstrap interval over cases; "
        + (
            f"{count} seeds, averaged per case first."
            if count > 1
            else "1 seed: the variation between trainings is not in the interval."
        ),
        "Avg is the mean of WT, TC and ET. Paper: BraTS 2018, 57 test cases, one run each, no intervals.",
    ]
