"""Means with intervals over cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A mean over cases and its bootstrap interval.

    Attributes:
        mean: Of the finite values.
        low: Lower end, 95 %.
        high: Upper end, 95 %.
        n: Number of cases.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: Mapping[str, float], *, draws: int = 4000, seed: int = 0) -> Interval:
    """Mean and 95 % percentile interval, cases drawn with replacement; values that are not finite are left out.

    With few cases the interval is too narrow (9 cases: about 90 % true coverage), and a single case has none.
    """
    # By name, so that the order in which cases were scored does not move the interval.
    finite = np.array([values[case] for case in sorted(values) if np.isfinite(values[case])], dtype=np.float64)
    if len(finite) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    means = _resampled(finite, draws, seed)
    low, high = np.percentile(means, [2.5, 97.5]).tolist() if len(finite) > 1 else (float("nan"), float("nan"))
    return Interval(float(finite.mean()), low, high, len(finite))


def paired_difference(first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0) -> Interval:
    """Mean of first minus second over the cases both have, with its bootstrap interval over cases."""
    return bootstrap_mean({case: first[case] - second[case] for case in sorted(first) if case in second}, seed=seed)


def _resampled(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    means: NDArray[np.float64] = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    return means
