"""Tables over many subsets: PMKL on every one of them (Table III), and one network for all fifteen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mindgap.evaluation.statistics import Interval, attainable, holm
from mindgap.evaluation.summary import BASELINE
from mindgap.sequences import SUBSETS, format_subset, make_subset, sequence_from_alias
from mindgap.study import grid
from mindgap.study.gains import enhancing_note, minus
from mindgap.study.grid import ANY_SUBSET, Choice, Run
from mindgap.study.results import ALL, AVERAGE, COLUMNS, Cell, Results, by_seed, compare_values
from mindgap.study.tables import (
    ACROSS_NOTE,
    ANCHOR_NAMES,
    NOT_RUN,
    THRESHOLD,
    Table,
    Tests,
    between_seeds,
    cell,
    cells,
    common_notes,
    compared_text,
    counted_cell,
    mean_cells,
    measured_header,
    number,
    p_text,
    paper,
    threshold_row,
)

_REGIONS = ("WT", "TC", "ET")
_MEAN = "mean of 15"
_OURS = "anysubset"
_QUOTED = "PMKL as printed"
"""The row of Table III that mixes the paper's two comparators."""


def table3(results: Results, choice: Choice) -> Table:
    """Table III: PMKL with and without P_* on every subset, region by region."""
    quoted = paper()
    order = [_subset_name(name) for name in quoted["table3_subset_order"]]
    runs = {
        anchor: [
            by_seed(grid.teacher(anchor, 0) if name == ALL else grid.student("pmkl", anchor, name, 0)[-1], choice.seeds)
            for name in order
        ]
        for anchor in ("none", "mixture")
    }
    both = [pair for pair in zip(runs["mixture"], runs["none"], strict=True) if results.differences(*pair, AVERAGE)]
    students = [pair for pair in both if pair[0][0].method != "teacher"]
    means = [
        "mean of 14",
        "between seeds",
        "mean of 15 printed / recomputed",
        f"gain, mean of {len(students)}",
        "p (Holm)",
    ]
    table = Table(
        "table3",
        "Table III: PMKL on every subset (Dice, %)",
        ["region", "anchor", "source", *order, *means],
    )
    tests = Tests(table, *means[-2:])
    gains: dict[str, dict[str, float]] = {}
    for region in COLUMNS:
        for anchor, key in (("none", "PMKL"), ("mixture", "PMKL_Pstar")):
            if region in _REGIONS:
                numbers, mean = quoted["table3"][region][key], quoted["table3"][region][f"{key}_printed_avg"]
                last = [f"{sum(numbers[:14]) / 14:.2f}", "", f"{mean:.2f} / {sum(numbers) / len(numbers):.2f}", "", ""]
                printed_as = _QUOTED if anchor == "none" else ANCHOR_NAMES[anchor]
                table.rows.append([region, printed_as, "paper", *map(number, numbers), *last])
            found = [counted_cell(results.measure(seeds, region), choice.seeds) for seeds in runs[anchor]]
            whole = results.measure_over([(seeds, None) for seeds in runs[anchor][:14]], region)
            spread = between_seeds(whole, choice.seeds)
            table.rows.append([region, ANCHOR_NAMES[anchor], "ours", *found, cell(whole), spread, "", "", ""])
        each = [
            results.compare(aligned, plain, region) for aligned, plain in zip(*reversed(runs.values()), strict=True)
        ]
        texts = [NOT_RUN if compared is None else compared_text(compared) for compared in each]
        table.rows.append([region, "P_* minus without alignment", "ours", *texts, "", "", "", "", ""])
        pair = [[(two[side], None) for two in students] for side in (0, 1)]
        gain = results.compare_over(pair[0], pair[1], region) if students else None
        if region in _REGIONS:
            tests.add(gain)
        elif gain is not None:
            table.rows[-1][-2] = compared_text(gain)
        name = f"{region} P_* minus without alignment, mean of {len(students)}"
        gains[name] = results.differences_over(pair[0], pair[1], region) if students else {}
        simple = (
            [results.measure(seeds, region, model=BASELINE) for seeds in two]
            for two in zip(*runs.values(), strict=True)
        )
        rows = [cell(next(filter(None, two), None)) for two in simple]
        table.rows.append([region, "", THRESHOLD, *rows, "", "", "", "", ""])
    tests.finish()
    table.notes += [
        *common_notes(choice),
        *enhancing_note(results, [run for seeds in runs["mixture"] for run in seeds], gains),
        "mean of 14: over the subsets in each case, then over cases; gain: of the students that were run with both "
        "anchors. The last subset of the paper is its teacher; its printed averages are over all fifteen.",
        f"{_QUOTED}: single sequences are the originals that Table I quotes from other papers, so that its distance to "
        "P_* is not what alignment gains; only the last subset is the teacher without alignment.",
    ]
    return table


