"""Probabilities that mean what they say: temperature, calibration error, and the Dice they lead to expect.

Pure functions of arrays; which voxels and cases they see is decided in ``inference.calibration``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindgap.data.patients import by_patient
from mindgap.regions import BACKGROUND_CLASS, CLASS_COUNT, ED_CLASS, ET_CLASS, NCR_CLASS

Array = NDArray[np.float64]

TEMPERATURES: Array = np.geomspace(0.25, 8.0, 81)
"""Where the likelihood is looked at: steps of 4.4 %, refined by a parabola."""
BINS = 15
FEWEST_CASES = 5
_LEAST = 1e-6  # a probability of 0 would make one voxel outweigh all others


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: Above 1 the network was too sure, below 1 too timid.
        low: Lower end of the 95 % bootstrap interval over cases.
        high: Upper end.
        n: Number of cases.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class DiceModel:
    r"""From what a mask shows to the Dice it reaches: $b_0 + b_1 d + b_2 \log(1 + V)$, cut off at 0 and 1.

    d is :func:`expected_dice` and V the volume of the mask in mL. A network that is sure of far too large a mask is
    betrayed by its volume, not by its probabilities.

    Attributes:
        offset: $b_0$.
        slopes: $b_1$ and $b_2$.
        low: Smallest d and log volume it was fitted to; it goes on level beyond, since a line says nothing there.
        high: Largest.
        n: Number of cases it was fitted to.
    """

    offset: float
    slopes: tuple[float, float]
    low: tuple[float, float]
    high: tuple[float, float]
    n: int

    def __call__(self, expected: float, volume_ml: float) -> float:
        """The calibrated Dice; NaN stays NaN."""
        if not np.isfinite(expected):
            return float("nan")
        features = np.clip((expected, np.log1p(volume_ml)), self.low, self.high)
        return float(np.clip(self.offset + np.dot(self.slopes, features), 0.0, 1.0))


def classes_of(probabilities: NDArray[np.floating]) -> NDArray[np.floating]:
    """Probabilities of the classes (C v), from those of the nested regions WT, TC, ET (R v)."""
    wt, tc, et = probabilities
    shares = np.empty((CLASS_COUNT, *wt.shape), dtype=probabilities.dtype)
    shares[BACKGROUND_CLASS], shares[ED_CLASS] = 1 - wt, wt - tc
    shares[NCR_CLASS], shares[ET_CLASS] = tc - et, et
    return np.clip(shares, _LEAST, 1.0, out=shares)  # resampling and bf16 leave differences a little below 0


def scale_classes(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    r"""Class probabilities at a temperature: $p_c^{1/T} / \sum_{c'} p_{c'}^{1/T}$.

    For a softmax this is the softmax of the logits divided by T; the order of the classes, and so the mask, stays.

    Args:
        probabilities: Nested WT, TC, ET (R v).
        temperature: T > 0.

    Returns:
        Background, ET, NCR, ED (C v), adding up to 1.

    Reference:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2. We differ: it is applied to
        probabilities that were averaged over tiles and resampled to the grid of the files, since these make the mask.
    """
    shares = classes_of(probabilities)
    np.exp(np.log(shares, out=shares) / shares.dtype.type(temperature), out=shares)
    shares /= shares.sum(0)
    return shares


def scale_regions(probabilities: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    """Nested region probabilities WT, TC, ET (R v) at a temperature; see :func:`scale_classes`."""
    shares = scale_classes(probabilities, temperature)
    et, tc = shares[ET_CLASS], shares[ET_CLASS] + shares[NCR_CLASS]
    return np.stack([tc + shares[ED_CLASS], tc, et])


def likelihood_curve(probabilities: NDArray[np.floating], target: NDArray[np.integer]) -> Array:
    r"""Mean negative log likelihood of the true classes at every one of ``TEMPERATURES``, in nats per voxel.

    $\frac1V\sum_v \left[\log\sum_c p_{vc}^{1/T} - \tfrac1T \log p_{v y_v}\right]$. A curve per case is enough to fit,
    pool and resample temperatures without the voxels.

    Args:
        probabilities: Nested WT, TC, ET (R v).
        target: Classes (v).
    """
    logs = np.log(classes_of(probabilities).astype(np.float64))
    true = np.take_along_axis(logs, np.asarray(target, dtype=np.int64)[None], 0)[0]
    return np.array([np.mean(np.log(np.exp(logs / t).sum(0)) - true / t) for t in TEMPERATURES])


def fit_temperature(curves: Mapping[str, Array], *, draws: int = 1000, seed: int = 0) -> Temperature:
    """The temperature of the highest likelihood, every case with the same weight, patients resampled for the interval.

    Args:
        curves: Case -> :func:`likelihood_curve`, averaged over its subsets.
        draws: Bootstrap samples.
        seed: Of the bootstrap.
    """
    of_patients = [np.stack([curves[case] for case in cases]) for cases in by_patient(curves)]
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(of_patients), (draws, len(of_patients)))
    drawn = [_lowest(np.concatenate([of_patients[n] for n in some]).mean(0)) for some in chosen]
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist() if len(of_patients) > 1 else (float("nan"),) * 2
    return Temperature(_lowest(np.concatenate(of_patients).mean(0)), low, high, len(curves))


def reliability_bins(probabilities: NDArray[np.floating], truth: NDArray[np.bool_]) -> Array:
    """Sums for a reliability curve (3 B): voxels, their probabilities, how many are true; bins of equal width."""
    place = np.minimum((np.asarray(probabilities) * BINS).astype(np.int64), BINS - 1)
    weights = (None, probabilities, truth.astype(np.float64))
    return np.stack([np.bincount(place, weights=w, minlength=BINS).astype(np.float64) for w in weights])


def calibration_error(bins: Array) -> float:
    r"""Expected calibration error (ECE): $\sum_b \frac{n_b}{n} |\mathrm{mean}\,p_b - \mathrm{share\ true}_b|$.

    Args:
        bins: From :func:`reliability_bins`; those of several cases may be added up.

    Returns:
        0 to 1; NaN without a voxel.

    Reference:
        Naeini et al., AAAI 2015; Guo et al., ICML 2017. We differ: of a region's own probability, not of the most
        probable class.
    """
    total = bins[0].sum()
    return float(np.abs(bins[1] - bins[2]).sum() / total) if total else float("nan")


def expected_dice(probabilities: NDArray[np.floating], mask: NDArray[np.bool_]) -> float:
    r"""The Dice that probabilities lead to expect of a mask: $2\sum_v p_v m_v / (\sum_v p_v + \sum_v m_v)$.

    Args:
        probabilities: Of the region (v).
        mask: Of the region (v).

    Returns:
        0 to 1; NaN for an empty mask, of which nothing can be said: its Dice is 1 or 0.

    Reference:
        Ratio of expectations of Dice's numerator and denominator when voxels are true with probability p. Voxels of one
        case are not independent, so the value is calibrated on cases (:func:`fit_dice`) before it is shown.
    """
    if not mask.any():
        return float("nan")
    return float(2.0 * probabilities[mask].sum(dtype=np.float64) / (probabilities.sum(dtype=np.float64) + mask.sum()))


def fit_dice(rows: Mapping[str, list[tuple[float, float, float]]]) -> DiceModel | None:
    r"""Fit a :class:`DiceModel`, every case with the same weight.

    Least squares with a ridge: the slopes of features in standard deviations cost $\lambda |b|^2$, $\lambda = 1$, as
    much as one case that is off by their size, so that few cases move little away from their mean.

    Args:
        rows: Case -> (expected, volume in mL, reached Dice), one per subset; those that are not finite are left out.

    Returns:
        None where fewer than five cases are left.

    Reference:
        Hoerl and Kennard, Ridge Regression, Technometrics 1970.
    """
    kept = {case: [row for row in rows[case] if np.isfinite(row).all()] for case in sorted(rows)}
    kept = {case: found for case, found in kept.items() if found}
    if len(kept) < FEWEST_CASES:
        return None
    expected, volume_ml, y = np.array([row for found in kept.values() for row in found], dtype=np.float64).T
    x = np.stack([expected, np.log1p(volume_ml)], axis=1)
    weight = np.concatenate([np.full(len(found), 1.0 / len(found)) for found in kept.values()])
    center, middle = np.average(x, axis=0, weights=weight), float(np.average(y, weights=weight))
    spread = np.maximum(np.sqrt(np.average((x - center) ** 2, axis=0, weights=weight)), 1e-6)
    z = (x - center) / spread
    slopes = np.linalg.solve(z.T @ (weight[:, None] * z) + np.eye(2), z.T @ (weight * (y - middle))) / spread
    (low_d, low_v), (high_d, high_v) = x.min(axis=0).tolist(), x.max(axis=0).tolist()
    b1, b2 = slopes.tolist()
    return DiceModel(middle - float(slopes @ center), (b1, b2), (low_d, low_v), (high_d, high_v), len(kept))


def _lowest(curve: Array) -> float:
    """Where a curve over ``TEMPERATURES`` is lowest, by a parabola through the lowest point and its neighbours."""
    place = int(np.clip(curve.argmin(), 1, len(curve) - 2))
    left, middle, right = curve[place - 1 : place + 2]
    bend = left - 2 * middle + right
    shift = float(np.clip(0.5 * (left - right) / bend, -1, 1)) if bend > 0 else 0.0
    step = np.log(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[place] * np.exp(shift * step))
