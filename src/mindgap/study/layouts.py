"""The paper's tables of students, of another k and of teachers, from our runs and in its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindgap.sequences import SEQUENCES
from mindgap.study import grid
from mindgap.study.gains import (
    PAPER_KEYS,
    case_means,
    enhancing_note,
    gains_over_cells,
    harm_of_another_k,
    students_of,
)
from mindgap.study.grid import ANCHORS, SINGLES, STUDENTS, Choice, Run
from mindgap.study.results import ALL, AVERAGE, Results, by_seed
from mindgap.study.subset_tables import any_subset_table, table3
from mindgap.study.tables import (
    ANCHOR_NAMES,
    METHOD_NAMES,
    THRESHOLD,
    Table,
    Tests,
    cells,
    common_notes,
    measured_header,
    paper,
    printed,
    printed_header,
    quoted_rows,
    threshold_row,
)

_TEST_COLUMNS = ("minus without alignment", "p (Holm)")
_IMPROVED = "Imp. printed / recomputed"
_ORIGINAL = "original (quoted)"


def build_table(name: str, results: Results, choice: Choice) -> Table:
    """The table of a preset from the runs that are there; cells without runs say "not run"."""
    return _BUILDERS[name](results, choice)


def _table1(results: Results, choice: Choice) -> Table:
    header = ["sequence", "method", "anchor", *measured_header(), *_TEST_COLUMNS, *printed_header(), _IMPROVED]
    table = Table("table1", "Table I: students by method, anchor and sequence (Dice, %)", header)
    tests = Tests(table, *_TEST_COLUMNS)
    methods, anchors = choice.pick("methods", STUDENTS), choice.compared_anchors(ANCHORS)
    for sequence in choice.pick("subsets", SINGLES):
        quoted = quoted_rows("table1", sequence)
        own = by_seed(grid.unimodal(sequence, 0), choice.seeds)
        _add(table, [sequence, "unimodal", ""], cells(results, own), printed(quoted["Unimodal"]["O"]))
        for method in methods:
            name = METHOD_NAMES.get(method, method)
            numbers: Mapping[str, Any] = quoted.get(name, {})
            if numbers:
                _add(table, [sequence, name, _ORIGINAL], [""] * len(measured_header()), printed(numbers["O"]))
            without = students_of(method, "none", sequence, choice)
            for anchor in anchors:
                runs = students_of(method, anchor, sequence, choice)
                said = printed(numbers.get(PAPER_KEYS[anchor]))
                _add(table, [sequence, name, ANCHOR_NAMES[anchor]], cells(results, runs), said)
                if anchor != "none":
                    tests.add(results.compare(runs, without, AVERAGE))
                if anchor == "mixture" and numbers:
                    table.rows[-1][-1] = _improvement(numbers)
        _add_threshold(table, results, sequence, [own])
    tests.finish()
    table.notes += common_notes(choice)
    table.notes.append(
        "original (quoted) is what the paper quotes from other papers, under other pipelines; the comparator of an "
        "anchor is the run without alignment. Both are shown, and quoted numbers are never run. "
        f"{_IMPROVED}: the paper's own column, P_* minus original, and the same from the cells of both."
    )
    table.notes += gains_over_cells(results, choice)
    return table


def _table2(results: Results, choice: Choice) -> Table:
    columns = ("T2 minus T1ce", "p (Holm)")
    header = ["sequence", "method", "k", *measured_header(), *columns, *printed_header()]
    table = Table("table2", "Table II: P_k with k = T1ce and k = T2 (Dice, %)", header)
    tests = Tests(table, *columns)
    cells_run: list[dict[str, float]] = []
    theirs: list[float] = []
    runs: list[Run] = []
    for sequence in choice.pick("subsets", SINGLES):
        rows = quoted_rows("table2", sequence)
        own = by_seed(grid.unimodal(sequence, 0), choice.seeds)
        _add(table, [sequence, "unimodal", ""], cells(results, own), printed(rows[0][:4]))
        for method in choice.pick("methods", STUDENTS):
            place = 1 + list(METHOD_NAMES).index(method) if method in METHOD_NAMES else len(rows)
            numbers = rows[place] if place < len(rows) else None  # none for a method that the paper has not
            name = METHOD_NAMES.get(method, method)
            suited, other = (
                by_seed(grid.student(method, "k", sequence, 0, k=k)[-1], choice.seeds) for k in ("T1ce", "T2")
            )
            first = quoted_rows("table1", sequence).get(name, {})
            _add_comparators(table, results, [sequence, name], students_of(method, "none", sequence, choice), first)
            quoted = [*first["k"][:3], numbers[4]] if numbers else None
            _add(table, [sequence, name, "T1ce"], cells(results, suited), printed(quoted))
            _add(table, [sequence, name, "T2"], cells(results, other), printed(numbers[:4] if numbers else None))
            tests.add(results.compare(other, suited, AVERAGE))
            found = results.differences(other, suited, AVERAGE)
            if found:
                cells_run.append(found)
                theirs += [numbers[3] - numbers[4]] if numbers else []
            runs += suited
        _add_threshold(table, results, sequence, [own])
    tests.finish()
    mean = {case: value / 100 for case, value in case_means(cells_run).items()}
    table.notes += [
        *common_notes(choice),
        "original (quoted) is what the paper quotes from other papers. Of k = T1ce the paper's Table II has averages "
        "only; its cells are those of P_k in Table I (where the average of KD-Net on FLAIR is printed as 65.41).",
        *harm_of_another_k(cells_run, theirs),
        *enhancing_note(results, runs, {f"T2 minus T1ce, mean of {len(cells_run)}": mean}),
    ]
    return table


def _table4(results: Results, choice: Choice) -> Table:
    header = ["network", "sees", "anchor", *measured_header(), *_TEST_COLUMNS, *printed_header()]
    table = Table("table4", "Table IV: teachers by anchor, all four sequences (Dice, %)", header)
    tests = Tests(table, *_TEST_COLUMNS)
    without = by_seed(grid.teacher("none", 0), choice.seeds)
    every = [by_seed(grid.teacher(anchor, 0), choice.seeds) for anchor in choice.compared_anchors(ANCHORS)]
    for anchor, runs in zip(choice.compared_anchors(ANCHORS), every, strict=True):
        numbers = paper()["table4"][ANCHOR_NAMES[anchor] if anchor != "none" else "none"]
        _add(table, ["teacher", ALL, ANCHOR_NAMES[anchor]], cells(results, runs), printed(numbers))
        if anchor != "none":
            tests.add(results.compare(runs, without, AVERAGE))
    found = threshold_row(results, every)
    if found is not None:
        _add(table, [THRESHOLD, ALL, ""], found, printed(None))
    tests.finish()
    weights = _anchor_weights(results, by_seed(grid.teacher("mixture", 0), choice.seeds))
    gains = {
        f"{ANCHOR_NAMES[anchor]} minus without alignment": results.differences(runs, without, AVERAGE)
        for anchor, runs in zip(choice.compared_anchors(ANCHORS), every, strict=True)
        if anchor != "none"
    }
    table.notes += [*common_notes(choice), *enhancing_note(results, without, gains), *weights]
    return table


def _anchor_weights(results: Results, seeds: Sequence[Run]) -> list[str]:
    """What the weights of P_* were when the kept networks were chosen, beside the paper's."""
    found = [weights for run in seeds if (weights := results.anchor_weights(run))]
    if not found:
        return []
    ours = ", ".join(
        f"{sequence} {sum(values) / len(values):.2f}"
        + (f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else "")
        for sequence, values in ((s, [weights[str(s)] for weights in found]) for s in SEQUENCES)
    )
    printed_ones = ", ".join(
        f"{s} {w}" for s, w in zip(SEQUENCES, paper()["pstar_weights_T1_T2_T1ce_Flair"], strict=True)
    )
    return [
        f"Weights of P_* (4 softmax(a), 1 at the start) in the network that was kept: {ours}; {len(found)} "
        f"{'seed' if len(found) == 1 else 'seeds'}. The "
        f"paper prints {printed_ones}; neither says how informative a sequence is."
    ]


