"""What the finished runs of a study measured: values per case, averaged over seeds, with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from mindgap.evaluation.scores import Score, read_scores, values_of
from mindgap.evaluation.statistics import Interval, bootstrap_mean, paired_difference, seed_average, wilcoxon
from mindgap.evaluation.summary import mean_dice_of_cases
from mindgap.files import read_json
from mindgap.runfiles import EVALUATION, MANIFEST, SCORES, VALIDATIONS, read_lines
from mindgap.sequences import SEQUENCES, format_subset
from mindgap.study.grid import Run
from mindgap.study.keep import ORDERS

_PARTS = {"train": "train", "validation": "validate", "test": "test"}
_WEIGHT = "anchor_weight/"
AVERAGE = "Avg"
COLUMNS = ("WT", "TC", "ET", "ETpp", AVERAGE)
"""Regions, ET without small predictions, and the mean of the first three in each case."""
ALL = format_subset(SEQUENCES)
Cell = tuple[Sequence[Run], str | None]
"""Runs that differ by their seed, and the subset they are asked about; None is their own."""


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


@dataclass(frozen=True)
class Compared:
    """Two cells against each other.

    Attributes:
        difference: Mean over cases with its interval, in percent.
        sides: Case -> Dice of both.
        fewer: Whether one of the cells has seeds that the other lacks, which the difference leaves out.
        across: Whether the trainings of the two were of different precision or vector width, which alone changes the
            course of a training.
    """

    difference: Interval
    sides: tuple[Mapping[str, float], Mapping[str, float]]
    fewer: bool = False
    across: bool = False

    @cached_property
    def p(self) -> float:
        """Of Wilcoxon's test across cases, not adjusted; reckoned when asked for, since with ties it takes a while."""
        return wilcoxon(*self.sides)


