"""Named metric definitions on boolean volumes. numpy in, numbers out; MONAI is imported where it computes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class MetricDefinition:
    """What a column of a table means; printed beside every table."""

    name: str
    text: str


DEFINITIONS: dict[str, MetricDefinition] = {
    d.name: d
    for d in (
        MetricDefinition("dice", "Dice v1: 2|A and B| / (|A| + |B|); both empty 1, one empty 0."),
        MetricDefinition(
            "hd95_mm",
            "HD95 v1: the larger of the two directed 95th percentiles of surface distances (voxel edges, MONAI), "
            "in mm; not a number if either mask is empty, and left out of means.",
        ),
    )
}


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
        percentile and gives a smaller number.
    """
    if not predicted.any() or not reference.any():
        return math.nan
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    box = _joint_box(predicted | reference)
    pair = [torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (predicted, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distance = compute_hausdorff_distance(pair[0], pair[1], percentile=95, directed=False, spacing=spacing_mm)
    return float(distance[0, 0])


def _joint_box(mask: Mask) -> tuple[slice, slice, slice]:
    """Box around a mask with a margin of one voxel, so that edges stay edges; distances do not change."""
    slices = []
    for axis in range(3):
        line = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        slices.append(slice(max(int(line[0]) - 1, 0), int(line[-1]) + 2))
    return slices[0], slices[1], slices[2]