_BUILDERS: dict[str, Callable[[Results, Choice], Table]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": table3,
    "table4": _table4,
    "anysubset": any_subset_table,
}


def _add(table: Table, names: Sequence[str], measured: Sequence[str], quoted: Sequence[str]) -> None:
    """A row with empty cells for difference and p, and for what follows the paper's numbers."""
    row = [*names, *measured, "", "", *quoted]
    table.rows.append(row + [""] * (len(table.header) - len(row)))


def _add_comparators(
    table: Table, results: Results, names: Sequence[str], without: Sequence[Run], numbers: Mapping[str, Any]
) -> None:
    """The quoted original, and the runs without alignment where there are any: what Table II is read against."""
    if numbers:
        _add(table, [*names, _ORIGINAL], [""] * len(measured_header()), printed(numbers["O"]))
    if any(results.has(run) for run in without):
        _add(table, [*names, ANCHOR_NAMES["none"]], cells(results, without), printed(numbers.get("W")))


def _improvement(numbers: Mapping[str, Any]) -> str:
    """The paper's P_* minus original, as printed and from its cells."""
    recomputed = (sum(numbers["*"][:3]) - sum(numbers["O"][:3])) / 3
    return f"{numbers['imp']:+.2f} / {recomputed:+.2f}"


def _add_threshold(table: Table, results: Results, sequence: str, candidates: Sequence[Sequence[Run]]) -> None:
    found = threshold_row(results, candidates)
    if found is not None:
        _add(table, [sequence, THRESHOLD, ""], found, printed(None))