class Results:
    """Scores of a study's runs, read when asked for.

    Args:
        folders: Where the runs lie; the first that has the scores of a run counts.
        scores: Name of the file of scores of a run.
    """

    def __init__(self, *folders: Path, scores: str = SCORES) -> None:
        self.folders, self.scores = folders, scores
        self._read = cache(self._read_scores)

    def has(self, run: Run) -> bool:
        """Whether a run was scored."""
        return self.path(run, self.scores) is not None

    def path(self, run: Run, name: str) -> Path | None:
        """A file of a run, if it is there."""
        paths = (folder / run.name / name for folder in self.folders)
        return next((path for path in paths if path.is_file()), None)

    def anchor_weights(self, run: Run) -> dict[str, float]:
        """Sequence -> weight of its distribution in P_*, in the kept network; empty where it was not logged."""
        path, manifest = self.path(run, VALIDATIONS), self.path(run, MANIFEST)
        if path is None or manifest is None:
            return {}
        best = read_json(manifest)["best"]["step"]
        line = next((line for line in read_lines(path) if line["step"] == best), {})
        return {key.removeprefix(_WEIGHT): value for key, value in line.items() if key.startswith(_WEIGHT)}

    def cases(
        self, seeds: Sequence[Run], column: str, *, subset: str | None = None, model: str = ""
    ) -> dict[str, float]:
        """Case -> Dice, averaged over the runs of a cell that differ by their seed; empty if none was run.

        Args:
            seeds: The runs; those that are missing are left out.
            column: WT, TC, ET, ETpp or Avg.
            subset: Of an any-subset network; the run's own by default.
            model: Another row of the same file, such as the threshold.
        """
        return seed_average([self._values(run, column, subset, model) for run in seeds if self.has(run)])

    def cases_with(self, run: Run, region: str) -> set[str]:
        """The cases of a run whose reference has some of a region: elsewhere an empty mask has Dice 1, any other 0."""
        scores = self._read(run) if self.has(run) else []
        return {score.case for score in scores if score.region == region and score.reference_ml > 0}

    def measure(
        self, seeds: Sequence[Run], column: str, *, subset: str | None = None, model: str = ""
    ) -> Measured | None:
        """A cell, in percent; None if no run is there."""
        return self.measure_over([(seeds, subset)], column, model=model)

    def measure_over(self, cells: Sequence[Cell], column: str, *, model: str = "") -> Measured | None:
        """The mean of several cells, in percent, by the seeds that all of them have; None if there is no such seed."""
        values = self.mean_over(cells, column, model=model)
        if not values:
            return None
        seeds = self.seeds_of(cells)
        means = [np.nanmean(list(self.mean_over(cells, column, model=model, seeds=[n]).values())) for n in seeds]
        spread = 100 * float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
        return Measured(_percent(bootstrap_mean(values)), spread, len(seeds))

    def compare(self, first: Sequence[Run], second: Sequence[Run], column: str) -> Compared | None:
        """First minus second over cases, by the seeds that both have; None if there is no such pair."""
        return self.compare_over([(first, None)], [(second, None)], column)

    def compare_over(self, first: Sequence[Cell], second: Sequence[Cell], column: str) -> Compared | None:
        """The mean of some cells minus that of others, by the seeds that all have; None if there is no such seed."""
        found = compare_values(*self._paired(first, second, column))
        fewer = self.seeds_of(first) != self.seeds_of(second)
        return None if found is None else replace(found, fewer=fewer, across=self.across(first, second))

    def across(self, first: Sequence[Cell], second: Sequence[Cell]) -> bool:
        """Whether two sides were trained with different precision or vector width, by the seeds that all have."""
        return any(
            {self._arithmetic(runs[n]) for runs, _ in first} != {self._arithmetic(runs[n]) for runs, _ in second}
            for n in self.seeds_of([*first, *second])
        )

    def differences(self, first: Sequence[Run], second: Sequence[Run], column: str) -> dict[str, float]:
        """Case -> first minus second, by the seeds that both have."""
        return self.differences_over([(first, None)], [(second, None)], column)

    def differences_over(self, first: Sequence[Cell], second: Sequence[Cell], column: str) -> dict[str, float]:
        """Case -> mean of some cells minus that of others, by the seeds that all have."""
        one, other = self._paired(first, second, column)
        return {case: one[case] - other[case] for case in one if case in other}

    def _paired(
        self, first: Sequence[Cell], second: Sequence[Cell], column: str
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Case -> mean Dice of both, averaged over the seeds that all cells of both have."""
        seeds = self.seeds_of([*first, *second])
        return self.mean_over(first, column, seeds=seeds), self.mean_over(second, column, seeds=seeds)

    def seeds_of(self, cells: Sequence[Cell]) -> list[int]:
        """The places of the seeds that all of some cells have."""
        counts = [len(runs) for runs, _ in cells]
        return [n for n in range(min(counts, default=0)) if all(self.has(runs[n]) for runs, _ in cells)]

    def mean_over(
        self, cells: Sequence[Cell], column: str, *, model: str = "", seeds: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Case -> mean over several cells; empty unless all were run.

        Args:
            cells: Each of some seeds and a subset.
            column: WT, TC, ET, ETpp or Avg.
            model: Another row of the same file, such as the threshold.
            seeds: Places of the seeds that count; those that all cells have by default.
        """
        chosen = self.seeds_of(cells) if seeds is None else seeds
        found = [self.cases([runs[n] for n in chosen], column, subset=subset, model=model) for runs, subset in cells]
        shared = set.intersection(*(set(values) for values in found)) if found else set()
        return {case: float(np.mean([values[case] for values in found])) for case in sorted(shared)}

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
        made = all(case.startswith("Phantom_") for part in _PARTS for case in counts[part])
        cohort = "phantoms (synthetic patients)" if made else f"real cases, split {manifests[0]['split']['name']}"
        cases = ", ".join(f"{len(counts[part])} to {verb}" for part, verb in _PARTS.items())
        hours = sum(m.get("seconds", m["seconds_of_last_call"]) for m in manifests) / 3600
        machines = sorted({f"{m['processor']['kind']}, {m['precision']}" for m in manifests})
        counted = " or ".join(f"{count:,}" for count in steps)
        return (
            f"Ours: {len(there)} runs of {counted} steps on {cohort}; cases: {cases}; "
            f"{hours:.1f} h of training on: {'; '.join(machines)}.{self._scored_by(there)}"
        )

    def _arithmetic(self, run: Run) -> tuple[str, str]:
        """Precision, and the vector unit of the processor or the kind of GPU; empty where it is unknown."""
        path = self.path(run, MANIFEST)
        manifest = read_json(path) if path is not None else {}
        processor = manifest.get("processor", {})
        unit = processor.get("vector") if processor.get("device") == "cpu" else processor.get("kind")
        return str(manifest.get("precision", "")), str(unit or "")

    def _scored_by(self, runs: Sequence[Run]) -> str:
        """The rules of the scores, in a sentence."""
        rules = [read_json(path) for run in runs if (path := self.path(run, EVALUATION)) is not None]
        if not rules:
            return ""
        said = set()
        for rule in rules:
            edges = " or ".join(" x ".join(f"{mm:g}" for mm in spacing) for spacing in rule["spacings_mm"])
            grid = f"in the cases' own grid ({edges} mm, probabilities resampled back linearly)"
            grid = grid if rule["grid"] == "native" else f"in the network's grid ({edges} mm)"
            said.add(f"{grid}, protocol {rule['protocol']}, {rule['coverage']}, Dice v{rule['columns']['dice']}")
        lacking = {case for rule in rules for case in rule.get("lacking", {})}
        less = f" {len(lacking)} test cases lack a sequence and count where it is not needed." if lacking else ""
        return f" Scored {'; '.join(sorted(said))}; where both masks are empty Dice is 1, where one is, 0.{less}"

    def _values(self, run: Run, column: str, subset: str | None, model: str) -> dict[str, float]:
        scores = self._read(run)
        asked = subset or (ALL if run.subset == "all" else run.subset)
        name = model or run.name
        if column == AVERAGE:
            return mean_dice_of_cases(scores, model=name, subset=asked)
        return values_of(scores, model=name, subset=asked, region=column)

    def _read_scores(self, run: Run) -> list[Score]:
        path = self.path(run, self.scores)
        assert path is not None
        return read_scores(path)


def compare_values(one: Mapping[str, float], other: Mapping[str, float]) -> Compared | None:
    """First minus second over the cases that both have; None without any."""
    if not set(one) & set(other):
        return None
    return Compared(_percent(paired_difference(one, other)), (one, other))


def by_seed(run: Run, seeds: int) -> list[Run]:
    """The runs that differ from one only by their seed."""
    stem = run.name.rsplit("-s", 1)[0]
    teacher = run.teacher.rsplit("-s", 1)[0] if run.teacher else None
    return [
        replace(run, name=f"{stem}-s{seed}", seed=seed, teacher=f"{teacher}-s{seed}" if teacher else None)
        for seed in range(seeds)
    ]


def _percent(interval: Interval) -> Interval:
    return replace(interval, mean=100 * interval.mean, low=100 * interval.low, high=100 * interval.high)
