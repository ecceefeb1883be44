"""The paper's tables from our runs, in its layout: students, another k, every subset, teachers, one network for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindgap.evaluation.summary import BASELINE
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset, make_subset, sequence_from_alias
from mindgap.study import grid
from mindgap.study.gains import (
    PAPER_KEYS,
    case_means,
    enhancing_note,
    gains_over_cells,
    harm_of_another_k,
    minus,
    students_of,
)
from mindgap.study.grid import ANCHORS, ANY_SUBSET, SINGLES, STUDENTS, Choice, Run
from mindgap.study.results import ALL, AVERAGE, COLUMNS, Cell, Results, by_seed, compare_values
from mindgap.study.tables import (
    ANCHOR_NAMES,
    METHOD_NAMES,
    NOT_RUN,
    Table,
    Tests,
    between_seeds,
    cell,
    cells,
    common_notes,
    counted_cell,
    interval_text,
    mean_cells,
    measured_header,
    number,
    paper,
    printed,
    printed_header,
    quoted_rows,
    threshold_row,
)

_TEST_COLUMNS = ("minus without alignment", "p (Holm)")
_REGIONS = ("WT", "TC", "ET")
_IMPROVED = "Imp. printed / recomputed"
_THRESHOLD = "best single threshold"
_QUOTED = "PMKL as printed"
"""The row of Table III that mixes the paper's two comparators."""


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
                _add(table, [sequence, name, "original (quoted)"], [""] * len(measured_header()), printed(numbers["O"]))
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
            quoted = ["", "", "", number(numbers[4]) if numbers else "", ""]
            _add(table, [sequence, name, "T1ce"], cells(results, suited), quoted)
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
        *harm_of_another_k(cells_run, theirs),
        *enhancing_note(results, runs, {f"T2 minus T1ce, mean of {len(cells_run)}": mean}),
    ]
    return table


