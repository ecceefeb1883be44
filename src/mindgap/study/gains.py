"""What an anchor, another k or another network gains over what it is compared with, in sentences below a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.study import grid
from mindgap.study.grid import ANCHORS, SINGLES, STUDENTS, Choice, Run
from mindgap.study.results import AVERAGE, Results, by_seed
from mindgap.study.tables import ACROSS, ANCHOR_NAMES, METHOD_NAMES, quoted_rows

PAPER_KEYS = {"none": "W", "normal": "N", "k": "k", "mixture": "*"}
"""Anchors as the paper's tables name them."""


def students_of(method: str, anchor: str, sequence: str, choice: Choice) -> list[Run]:
    """A cell of Table I: the runs that differ by their seed."""
    return by_seed(grid.student(method, anchor, sequence, 0)[-1], choice.seeds)


def gains_over_cells(results: Results, choice: Choice) -> list[str]:
    """What each anchor gains over all cells that were run, ours and the paper's."""
    notes = []
    for anchor in (a for a in choice.pick("anchors", ANCHORS) if a != "none"):
        ours: list[dict[str, float]] = []
        alike: list[dict[str, float]] = []
        enhancing: set[str] = set()
        theirs: list[float] = []
        over_quoted: list[float] = []
        for sequence in choice.pick("subsets", SINGLES):
            for method in choice.pick("methods", STUDENTS):
                numbers = quoted_rows("table1", sequence).get(METHOD_NAMES.get(method, method))
                runs, without = (students_of(method, a, sequence, choice) for a in (anchor, "none"))
                found = results.differences(runs, without, AVERAGE)
                if not found or numbers is None:
                    continue
                ours.append(found)
                alike += [] if results.across([(runs, None)], [(without, None)]) else [found]
                enhancing |= {case for run in runs for case in results.cases_with(run, "ET")}
                aligned, plain, quoted = (sum(numbers[key][:3]) / 3 for key in (PAPER_KEYS[anchor], "W", "O"))
                theirs.append(aligned - plain)
                over_quoted.append(aligned - quoted)
        if ours:
            up = sum(value > 0 for value in theirs)
            paper_gain, over = (sum(values) / len(values) for values in (theirs, over_quoted))
            notes.append(
                f"{ANCHOR_NAMES[anchor]} minus without alignment over the {_cells(len(ours))} run: ours "
                f"{_gain_of(ours)}; the paper, recomputed, {paper_gain:+.2f} ({up} up), and {over:+.2f} over the "
                "quoted originals."
            )
            some = _only(ours, enhancing)
            if some:
                notes.append(f"The same over {_those_that_enhance(some[0])}: {_gain_of(some)}.")
            if len(alike) < len(ours):
                notes.append(_without_other_arithmetic(ANCHOR_NAMES[anchor], len(ours), alike, enhancing))
    return notes


def harm_of_another_k(ours: Sequence[Mapping[str, float]], theirs: Sequence[float]) -> list[str]:
    """T2 minus T1ce over all cells that were run, ours and the paper's."""
    if not ours:
        return []
    rows = [row for sequence in SINGLES for row in quoted_rows("table2", sequence)[1:]]
    printed_mean = sum(row[3] - row[4] for row in rows) / len(rows)
    recomputed = sum(sum(row[:3]) / 3 - row[4] for row in rows) / len(rows)
    same = f"{sum(theirs) / len(theirs):+.2f} over the same cells and " if 0 < len(theirs) < len(rows) else ""
    return [
        f"T2 minus T1ce over the {_cells(len(ours))} run: ours {_gain_of(ours)}; the paper, from its printed "
        f"averages, {same}{printed_mean:+.2f} over all {len(rows)} ({recomputed:+.2f} with those of T2 recomputed from "
        "cells)."
    ]


def enhancing_note(results: Results, runs: Sequence[Run], found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Differences again, without the cases in which a mask without enhancing tumour is rewarded.

    Args:
        results: Of the runs.
        runs: Whose cases tell which have enhancing tumour.
        found: What is compared -> case -> difference; what was not run is left out.
    """
    enhancing = {case for run in runs for case in results.cases_with(run, "ET")}
    there = {name: values for name, values in found.items() if values}
    some = _only(list(there.values()), enhancing)
    if not some:
        return []
    texts = (f"{name} {over_cells([few]).text(2, signed=True)}" for name, few in zip(there, some, strict=True))
    return [f"Over {_those_that_enhance(some[0])}: {'; '.join(texts)}."]


def _only(found: Sequence[Mapping[str, float]], cases: set[str]) -> list[dict[str, float]]:
    """Differences of some cases; empty if these are all of them, or none of one."""
    some = [{case: value for case, value in values.items() if case in cases} for values in found]
    fewer = any(len(few) < len(values) for few, values in zip(some, found, strict=True))
    return some if fewer and all(some) else []


def _without_other_arithmetic(anchor: str, count: int, alike: Sequence[Mapping[str, float]], cases: set[str]) -> str:
    """The gain of an anchor over the cells whose two sides were trained in the same arithmetic, in a sentence."""
    said = f"{count - len(alike)} of the {count} cells of {anchor} compare trainings in different arithmetic ({ACROSS})"
    if not alike:
        return f"{said}, so that none is a measure of {anchor} alone."
    some = _only(alike, cases)
    fewer = f", {_gain_of(some)} over those {len(some[0])} cases" if some else ""
    return f"{said}; the gain over the other {len(alike)}: {_gain_of(alike)}{fewer}."


def _cells(count: int) -> str:
    return "1 cell that was" if count == 1 else f"{count} cells that were"


def _gain_of(cells: Sequence[Mapping[str, float]]) -> str:
    """Mean gain over cells with its interval, and in how many of them there is one."""
    up = sum(sum(found.values()) > 0 for found in cells)
    return f"{over_cells(cells).text(2, signed=True)} ({up} up)"


def _those_that_enhance(values: Mapping[str, float]) -> str:
    return f"the {len(values)} cases that have enhancing tumour (in the others a network that draws none gets Dice 1)"


def minus(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Case -> difference, of the cases that both have."""
    return {case: one[case] - other[case] for case in one if case in other}


def over_cells(found: Sequence[Mapping[str, float]]) -> Interval:
    """Mean over cells in each case, then over cases, in percent: the cells share their cases."""
    return bootstrap_mean(case_means(found))


def case_means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Case -> mean over cells, in percent, of the cases that all have."""
    shared = set.intersection(*(set(values) for values in found)) if found else set()
    return {case: 100 * sum(values[case] for values in found) / len(found) for case in sorted(shared)}
