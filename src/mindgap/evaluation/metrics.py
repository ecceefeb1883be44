"""Metrics on boolean volumes: overlap and surfaces. numpy in, numbers out; MONAI is imported where it computes.

What the columns of a table mean, with versions, stands in :mod:`mindgap.evaluation.presets`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

TOLERANCE_MM = 1.0
"""How far apart two surfaces may lie and still count as the same, in surface Dice."""


def dice(predicted: Mask, reference: Mask) -> float:
    r"""Dice v1: $2|A\cap B|/(|A|+|B|)$; both empty 1, one empty 0.

    Args:
        predicted: Boolean volume.
        reference: Boolean volume of the same shape.

    Returns:
        0 to 1.
    """
    size = int(predicted.sum()) + int(reference.sum())
    if size == 0:
        return 1.0
    return 2.0 * int((predicted & reference).sum()) / size


def hd95_mm(predicted: Mask, reference: Mask, spacing_mm: Spacing) -> float:
    """HD95 v1: the larger of the two directed 95th percentiles of surface distances.

    Args:
        predicted: Boolean volume.
        reference: Boolean volume of the same shape.
        spacing_mm: Voxel edges.

    Returns:
        Millimetres; NaN if either mask is empty.

    Reference:
        MONAI ``compute_hausdorff_distance(percentile=95, directed=False)``. medpy pools both directions before the
        percentile and gives a smaller number: :func:`hd95_pooled_mm`.
    """
    if not predicted.any() or not reference.any():
        return math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    first, second = _pair(predicted, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance = compute_hausdorff_distance(first, second, percentile=95, directed=False, spacing=spacing_mm)
    return float(distance[0, 0])


def hd95_pooled_mm(predicted: Mask, reference: Mask, spacing_mm: Spacing) -> float:
    """HD95 pooled v1: the 95th percentile of the surface distances of both directions together.

    Args:
        predicted: Boolean volume.
        reference: Boolean volume of the same shape.
        spacing_mm: Voxel edges.

    Returns:
        Millimetres; NaN if either mask is empty.

    Reference:
        The convention of medpy's ``hd95``, which ProtoKD's public code prints; the distances are MONAI's.
    """
    if not predicted.any() or not reference.any():
        return math.nan
    from monai.metrics.utils import get_edge_surface_distance

    first, second = (mask[0, 0] for mask in _pair(predicted, reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, distances, _ = get_edge_surface_distance(first, second, spacing=spacing_mm, symmetric=True)
    return float(np.percentile(np.concatenate([directed.numpy() for directed in distances]), 95))


def surface_dice(predicted: Mask, reference: Mask, spacing_mm: Spacing, tolerance_mm: float = TOLERANCE_MM) -> float:
    r"""Surface Dice v1: the share of surface voxels of both masks that lie near the other surface.

    $(|\{a\in S_A: d(a,S_B)\le\tau\}| + |\{b\in S_B: d(b,S_A)\le\tau\}|)/(|S_A|+|S_B|)$; both empty 1, one empty 0.

    Args:
        predicted: Boolean volume.
        reference: Boolean volume of the same shape.
        spacing_mm: Voxel edges.
        tolerance_mm: Largest distance that still counts as near.

    Returns:
        0 to 1.

    Reference:
        Nikolov et al., Clinically Applicable Segmentation of Head and Neck Anatomy, JMIR 2021; MONAI
        ``compute_surface_dice``. We differ: surface voxels are counted (MONAI's default), where the authors' code
        weighs them by their area; and two empty masks agree, as in Dice, where MONAI says NaN.
    """
    if not predicted.any() or not reference.any():
        return float(predicted.any() == reference.any())
    from monai.metrics.surface_dice import compute_surface_dice

    first, second = _pair(predicted, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        share = compute_surface_dice(first, second, [tolerance_mm], include_background=True, spacing=spacing_mm)
    return float(share[0, 0])


def box_around(mask: Mask, margin: Sequence[int] = (1, 1, 1)) -> tuple[slice, slice, slice]:
    """Box around a mask that is not empty, with a margin in voxels where the volume has room for it."""
    slices = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(max(int(line[0]) - margin[axis], 0), int(line[-1]) + 1 + margin[axis]))
    return slices[0], slices[1], slices[2]


def _pair(predicted: Mask, reference: Mask) -> tuple[Any, Any]:
    """Both masks as MONAI takes them (1 1 i j k), cut to their joint box with a margin, so that edges stay edges."""
    import torch

    box = box_around(predicted | reference)
    first, second = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (predicted, reference))
    return first, second
