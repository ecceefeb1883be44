"""Scores summed up: one row per model and subset, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindgap.evaluation.scores import Score, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.regions import REGIONS

BASELINE = "threshold"
"""Model name of the best single threshold, the row every table carries."""


@dataclass(frozen=True)
class SummaryRow:
    """One row of the table of results.

    Attributes:
        model: Who predicted.
        subset: Sequences used, such as "T1+FLAIR".
        n: Number of cases.
        dice: Region -> mean over cases with its 95 % interval.
        mean: Of the mean over WT, TC and ET within each case; cases that lack a region are left out.
        hd95_mm: Region -> mean over the cases where it is defined, NaN if there is none.
    """

    model: str
    subset: str
    n: int
    dice: Mapping[str, Interval]
    mean: Interval
    hd95_mm: Mapping[str, float]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the best single threshold and no network."""
        return self.model == BASELINE


def summarise(scores: Sequence[Score]) -> list[SummaryRow]:
    """Sum scores up, one row per model and subset.

    Rows come in the order of first appearance; the threshold row of a subset follows the last model of that
    subset, or stands at the end where no model used it.

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


def _order(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    ordered = [pair for pair in pairs if pair[0] != BASELINE]
    for baseline in (pair for pair in pairs if pair[0] == BASELINE):
        places = [place for place, pair in enumerate(ordered) if pair[1] == baseline[1]]
        ordered.insert(places[-1] + 1 if places else len(ordered), baseline)
    return ordered


def _summarise_one(scores: Sequence[Score], model: str, subset: str) -> SummaryRow:
    dice, hd95 = {}, {}
    for region in map(str, REGIONS):
        dice[region] = bootstrap_mean(values_of(scores, model=model, subset=subset, region=region))
        distances = np.array(
            list(values_of(scores, model=model, subset=subset, region=region, column="hd95_mm").values())
        )
        defined = distances[np.isfinite(distances)]
        hd95[region] = float(defined.mean()) if len(defined) else float("nan")
    return SummaryRow(
        model=model,
        subset=subset,
        n=len({score.case for score in scores if (score.model, score.subset) == (model, subset)}),
        dice=dice,
        mean=bootstrap_mean(mean_dice_of_cases(scores, model=model, subset=subset)),
        hd95_mm=hd95,
    )
