"""Rules about lesions: lesion-wise Dice of BraTS 2023, and ETpp, which takes small enhancing tumours for none."""

from __future__ import annotations

import math

import numpy as np

from mindgap.evaluation.metrics import Mask, Spacing, box_around

LEAST_ET_MM3 = 500.0
"""ETpp: a smaller predicted enhancing tumour is removed; at 1 mm the published 500 voxels."""
LEAST_LESION_MM3 = 50.0
"""Lesion-wise: a reference lesion of at most this volume is left out; at 1 mm the published 50 voxels."""
LESION_REACH_MM = 3.0
"""Lesion-wise: how far the reference is grown; at 1 mm the three published dilations."""
_SAME_VOLUME, _SAME_LENGTH = 1e-6, 1e-3
"""Relative differences that headers make by rounding."""


def without_small(mask: Mask, spacing_mm: Spacing, least_mm3: float = LEAST_ET_MM3) -> Mask:
    """ETpp v1: nothing where the whole mask is smaller than a volume, else the mask as it is.

    Args:
        mask: Predicted enhancing tumour.
        spacing_mm: Voxel edges.
        least_mm3: The smallest volume that is kept.

    Returns:
        A mask of the same shape.

    Reference:
        RFNet (Ding et al., ICCV 2021), public code: below 500 voxels the voxels leave ET and nothing else. Others
        turn them into necrosis (DeMoSeg); TC is the same in both.
        We differ: a volume, not a number of voxels, so that it means the same on every grid.
    """
    large = int(mask.sum()) * math.prod(spacing_mm) >= least_mm3 * (1 - _SAME_VOLUME)
    return mask if large else np.zeros_like(mask)


def lesionwise_dice(predicted: Mask, reference: Mask, spacing_mm: Spacing) -> float:
    r"""Lesion-wise Dice v1: the mean over the lesions of a case, in which a false one counts as 0.

    The reference is grown by :data:`LESION_REACH_MM`; what then hangs together (26 neighbours) is one lesion $L_l$,
    of which only the voxels of the reference count. A predicted component (26 neighbours) belongs to every grown
    lesion it meets; $P_l$ is the union of those of lesion $l$, whole. With $n_+$ predicted components that meet none,
    $\sum_l 2|P_l\cap L_l|/(|P_l|+|L_l|) / (\#l + n_+)$ over lesions above :data:`LEAST_LESION_MM3`. Smaller lesions
    do not count, nor do predictions that meet one of them; false components count whatever their size.

    Args:
        predicted: Boolean volume.
        reference: Boolean volume of the same shape.
        spacing_mm: Voxel edges.

    Returns:
        0 to 1; 1 where there is nothing to find and nothing was found.

    Reference:
        BraTS 2023, glioma parameters, https://github.com/rachitsaluja/BraTS-2023-Metrics (three dilations with
        18 neighbours, 50 voxels). We differ: reach and smallest lesion are lengths and volumes; at 1 mm the numbers
        are the same.
    """
    if not reference.any():
        return float(not predicted.any())
    from scipy import ndimage

    everywhere, element = np.ones((3, 3, 3), dtype=bool), _reach(spacing_mm)
    margin = [side // 2 for side in element.shape]
    whole = box_around(predicted | reference, margin)
    parts, parts_count = ndimage.label(predicted[whole], everywhere)
    sizes = np.bincount(parts.ravel(), minlength=parts_count + 1)

    # Lesions and what meets them lie in reach of the reference, far fewer voxels than one false component may span.
    reference = reference[whole]
    near = box_around(reference, margin)
    reference, parts = reference[near], parts[near]
    lesions, count = ndimage.label(ndimage.binary_dilation(reference, element), everywhere)
    meeting = (lesions > 0) & (parts > 0)
    belonging = np.unique(np.stack([lesions[meeting], parts[meeting]]), axis=1)  # lesion, component
    found = np.bincount(belonging[0], weights=sizes[belonging[1]], minlength=count + 1)
    size = np.bincount(lesions[reference], minlength=count + 1)
    common = np.bincount(lesions[reference & (parts > 0)], minlength=count + 1)

    counted = size * math.prod(spacing_mm) > LEAST_LESION_MM3 * (1 + _SAME_VOLUME)
    total: int = int(counted.sum()) + parts_count - len(np.unique(belonging[1]))
    if total == 0:
        return 1.0
    shares = 2 * common[counted] / (found + size)[counted]
    return float(shares.sum()) / total


def _reach(spacing_mm: Spacing) -> Mask:
    """Offsets in reach: at most 3 mm along each axis and 6 mm along all together, as after three steps of 1 mm."""
    most = LESION_REACH_MM * (1 + _SAME_LENGTH)
    sides = [int(most / mm) for mm in spacing_mm]
    i, j, k = (np.abs(np.arange(-n, n + 1) * mm) for n, mm in zip(sides, spacing_mm, strict=True))
    reach: Mask = i[:, None, None] + j[:, None] + k <= 2 * most
    return reach
