"""Intervals that hold for new cases whatever the network does: split conformal, with an exact test of coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOOR_ML = 1.0
"""Added to both volumes before their ratio is taken, so that 0.1 and 0.3 mL count as near."""


@dataclass(frozen=True)
class VolumeInterval:
    """Where the volume of the reference lies with a given probability.

    Attributes:
        low_ml: Lower end.
        high_ml: Upper end.
        level: Probability, over calibration and new cases alike.
        n: Number of calibration patients.
    """

    low_ml: float
    high_ml: float
    level: float
    n: int


def volume_residual(predicted_ml: float, reference_ml: float) -> float:
    r"""How far a volume was off, as the logarithm of a factor: $\log\frac{r + f}{p + f}$ with the floor f of 1 mL."""
    return math.log((reference_ml + FLOOR_ML) / (predicted_ml + FLOOR_ML))


def highest_level(n: int) -> float:
    """The highest level n calibration cases can give an interval: n/(n+1)."""
    return n / (n + 1)


def conformal_quantile(residuals: Sequence[float] | NDArray[np.float64], level: float) -> float | None:
    r"""The $\lceil (n+1)\,\mathrm{level} \rceil$-th smallest of n residuals.

    A new residual, exchangeable with these, is at most this large with at least the probability ``level``.

    Args:
        residuals: One per calibration patient; not of several views or scans of one, which are not exchangeable with a
            new patient's.
        level: 0 to 1, exclusive.

    Returns:
        None where n cases do not reach the level: it is not available, and a narrower interval would promise too much.

    Reference:
        Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-Free Predictive
        Inference for Regression, JASA 2018, section 2.2.
    """
    rank = math.ceil((len(residuals) + 1) * level - 1e-9)
    return float(np.sort(residuals)[rank - 1]) if 1 <= rank <= len(residuals) else None


def conformal_ends(residuals: Sequence[float] | NDArray[np.float64], level: float) -> tuple[float, float] | None:
    r"""Two values between which a new residual lies with at least the probability ``level``.

    With $\alpha = 1 - \mathrm{level}$: from the $\lfloor (n+1)\alpha/2 \rfloor$-th to the
    $\lceil (n+1)(1-\alpha/2) \rceil$-th smallest residual, so that a network which takes too much gets an interval that
    lies below its volume. Where n is too small for that, from -q to q, the :func:`conformal_quantile` of absolute
    residuals. Which of both depends on n alone.

    Args:
        residuals: Signed, one per calibration case.
        level: 0 to 1, exclusive.

    Returns:
        None where the level is not available.
    """
    n = len(residuals)
    lowest = math.floor((n + 1) * (1 - level) / 2 + 1e-9)
    if lowest >= 1:
        ordered = np.sort(residuals)
        return float(ordered[lowest - 1]), float(ordered[n - lowest])
    quantile = conformal_quantile([abs(value) for value in residuals], level)
    return None if quantile is None else (-quantile, quantile)


def volume_interval(
    predicted_ml: float, residuals: Sequence[float] | NDArray[np.float64], level: float
) -> VolumeInterval | None:
    r"""The interval $[(p+f)e^{a}-f,\ (p+f)e^{b}-f]$, from 0 on, a and b the conformal ends of the residuals.

    Args:
        predicted_ml: Volume p of the mask.
        residuals: :func:`volume_residual` of the calibration cases, on the subset at hand.
        level: What is asked for.

    Returns:
        None where the level is not available.
    """
    ends = conformal_ends(residuals, level)
    if ends is None:
        return None
    low_ml, high_ml = (max(0.0, (predicted_ml + FLOOR_ML) * math.exp(end) - FLOOR_ML) for end in ends)
    return VolumeInterval(low_ml, high_ml, level, len(residuals))


def exact_binomial(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share from hits among n independent cases.

    Reference:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial,
        Biometrika 1934; ``scipy.stats.binomtest``.
    """
    from scipy import stats

    interval = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)
