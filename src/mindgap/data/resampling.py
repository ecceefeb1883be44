"""Linear resampling of a box of a grid to another grid over the same head, in host memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mindgap.data.prepared import Box, Shape
from mindgap.shapes import Float


def resample_box(
    maps: Float[NDArray[np.float32], "R i j k"], box: Box, shape: Shape, wanted: Shape
) -> tuple[Float[NDArray[np.float32], "R x y z"], Box]:
    r"""Trilinear interpolation of maps that are 0 outside a box, without smoothing.

    Both grids cover the same volume: voxel $v$ of $n$ of the wanted grid lies at $(v + 1/2)\,n_0/n - 1/2$ of the grid
    with $n_0$ voxels, and border voxels go on outwards. One axis after the other is the weighted sum of two neighbours,
    the same bits on every processor and with any number of threads; only what the box reaches is computed.

    Args:
        maps: What lies in the box.
        box: Where it lies on its grid.
        shape: Of that grid.
        wanted: Shape of the other.

    Returns:
        The maps where they may differ from 0, and the box where that is.

    Reference:
        ``torch.nn.functional.interpolate(mode="trilinear", align_corners=False)`` of the whole grid, which a test holds
        this against; one axis after the other rounds in another order.
    """
    near: list[tuple[int, int]] = list(box)
    result = maps.astype(np.float32, copy=False)
    finer = math.prod(wanted) > math.prod(shape)
    for axis in (2, 1, 0) if finer else (0, 1, 2):  # small arrays first, and rows that lie together
        result, near[axis] = _along(result, axis, shape[axis], wanted[axis], box[axis])
    a, b, c = near
    return result, (a, b, c)


def _along(
    maps: Float[NDArray[np.float32], "R i j k"], axis: int, length: int, wanted: int, ends: tuple[int, int]
) -> tuple[Float[NDArray[np.float32], "R x y z"], tuple[int, int]]:
    """One axis of the maps between two ends of its length, and between which ends of the wanted one they now lie."""
    place = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    below = place.astype(np.int64)
    above, share = np.minimum(below + 1, length - 1), (place - below).astype(np.float32)
    start, stop = ends
    weights = [(1 - share) * ((below >= start) & (below < stop)), share * ((above >= start) & (above < stop))]
    reached = np.flatnonzero((weights[0] > 0) | (weights[1] > 0))
    if not reached.size:
        return np.take(maps, [], axis + 1), (0, 0)
    part = slice(int(reached[0]), int(reached[-1]) + 1)
    column = tuple(-1 if other == axis else 1 for other in range(3))
    total, other = (
        np.take(maps, np.clip(line[part] - start, 0, stop - start - 1), axis + 1) * weight[part].reshape(column)
        for line, weight in ((below, weights[0]), (above, weights[1]))
    )
    total += other
    return total, (part.start, part.stop)
