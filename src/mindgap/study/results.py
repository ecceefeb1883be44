"""What the finished runs of a study measured: values per case, averaged over seeds, with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from mindgap.evaluation.scores import Score, read_scores, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean, paired_difference, seed_average, wilcoxon
from mindgap.evaluation.summary import mean_dice_of_cases
from mindgap.files import read_json
from mindgap.runfiles import MANIFEST, SCORES
from mindgap.sequences import SEQUENCES, format_subset
from mindgap.study.grid import Run
from mindgap.study.keep import ORDERS

_PARTS = {"train": "train", "validation": "validate", "test": "test"}
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
        folders: Where the runs lie; the first that has the scores of a run counts.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._read = cache(self._read_scores)

    def has(self, run: Run) -> bool:
        """Whether a run was scored."""
        return self.path(run, SCORES) is not None

    def path(self, run: Run, name: str) -> Path | None:
        """A file of a run, if it is there."""
        paths = (folder / run.name / name for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

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

    def provenance(self, runs: Iterable[Run]) -> str:
        """Steps, cases, hours and machines of the runs that are there, in one line; empty without any.

        Args:
            runs: Of a table.
        """
        there = [run for run in runs if self.has(run)]
        manifests = [read_json(path) for run in there if (path := self.path(run, MANIFEST)) is not None]
        orders = [read_json(path)["flags"] for run in there if (path := self.path(run, ORDERS)) is not None]
        if not manifests or not orders:
            return ""
        steps = sorted({int(flags[flags.index("--steps") + 1]) for flags in orders})
        counts = manifests[0]["cases"]
        cases = ", ".join(f"{len(counts[part])} to {verb}" for part, verb in _PARTS.items())
        hours = sum(manifest["seconds_of_last_call"] for manifest in manifests) / 3600
        machines = sorted({f"{m['processor']['kind']}, {m['precision']}" for m in manifests})
        return (
            f"{len(there)} runs of {' or '.join(f'{count:,}' for count in steps)} steps; cases: {cases}; "
            f"{hours:.1f} h of training on: {'; '.join(machines)}."
        )

    def _values(self, run: Run, column: str, subset: str | None, model: str) -> dict[str, float]:
        scores = self._read(run)
        asked = subset or (ALL if run.subset == "all" else run.subset)
        name = model or run.name
        if column == AVERAGE:
            return mean_dice_of_cases(scores, model=name, subset=asked)
        return values_of(scores, model=name, subset=asked, region=column)

    def _read_scores(self, run: Run) -> list[Score]:
        path = self.path(run, SCORES)
        assert path is not None
        return read_scores(path)


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