def _table3(results: Results, choice: Choice) -> Table:
    quoted = paper()
    order = [_subset_name(name) for name in quoted["table3_subset_order"]]
    means = ["mean of 14", "between seeds", "mean of 15 as printed"]
    header = ["region", "anchor", "source", *order, *means, *_TEST_COLUMNS]
    table = Table("table3", "Table III: PMKL on every subset (Dice, %)", header)
    tests = Tests(table, *_TEST_COLUMNS)
    gains: dict[str, dict[str, float]] = {}
    for region in _REGIONS:
        runs: dict[str, list[list[Run]]] = {}
        for anchor, key in (("none", "PMKL"), ("mixture", "PMKL_Pstar")):
            numbers = quoted["table3"][region][key]
            last = [f"{sum(numbers[:14]) / 14:.2f}", "", number(quoted["table3"][region][f"{key}_printed_avg"]), "", ""]
            printed_as = _QUOTED if anchor == "none" else ANCHOR_NAMES[anchor]
            table.rows.append([region, printed_as, "paper", *map(number, numbers), *last])
            runs[anchor] = [
                by_seed(
                    grid.teacher(anchor, 0) if name == ALL else grid.student("pmkl", anchor, name, 0)[-1], choice.seeds
                )
                for name in order
            ]
            found = [counted_cell(results.measure(seeds, region), choice.seeds) for seeds in runs[anchor]]
            whole = results.measure_over([(seeds, None) for seeds in runs[anchor][:14]], region)
            spread = between_seeds(whole, choice.seeds)
            table.rows.append([region, ANCHOR_NAMES[anchor], "ours", *found, cell(whole), spread, "", "", ""])
        pair = [[(seeds, None) for seeds in runs[anchor][:14]] for anchor in ("mixture", "none")]
        tests.add(results.compare_over(pair[0], pair[1], region))
        gains[f"{region} P_* minus without alignment, mean of 14"] = results.differences_over(pair[0], pair[1], region)
        either = zip(runs["mixture"], runs["none"], strict=True)
        simple = ([results.measure(seeds, region, model=BASELINE) for seeds in two] for two in either)
        rows = [cell(next(filter(None, two), None)) for two in simple]
        table.rows.append([region, "", _THRESHOLD, *rows, "", "", "", "", ""])
    tests.finish()
    table.notes += [
        *common_notes(choice),
        *enhancing_note(results, [run for seeds in runs["mixture"] for run in seeds], gains),
        "mean of 14: over the subsets in each case, then over cases. The last subset of the paper is its teacher; its "
        "printed averages are over all fifteen.",
        f"{_QUOTED}: single sequences are the originals that Table I quotes from other papers, so that its distance to "
        "P_* is not what alignment gains; only the last subset is the teacher without alignment.",
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
        _add(table, [_THRESHOLD, ALL, ""], found, printed(None))
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


def _anysubset(results: Results, choice: Choice) -> Table:
    methods = choice.pick("methods", ANY_SUBSET)
    runs = {method: by_seed(Run(f"{method}-s0", method, "all", 0), choice.seeds) for method in methods}
    columns, last = (f"minus {methods[0]}", "p (Holm)"), "minus threshold"
    table = Table(
        "anysubset",
        "One network for every subset (Dice, %)",
        ["sees", "network", *measured_header(), *columns, last],
    )
    tests = Tests(table, *columns)
    subsets = [format_subset(subset) for subset in sorted(SUBSETS, key=len)]
    without = [NOT_RUN] * len(COLUMNS) + [""]
    for subset in subsets:
        for method in methods:
            table.rows.append([subset, method, *cells(results, runs[method], subset=subset), "", "", ""])
        found = threshold_row(results, runs.values(), subsets=[subset]) or without
        table.rows.append([subset, _THRESHOLD, *found, "", "", ""])
    gains = _add_means(table, tests, results, runs, subsets)
    found = threshold_row(results, runs.values(), subsets=subsets) or without
    table.rows.append(["mean of 15", _THRESHOLD, *found, "", "", ""])
    tests.finish()
    table.notes += [
        *common_notes(choice),
        *enhancing_note(results, [run for seeds in runs.values() for run in seeds], gains),
        "mean of 15: over the subsets in each case, then over cases. All networks keep all sequences in the same share "
        "of rows while training; the others draw a subset alike.",
    ]
    return table


def _add_means(
    table: Table, tests: Tests, results: Results, runs: Mapping[str, list[Run]], subsets: Sequence[str]
) -> dict[str, dict[str, float]]:
    """A row for the mean of each network over the subsets; gives what it gains over the first, and the threshold."""
    every: dict[str, list[Cell]] = {method: [(seeds, s) for s in subsets] for method, seeds in runs.items()}
    first, *_ = every
    simple = next(filter(None, (results.mean_over(e, AVERAGE, model=BASELINE) for e in every.values())), {})
    gains: dict[str, dict[str, float]] = {}
    against: dict[str, dict[str, float]] = {}
    for method, several in every.items():
        table.rows.append(["mean of 15", method, *mean_cells(results, several), "", "", ""])
        average = results.mean_over(several, AVERAGE)
        compared = compare_values(average, simple)
        table.rows[-1][-1] = "" if compared is None else interval_text(compared.difference, signed=True)
        against[f"{method} minus threshold"] = minus(average, simple)
        if method != first:
            tests.add(results.compare_over(several, every[first], AVERAGE))
            gains[f"{method} minus {first}"] = results.differences_over(several, every[first], AVERAGE)
    return gains | against


_BUILDERS: dict[str, Callable[[Results, Choice], Table]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "anysubset": _anysubset,
}


def _add(table: Table, names: Sequence[str], measured: Sequence[str], quoted: Sequence[str]) -> None:
    """A row with empty cells for difference and p, and for what follows the paper's numbers."""
    row = [*names, *measured, "", "", *quoted]
    table.rows.append(row + [""] * (len(table.header) - len(row)))


def _improvement(numbers: Mapping[str, Any]) -> str:
    """The paper's P_* minus original, as printed and from its cells."""
    recomputed = (sum(numbers["*"][:3]) - sum(numbers["O"][:3])) / 3
    return f"{numbers['imp']:+.2f} / {recomputed:+.2f}"


def _add_threshold(table: Table, results: Results, sequence: str, candidates: Sequence[Sequence[Run]]) -> None:
    found = threshold_row(results, candidates)
    if found is not None:
        _add(table, [sequence, _THRESHOLD, ""], found, printed(None))


def _subset_name(alias: str) -> str:
    if alias == "all":
        return ALL
    found = [sequence_from_alias("flair" if part == "fl" else part) for part in alias.split("+")]
    return format_subset(make_subset(sequence for sequence in found if sequence is not None))
