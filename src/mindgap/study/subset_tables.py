"""Tables over many subsets: PMKL on every one of them (Table III), and one network for all fifteen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mindgap.evaluation.statistics import Interval, attainable, holm
from mindgap.evaluation.summary import BASELINE
from mindgap.sequences import SUBSETS, format_subset, parse_subset
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
_PRINTED_MEAN = "mean of 15 printed / recomputed"
_GAIN = "P_* minus without alignment"
_OURS = "anysubset"
_QUOTED = "PMKL as printed"
"""The row of Table III that mixes the paper's two comparators."""


def table3(results: Results, choice: Choice) -> Table:
    """Table III: PMKL with and without P_* on every subset, region by region."""
    order = [_subset_name(name) for name in paper()["table3_subset_order"]]
    none, aligned = (
        [
            by_seed(grid.teacher(anchor, 0) if name == ALL else grid.student("pmkl", anchor, name, 0)[-1], choice.seeds)
            for name in order
        ]
        for anchor in ("none", "mixture")
    )
    pairs = [
        (one, other)
        for one, other in zip(aligned, none, strict=True)
        if one[0].method != "teacher" and results.differences(one, other, AVERAGE)
    ]
    gained, plain = ([(pair[side], None) for pair in pairs] for side in (0, 1))
    last = (f"gain, mean of {len(pairs)}", "p (Holm)")
    header = ["region", "anchor", "source", *order, "mean of 14", "between seeds", _PRINTED_MEAN, *last]
    table = Table("table3", "Table III: PMKL on every subset (Dice, %)", header)
    tests = Tests(table, *last)
    gains: dict[str, dict[str, float]] = {}
    for region in COLUMNS:
        _add_subsets(table, results, region, none, "none", choice.seeds)
        _add_subsets(table, results, region, aligned, "mixture", choice.seeds)
        each = [results.compare(one, other, region) for one, other in zip(aligned, none, strict=True)]
        texts = [NOT_RUN if compared is None else compared_text(compared) for compared in each]
        gain = results.compare_over(gained, plain, region) if pairs else None
        table.rows.append([region, _GAIN, "ours", *texts, "", "", "", "" if gain is None else compared_text(gain), ""])
        if region in _REGIONS:  # ETpp and the mean are these again
            tests.add(gain)
        name = f"{region} {_GAIN}, mean of {len(pairs)}"
        gains[name] = results.differences_over(gained, plain, region) if pairs else {}
        table.rows.append([region, "", THRESHOLD, *_thresholds(results, region, none, aligned), "", "", "", "", ""])
    tests.finish()
    table.notes += [
        *common_notes(choice),
        *enhancing_note(results, [run for seeds in aligned for run in seeds], gains),
        "mean of 14: over the subsets in each case, then over cases; gain: of the students that were run with both "
        "anchors. The last subset of the paper is its teacher; its printed averages are over all fifteen.",
        f"{_QUOTED}: single sequences are the originals that Table I quotes from other papers, so that its distance to "
        "P_* is not what alignment gains; only the last subset is the teacher without alignment.",
    ]
    return table


def _add_subsets(
    table: Table, results: Results, region: str, runs: Sequence[Sequence[Run]], anchor: str, seeds: int
) -> None:
    """The paper's row of a region and an anchor, where it has one, and ours."""
    if region in _REGIONS:
        quoted, key = paper()["table3"][region], "PMKL" if anchor == "none" else "PMKL_Pstar"
        numbers, mean = quoted[key], quoted[f"{key}_printed_avg"]
        last = [f"{sum(numbers[:14]) / 14:.2f}", "", f"{mean:.2f} / {sum(numbers) / len(numbers):.2f}", "", ""]
        printed_as = _QUOTED if anchor == "none" else ANCHOR_NAMES[anchor]
        table.rows.append([region, printed_as, "paper", *map(number, numbers), *last])
    found = [counted_cell(results.measure(one, region), seeds) for one in runs]
    whole = results.measure_over([(one, None) for one in runs[:14]], region)
    spread = between_seeds(whole, seeds)
    table.rows.append([region, ANCHOR_NAMES[anchor], "ours", *found, cell(whole), spread, "", "", ""])


def _thresholds(results: Results, region: str, *runs: Sequence[Sequence[Run]]) -> list[str]:
    """The best single threshold on each subset, from the first network that was scored beside it."""
    found = ([results.measure(seeds, region, model=BASELINE) for seeds in one] for one in zip(*runs, strict=True))
    return [cell(next(filter(None, several), None)) for several in found]


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


def _subset_name(printed: str) -> str:
    """A subset of the paper's Table III, where FLAIR is also "fl"."""
    return format_subset(parse_subset("+".join("flair" if part == "fl" else part for part in printed.split("+"))))
