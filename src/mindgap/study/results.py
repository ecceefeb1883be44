"""What the finished runs of a study measured: values per case, averaged over seeds, with intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mindgap.evaluation.scores import Score, read_scores, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean, paired_difference, seed_average, wilcoxon
from mindgap.evaluation.summary import mean_dice_of_cases
from mindgap.runfiles import SCORES
from mindgap.sequences import SEQUENCES, format_subset
from mindgap.study.grid import Run

AVERAGE = "Avg"
COLUMNS = ("WT", "TC", "ET", AVERAGE)
"""Regions, and the mean of the three in each case."""
ALL = format_subset(SEQUENCES)


@dataclass(frozen=True)
class Measured:
    """One cell of a table.

    Attributes:
        interval: Mean over cases (seeds averaged first) with its 95 % bootstrap interval over cases, in percent.
        spread: Standard deviation of the mean between seeds; NaN with one.
        seeds: How many.
    """

    interval: Interval
    spread: float
    seeds: int


class Results:
    """Scores of a study's runs, read when asked for.

    Args:
        runs_folder: Where the runs lie.
    """

    def __init__(self, runs_folder: Path) -> None:
        self.folder = runs_folder
        self._read = cache(self._read_scores)

    def has(self, run: Run) -> bool:
        """Whether a run was scored."""
        return (self.folder / run.name / SCORES).is_file()

    def cases(
        self, seeds: Sequence[Run], column: str, *, subset: str | None = None, model: str = ""
    ) -> dict[str, float]:
        """Case -> Dice, averaged over the runs of a cell that differ by their seed; empty if one was not run.

        Args:
            seeds: The runs.
            column: WT, TC, ET or Avg.
            subset: Of an any-subset network; the run's own by default.
            model: Another row of the same file, such as the threshold.
        """
        if not seeds or not all(self.has(run) for run in seeds):
            return {}
        return seed_average([self._values(run, column, subset, model) for run in seeds])

    def measure(
        self, seeds: Sequence[Run], column: str, *, subset: str | None = None, model: str = ""
    ) -> Measured | None:
        """A cell, in percent; None if a run is missing."""
        values = self.cases(seeds, column, subset=subset, model=model)
        if not values:
            return None
        means = [np.nanmean(list(self._values(run, column, subset, model).values())) for run in seeds]
        spread = 100 * float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
        return Measured(_percent(bootstrap_mean(values)), spread, len(seeds))

    def compare(self, first: Sequence[Run], second: Sequence[Run], column: str) -> tuple[Interval, float] | None:
        """First minus second over cases, in percent, and the p of Wilcoxon's test; None if a run is missing."""
        one, other = self.cases(first, column), self.cases(second, column)
        if not one or not other:
            return None
        return _percent(paired_difference(one, other)), wilcoxon(one, other)

    def _values(self, run: Run, column: str, subset: str | None, model: str) -> dict[str, float]:
        scores = self._read(run.name)
        asked = subset or (ALL if run.subset == "all" else run.subset)
        name = model or run.name
        if column == AVERAGE:
            return mean_dice_of_cases(scores, model=name, subset=asked)
        return values_of(scores, model=name, subset=asked, region=column)

    def _read_scores(self, name: str) -> list[Score]:
        return read_scores(self.folder / name / SCORES)


def by_seed(run: Run, seeds: int) -> list[Run]:
    """The runs that differ from one only by their seed."""
    stem = run.name.rsplit("-s", 1)[0]
    teacher = run.teacher.rsplit("-s", 1)[0] if run.teacher else None
    return [
        replace(run, name=f"{stem}-s{seed}", seed=seed, teacher=f"{teacher}-s{seed}" if teacher else None)
        for seed in range(seeds)
    ]


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.n)
