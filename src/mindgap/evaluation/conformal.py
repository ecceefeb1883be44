"""Intervals that hold for new cases whatever the network does: split conformal, with an exact test of coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOOR_ML = 1.0
"""Added to both volumes before their ratio is taken, so that 0.1 and 0.3 mL count as near."""


@dataclass(frozen=True)
class VolumeInterval:
    """Where the volume of the reference lies with a given probability.

    Attributes:
        low_ml: Lower end.
        high_ml: Upper end.
        level: Probability, over calibration and new cases alike.
        n: Number of calibration cases.
    """

    low_ml: float
    high_ml: float
    level: float
    n: int


def volume_residual(predicted_ml: float, reference_ml: float) -> float:
    r"""How far a volume was off, as a factor: $|\log\frac{r + f}{p + f}|$ with the floor f of 1 mL."""
    return abs(math.log((reference_ml + FLOOR_ML) / (predicted_ml + FLOOR_ML)))


def highest_level(n: int) -> float:
    """The highest level n calibration cases can give an interval: n/(n+1)."""
    return n / (n + 1)


def conformal_quantile(residuals: Sequence[float], level: float) -> float | None:
    r"""The $\lceil (n+1)\,\mathrm{level} \rceil$-th smallest of n residuals.

    A new residual, exchangeable with these, is at most this large with at least the probability ``level``.

    Args:
        residuals: One per calibration case; cases, not views of one case, since those are not exchangeable.
        level: 0 to 1, exclusive.

    Returns:
        None where n cases do not reach the level: it is not available, and a narrower interval would promise too much.

    Reference:
        Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-Free Predictive
        Inference for Regression, JASA 2018, section 2.2.
    """
    rank = math.ceil((len(residuals) + 1) * level - 1e-9)
    return float(np.sort(residuals)[rank - 1]) if 1 <= rank <= len(residuals) else None


def volume_interval(predicted_ml: float, residuals: Sequence[float], level: float) -> VolumeInterval | None:
    r"""The interval $[(p+f)e^{-q}-f,\ (p+f)e^{q}-f]$, from 0 on, q the conformal quantile of the residuals.

    Args:
        predicted_ml: Volume p of the mask.
        residuals: :func:`volume_residual` of the calibration cases, on the subset at hand.
        level: What is asked for.

    Returns:
        None where the level is not available.
    """
    quantile = conformal_quantile(residuals, level)
    if quantile is None:
        return None
    low = max(0.0, (predicted_ml + FLOOR_ML) * math.exp(-quantile) - FLOOR_ML)
    return VolumeInterval(low, (predicted_ml + FLOOR_ML) * math.exp(quantile) - FLOOR_ML, level, len(residuals))


def exact_binomial(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share from hits among n independent cases.

    Reference:
        Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial,
        Biometrika 1934; ``scipy.stats.binomtest``.
    """
    from scipy import stats

    interval = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)
