"""The baseline every table carries: the best single threshold on one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.codes import encode
from mindgap.data.prepared import PreparedCase
from mindgap.errors import MindgapError
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.sequences import Sequence, Subset

_CODES = 256


@dataclass(frozen=True)
class Threshold:
    """A cut on the 8-bit codes of prepared intensities.

    Attributes:
        code: 1..255; voxels at or beyond it are in the region.
        above: Whether "beyond" means brighter.
        dice: Mean Dice on the cases it was fitted on.
    """

    code: int
    above: bool
    dice: float

    def apply(self, codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The mask; the background (code 0) is never in it."""
        return codes >= self.code if self.above else (codes > 0) & (codes <= self.code)


Fitted = Mapping[Region, Mapping[Sequence, Threshold]]


def fit_thresholds(
    cases: Iterable[tuple[Mapping[Sequence, NDArray[np.uint8]], NDArray[np.uint8]]],
) -> dict[Region, dict[Sequence, Threshold]]:
    """Find, for every region and sequence, the threshold and direction with the largest mean Dice over cases.

    All 255 cuts in both directions are scored at once from cumulative histograms.

    Args:
        cases: For each case its codes per present sequence, and its classes on the same grid.
    """
    totals: dict[tuple[Region, Sequence], NDArray[np.float64]] = {}
    counts: dict[tuple[Region, Sequence], int] = {}
    for images, target in cases:
        for region in REGIONS:
            mask = region_mask(target, region)
            for sequence, codes in images.items():
                key = (region, sequence)
                totals[key] = totals.get(key, np.zeros((2, _CODES))) + _dice_of_all_cuts(codes, mask)
                counts[key] = counts.get(key, 0) + 1
    fitted: dict[Region, dict[Sequence, Threshold]] = {region: {} for region in REGIONS}
    for (region, sequence), total in totals.items():
        mean = total / counts[region, sequence]
        direction, code = np.unravel_index(int(mean.argmax()), mean.shape)
        fitted[region][sequence] = Threshold(int(code), bool(direction == 0), float(mean.max()))
    return fitted


def predict_threshold(prepared: PreparedCase, fitted: Fitted, subset: Subset) -> dict[Region, NDArray[np.bool_]]:
    """Masks on the prepared crop: for each region the sequence of the subset that did best on the fitted cases.

    Raises:
        MindgapError: No sequence of the subset was among the fitted cases.
    """
    codes = encode(prepared.image)
    chosen = choose_sequences(fitted, tuple(s for s in subset if s in prepared.sequences), case=prepared.case_id)
    return {region: fitted[region][s].apply(codes[prepared.sequences.index(s)]) for region, s in chosen.items()}


def choose_sequences(fitted: Fitted, subset: Subset, *, case: str) -> dict[Region, Sequence]:
    """For each region the sequence of a subset that did best on the fitted cases.

    Raises:
        MindgapError: No sequence of the subset was among the fitted cases.
    """
    chosen = {}
    for region in REGIONS:
        known = [sequence for sequence in subset if sequence in fitted[region]]
        if not known:
            raise MindgapError(f"{case}: no threshold was fitted for any of {[str(s) for s in subset]}.")
        chosen[region] = max(known, key=lambda sequence: fitted[region][sequence].dice)
    return chosen


def thresholds_to_plain(fitted: Fitted) -> dict[str, Any]:
    """For JSON."""
    return {
        str(region): {str(s): {"code": t.code, "above": t.above, "dice": t.dice} for s, t in row.items()}
        for region, row in fitted.items()
    }


def thresholds_from_plain(value: Mapping[str, Any]) -> dict[Region, dict[Sequence, Threshold]]:
    """From JSON."""
    return {Region(region): {Sequence(s): Threshold(**t) for s, t in row.items()} for region, row in value.items()}


def _dice_of_all_cuts(codes: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Dice of "codes >= c" (row 0) and "0 < codes <= c" (row 1) for every c; column 0 is not used."""
    inside = np.bincount(codes[mask], minlength=_CODES).astype(np.float64)
    everything = np.bincount(codes.ravel(), minlength=_CODES).astype(np.float64)
    size = float(mask.sum())
    result = np.zeros((2, _CODES))
    for row, (hit, chosen) in enumerate(
        (
            (inside[::-1].cumsum()[::-1], everything[::-1].cumsum()[::-1]),
            (inside[1:].cumsum(), everything[1:].cumsum()),
        )
    ):
        hit, chosen = (np.concatenate([[0.0], x])[-_CODES:] for x in (hit, chosen))
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.where(size + chosen > 0, 2 * hit / (size + chosen), 1.0)
        values[0] = -1.0
        result[row] = values
    return result
