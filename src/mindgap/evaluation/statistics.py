"""Means with intervals over cases, and tests across cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindgap.data.patients import by_patient

LEVEL = 0.05
"""Below it a p value is called significant."""


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its bootstrap interval.

    Attributes:
        mean: Of the finite values.
        low: Lower end, 95 %.
        high: Upper end, 95 %.
        n: Number of cases.
        patients: Number of patients whose scans they are: what a test counts.
    """

    mean: float
    low: float
    high: float
    n: int
    patients: int

    @property
    def counted(self) -> str:
        """What a test counts, in words: cases, or patients where some have several scans."""
        return f"{self.n} cases" if self.patients == self.n else f"{self.patients} patients"

    def text(self, digits: int = 3, *, signed: bool = False, scale: float = 1.0) -> str:
        """Mean and ends, "0.612 [0.540, 0.671]": no brackets where one patient has no interval, a dash without a case.

        Args:
            digits: After the point.
            signed: Whether a plus is written, too.
            scale: What the numbers are multiplied by; 100 gives percent.
        """
        if not np.isfinite(self.mean):
            return "\u2013"
        mean, low, high = (
            f"{scale * value:{'+' if signed else ''}.{digits}f}" for value in (self.mean, self.low, self.high)
        )
        return f"{mean} [{low}, {high}]" if np.isfinite(self.low) else mean


def bootstrap_mean(values: Mapping[str, float], *, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean and 95 % percentile interval, cases drawn with replacement; values that are not finite are left out.

    Time points of one patient (:func:`mindgap.data.patients.patient_of`) are drawn together. With few patients the
    interval is too narrow (9: about 90 % true coverage), and a single one has none.
    """
    # By name, so that the order in which cases were scored does not move the interval.
    finite = {case: values[case] for case in sorted(values) if np.isfinite(values[case])}
    if not finite:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0)
    patients = [[finite[case] for case in cases] for cases in by_patient(finite)]
    means = _resampled(patients, draws, seed)
    low, high = np.percentile(means, [2.5, 97.5]).tolist() if len(patients) > 1 else (float("nan"), float("nan"))
    return Interval(float(np.mean(list(finite.values()))), low, high, len(finite), len(patients))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0) -> Interval:
    """Mean of first minus second over the cases both have, with its bootstrap interval over cases."""
    return bootstrap_mean({case: first[case] - second[case] for case in sorted(first) if case in second}, seed=seed)


def seed_average(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each case over training runs that differ by their seed; comes before any test across cases.

    Runs on the same cases are no independent cases: pooling them would make every interval too narrow.

    Args:
        runs: For each seed case -> value.

    Returns:
        Case -> mean, for the cases that every run has; NaN where one of them is NaN.
    """
    shared = [case for case in sorted(runs[0]) if all(case in run for run in runs)] if runs else []
    return {case: float(np.mean([run[case] for run in runs])) for case in shared}


def wilcoxon(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Two-sided Wilcoxon signed-rank test of first against second over the cases both have, zeros by Pratt.

    Time points of one patient are averaged first. Differences of 0 take part in the ranking and are then left out of
    the sums, so that cases on which two networks
    agree speak for no difference.

    Args:
        first: Case -> value.
        second: Case -> value.

    Returns:
        The p value: 1 where all differences are 0, NaN without a case. Exact for few cases (scipy: up to 50, up to 13
        with zeros or ties), a normal approximation beyond.

    Reference:
        Pratt, Remarks on Zeros and Ties in the Wilcoxon Signed Rank Procedures, JASA 1959; ``scipy.stats.wilcoxon``.
    """
    every = {case: first[case] - second[case] for case in first if case in second}
    finite = {case: value for case, value in every.items() if np.isfinite(value)}
    differences = np.array([np.mean([finite[case] for case in cases]) for cases in by_patient(finite)])
    if len(differences) == 0:
        return float("nan")
    if not differences.any():
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Adjusted p values of a family by Holm: below the level, at most that share of families has a false finding.

    With the m values in rising order $\tilde p_{(i)} = \max_{j\le i} \min(1, (m-j+1)\,p_{(j)})$.

    Args:
        p_values: Of every test of the family; NaN (a test without cases) is not one of them and stays NaN.

    Returns:
        In the order they came.

    Reference:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    """
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    order = sorted((n for n, p in enumerate(p_values) if np.isfinite(p)), key=lambda n: p_values[n])
    for rank, n in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[n]))
        adjusted[n] = largest
    return adjusted


def smallest_attainable_p(patients: int, family: int = 1) -> float:
    r"""The smallest adjusted p that :func:`wilcoxon` and :func:`holm` can give: $\min(1, m\,2^{1-n})$.

    Stands beside a table of p values: where it is above the level, no difference however large is significant.

    Args:
        patients: Number n of patients; of several scans of one the tests see the mean.
        family: Number m of tests.
    """
    return min(1.0, family * 2.0 ** (1 - patients)) if patients > 0 else 1.0


@dataclass(frozen=True)
class Attainable:
    """What the tests of a family can reach at all.

    Attributes:
        p: The smallest adjusted p value of any of them.
        counted: What the test counts that can reach it: "20 cases".
    """

    p: float
    counted: str

    @property
    def verdict(self) -> str:
        """Said where no test of the family can come out significant; empty elsewhere."""
        return ": no difference, however large, can be significant here" if self.p > LEVEL else ""


def attainable(differences: Sequence[Interval]) -> Attainable:
    """The smallest adjusted p value that any test of a family can give: that of the one with the most patients."""
    most = max(differences, key=lambda difference: difference.patients)
    return Attainable(smallest_attainable_p(most.patients, len(differences)), most.counted)


def _resampled(patients: Sequence[Sequence[float]], draws: int, seed: int) -> NDArray[np.float64]:
    sums, counts = (np.array([f(values) for values in patients], dtype=np.float64) for f in (sum, len))
    drawn = np.random.default_rng(seed).integers(0, len(patients), (draws, len(patients)))
    means: NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means