def any_subset_table(results: Results, choice: Choice) -> Table:
    """Networks that answer for every subset, on each of the fifteen and in the mean."""
    methods = choice.pick("methods", ANY_SUBSET)
    runs = {method: by_seed(grid.for_any_subset(method, 0), choice.seeds) for method in methods}
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
        table.rows.append([subset, THRESHOLD, *found, "", "", ""])
    gains = _add_means(table, tests, results, runs, subsets)
    found = threshold_row(results, runs.values(), subsets=subsets) or without
    table.rows.append([_MEAN, THRESHOLD, *found, "", "", ""])
    tests.finish()
    pairs = [(_OURS, other) for other in ("unaligned", "dynunet") if _OURS in methods and other in methods]
    table.notes += _add_differences(table, results, {name: _over(runs[name], subsets) for name in methods}, pairs)
    table.notes += [
        *common_notes(choice),
        *enhancing_note(results, [run for seeds in runs.values() for run in seeds], gains),
        "mean of 15: over the subsets in each case, then over cases. All networks keep all sequences in the same share "
        "of rows while training; the others draw a subset alike. unaligned: anysubset without its loss of alignment.",
    ]
    return table


def _add_means(
    table: Table, tests: Tests, results: Results, runs: Mapping[str, list[Run]], subsets: Sequence[str]
) -> dict[str, dict[str, float]]:
    """A row for the mean of each network over the subsets; gives what it gains over the first, and the threshold."""
    every = {method: _over(seeds, subsets) for method, seeds in runs.items()}
    first, *_ = every
    simple = next(filter(None, (results.mean_over(e, AVERAGE, model=BASELINE) for e in every.values())), {})
    gains: dict[str, dict[str, float]] = {}
    against: dict[str, dict[str, float]] = {}
    for method, several in every.items():
        table.rows.append([_MEAN, method, *mean_cells(results, several), "", "", ""])
        average = results.mean_over(several, AVERAGE)
        compared = compare_values(average, simple)
        table.rows[-1][-1] = "" if compared is None else compared.difference.text(2, signed=True)
        against[f"{method} minus threshold"] = minus(average, simple)
        if method != first:
            tests.add(results.compare_over(several, every[first], AVERAGE))
            gains[f"{method} minus {first}"] = results.differences_over(several, every[first], AVERAGE)
    return gains | against


def _over(seeds: Sequence[Run], subsets: Sequence[str]) -> list[Cell]:
    """A network asked about several subsets."""
    return [(seeds, subset) for subset in subsets]


def _add_differences(
    table: Table, results: Results, every: Mapping[str, Sequence[Cell]], pairs: Sequence[tuple[str, str]]
) -> list[str]:
    """A row for each pair of networks, region by region, and what their p are; nothing of what was not run."""
    found: dict[tuple[str, str, str], float] = {}
    differences, across = list[Interval](), False
    for one, other in pairs:
        compared = {column: results.compare_over(every[one], every[other], column) for column in COLUMNS}
        there = {column: value for column, value in compared.items() if value is not None}
        if len(there) < len(COLUMNS):
            continue
        table.rows.append([_MEAN, f"{one} minus {other}", *map(compared_text, there.values()), "", "", "", ""])
        found |= {(one, other, region): there[region].p for region in _REGIONS}
        differences += [there[region].difference for region in _REGIONS]
        across = across or there[AVERAGE].across
    if not found:
        return []
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    least = attainable(differences).p
    said = "; ".join(
        f"{one} minus {other} " + ", ".join(f"{region} {p_text(adjusted[one, other, region])}" for region in _REGIONS)
        for one, other in dict.fromkeys((one, other) for one, other, _ in found)
    )
    notes = [f"p of the differences in the last rows (Wilcoxon, Holm over {len(found)}; at least {least:.2g}): {said}."]
    return notes + ([ACROSS_NOTE] if across else [])


def _subset_name(alias: str) -> str:
    if alias == "all":
        return ALL
    found = [sequence_from_alias("flair" if part == "fl" else part) for part in alias.split("+")]
    return format_subset(make_subset(sequence for sequence in found if sequence is not None))
