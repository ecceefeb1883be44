"""From probabilities to a mask: the most probable class, or the mask whose Dice is expected to be highest."""

from __future__ import annotations

import torch
from torch import Tensor

from mindgap.batch import Float, Integer
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS

LOWEST = 0.1
"""No voxel that is less probable counts: the best mask would then be expected to reach a Dice below 0.2."""
_LEVELS = 256


def highest_expected_dice(probabilities: Float[Tensor, "R i j k"]) -> Integer[Tensor, "i j k"]:
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
    regions = [p >= _best_threshold(p[shown]) for p in probabilities]
    wt, tc, et = regions
    classes = torch.zeros(wt.shape, dtype=torch.uint8, device=wt.device)
    classes[wt] = ED_CLASS
    classes[wt & tc] = NCR_CLASS
    classes[wt & tc & et] = ET_CLASS
    return classes


def _best_threshold(values: Float[Tensor, " V"]) -> float:
    """The threshold t of one region, from a histogram."""
    if values.numel() == 0:
        return LOWEST
    levels = (values * _LEVELS).long().clamp_(0, _LEVELS - 1)
    counts = torch.bincount(levels, minlength=_LEVELS).double()
    sums = torch.bincount(levels, weights=values.double(), minlength=_LEVELS)
    taken, hit = (_from_above(column) for column in (counts, sums))  # voxels at least as probable as each level
    expected = 2 * hit / (taken + sums.sum()).clamp_min(1e-9)
    first = -int(-LOWEST * _LEVELS // 1)
    return (first + int(expected[first:].argmax())) / _LEVELS


def _from_above(column: Tensor) -> Tensor:
    return column.flip(0).cumsum(0).flip(0)
