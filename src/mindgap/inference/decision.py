"""From probabilities to a mask: the most probable class, or the mask whose Dice is expected to be highest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS, Head
from mindgap.shapes import Float, Integer

LOWEST = 0.1
"""No voxel that is less probable counts: the best mask would then be expected to reach a Dice below 0.2."""
_LEVELS = 256


def classes_from_regions(
    probabilities: Float[NDArray[np.float32], "R i j k"], head: Head = "softmax"
) -> Integer[NDArray[np.uint8], "i j k"]:
    """The class of each voxel from nested region probabilities.

    Softmax: the most probable one. With WT, TC, ET nested the class probabilities are 1-WT (background), ET, TC-ET
    (NCR), WT-TC (oedema). Sigmoid, whose probabilities are no shares of one: WT, TC and ET where theirs is at least
    0.5, as SMU-Net's release decides (tumour where any class is likelier than not; there ET before NCR before ED).

    Args:
        probabilities: WT, TC, ET.
        head: Of the network they come from.
    """
    wt, tc, et = probabilities
    if head == "sigmoid":
        return _nested(wt >= 0.5, tc >= 0.5, et >= 0.5)
    # the first of the largest, as argmax over a stack of four would say, which takes ten times longer
    largest = 1 - wt
    classes = np.zeros(wt.shape, np.uint8)
    for value, share in ((ET_CLASS, et), (NCR_CLASS, tc - et), (ED_CLASS, wt - tc)):
        np.putmask(classes, share > largest, np.uint8(value))
        np.maximum(largest, share, out=largest)
    return classes


def highest_expected_dice(
    probabilities: Float[NDArray[np.float32], "R i j k"],
) -> Integer[NDArray[np.uint8], "i j k"]:
    r"""For each region the mask of highest expected Dice, nested: TC counts within WT and ET within TC.

    Of all masks with n voxels the n most probable ones are expected to overlap most, so that the best mask is
    $\{v : p_v \ge t\}$ with $t = \arg\max_t 2 \sum_{p_v \ge t} p_v / (|\{p_v \ge t\}| + \sum_v p_v)$, which is about
    half of the Dice it is expected to reach. Where a sequence shows a region poorly t is far below one half: the most
    probable class would leave the enhancing tumour of a FLAIR image empty. t is found per case and region, to one part
    in 256.

    Args:
        probabilities: WT, TC and ET, nested.

    Returns:
        The class of each voxel (uint8).

    Reference:
        Lipton et al., Optimal Thresholding of Classifiers to Maximize F1 Measure, ECML 2014,
        https://arxiv.org/abs/1402.1892; Dembczynski et al., NIPS 2011.
        We differ: the expectation of the ratio is taken as the ratio of expectations; t is at least :data:`LOWEST`.
    """
    shown = probabilities[0] >= 1 / _LEVELS
    wt, tc, et = (p >= _best_threshold(p[shown]) for p in probabilities)
    return _nested(wt, tc, et)


def _nested(wt: NDArray[np.bool_], tc: NDArray[np.bool_], et: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Classes from masks, of which TC counts within WT and ET within TC."""
    classes = np.zeros(wt.shape, np.uint8)
    classes[wt] = ED_CLASS
    tc = wt & tc
    classes[tc] = NCR_CLASS
    classes[tc & et] = ET_CLASS
    return classes


def _best_threshold(values: Float[NDArray[np.float32], " V"]) -> float:
    """The threshold t of one region, from a histogram."""
    if values.size == 0:
        return LOWEST
    levels = (values * np.float32(_LEVELS)).astype(np.int64).clip(0, _LEVELS - 1)
    counts = np.bincount(levels, minlength=_LEVELS)
    sums = np.bincount(levels, weights=values, minlength=_LEVELS)
    taken, hit = (_from_above(column) for column in (counts, sums))  # voxels at least as probable as each level
    expected = 2 * hit / np.maximum(taken + sums.sum(), 1e-9)
    first = -int(-LOWEST * _LEVELS // 1)
    return (first + int(expected[first:].argmax())) / _LEVELS


def _from_above(column: NDArray[Any]) -> NDArray[np.float64]:
    return column[::-1].cumsum()[::-1].astype(np.float64)
