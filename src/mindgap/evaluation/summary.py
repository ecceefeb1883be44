"""Scores summed up: one row per model and subset, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindgap.evaluation.scores import COLUMNS, OPTIONAL_COLUMNS, TABLE_REGIONS, WORDS, Score, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.regions import REGIONS
from mindgap.sequences import SUBSETS, format_subset

BASELINE = "threshold"
"""Model name of the best single threshold, the row every table carries."""
ALL_SUBSETS = "mean of 15"
"""Subset name of a row that averages the fifteen."""


def best_median_worst(means: Mapping[str, float]) -> dict[str, str]:
    """The cases worth a picture: "best of 9" -> case, with the median and the worst; no case stands there twice.

    Args:
        means: Case -> its mean Dice.
    """
    ranked = sorted(means, key=lambda case: (-means[case], case))
    count = len(ranked)
    places = {"best": 0} if count else {}
    places |= {"median": count // 2} if count > 2 else {}
    places |= {"worst": count - 1} if count > 1 else {}
    return {f"{name} of {count}": ranked[place] for name, place in places.items()}


@dataclass(frozen=True)
class SummaryRow:
    """One row of the table of results.

    Attributes:
        model: Who predicted.
        subset: Sequences used, such as "T1+FLAIR".
        n: Number of cases.
        dice: WT, TC, ET or ETpp -> mean over cases with its 95 % interval.
        mean: Of the mean over WT, TC and ET within each case; cases that lack a region are left out.
        means: Every other column that has values -> region -> mean over the cases where it is defined, else NaN.
    """

    model: str
    subset: str
    n: int
    dice: Mapping[str, Interval]
    mean: Interval
    means: Mapping[str, Mapping[str, float]]

    @property
    def hd95_mm(self) -> Mapping[str, float]:
        """Region -> mean HD95, NaN where it is never defined."""
        return self.means.get("hd95_mm", dict.fromkeys(TABLE_REGIONS, float("nan")))

    @property
    def is_baseline(self) -> bool:
        """Whether this is the best single threshold and no network."""
        return self.model == BASELINE


def summarise(scores: Sequence[Score]) -> list[SummaryRow]:
    """Sum scores up, one row per model and subset.

    Rows of one subset stand together, so that who saw the same can be compared, subsets and models in the order of
    first appearance; the threshold row of a subset follows its models, or stands at the end where no model used it.

    Args:
        scores: Rows of scores.csv.
    """
    pairs = list(dict.fromkeys((score.model, score.subset) for score in scores))
    return [_summarise_one(scores, model, subset) for model, subset in _order(pairs)]


def mean_dice_of_cases(scores: Sequence[Score], *, model: str, subset: str) -> dict[str, float]:
    """Case -> mean Dice over WT, TC and ET, for the cases that have all three."""
    columns = [values_of(scores, model=model, subset=subset, region=str(region)) for region in REGIONS]
    return {
        case: float(np.mean([column[case] for column in columns]))
        for case in columns[0]
        if all(case in column for column in columns)
    }


def average_subsets(scores: Sequence[Score]) -> list[Score]:
    """Scores averaged over the fifteen subsets within each case, for the models and cases that have them all.

    Peers print this average. Averaging before the cases are compared keeps the cases independent.

    Args:
        scores: Rows of scores.csv.

    Returns:
        Rows whose subset is :data:`ALL_SUBSETS`; a distance is averaged over the subsets where it is defined.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.model, score.case, score.region), []).append(score)
    wanted = {format_subset(subset) for subset in SUBSETS}
    averaged = []
    for (model, case, region), rows in groups.items():
        if {row.subset for row in rows} == wanted:
            values = {column: _mean([getattr(row, column) for row in rows]) for column in COLUMNS[len(WORDS) :]}
            averaged.append(Score(model, case, ALL_SUBSETS, region, **values))
    return averaged


def _order(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """By subset; a subset without a model, only its threshold, at the end."""
    shown = dict.fromkeys(subset for model, subset in pairs if model != BASELINE)
    subsets = list(dict.fromkeys([*shown, *(subset for _, subset in pairs)]))
    return sorted(pairs, key=lambda pair: (subsets.index(pair[1]), pair[0] == BASELINE))


def _summarise_one(scores: Sequence[Score], model: str, subset: str) -> SummaryRow:
    mine = [score for score in scores if (score.model, score.subset) == (model, subset)]

    def mean(region: str, column: str) -> float:
        return _mean([getattr(score, column) for score in mine if score.region == region])

    means = {column: {r: mean(r, column) for r in TABLE_REGIONS} for column in ("hd95_mm", *OPTIONAL_COLUMNS)}
    return SummaryRow(
        model=model,
        subset=subset,
        n=len({score.case for score in mine}),
        dice={r: bootstrap_mean(values_of(mine, model=model, subset=subset, region=r)) for r in TABLE_REGIONS},
        mean=bootstrap_mean(mean_dice_of_cases(mine, model=model, subset=subset)),
        means={column: row for column, row in means.items() if np.isfinite(list(row.values())).any()},
    )


def _mean(values: Sequence[float]) -> float:
    """Of the finite values; NaN without any."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
