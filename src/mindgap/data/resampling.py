"""Linear resampling of a box of a grid to another grid over the same head, in host memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mindgap.data.prepared import Box
from mindgap.shapes import Float

Shape = tuple[int, int, int]


def resample_box(
    maps: Float[NDArray[np.float32], "R i j k"], box: Box, shape: Shape, wanted: Shape
) -> tuple[Float[NDArray[np.float32], "R x y z"], Box]:
    r"""Trilinear interpolation of maps that are 0 outside a box, without smoothing.

    Both grids cover the same volume: voxel $v$ of $n$ of the wanted grid lies at $(v + 1/2)\,n_0/n - 1/2$ of the grid
    with $n_0$ voxels, and border voxels go on outwards. An axis is a product with a matrix that has two numbers in a
    row; only what the box reaches is computed.

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
    axes = [_weights(n, m, ends) for n, m, ends in zip(shape, wanted, box, strict=True)]
    (first, _), (second, _), (third, _) = axes
    rows = maps.astype(np.float32, copy=False).reshape(-1, maps.shape[3]) @ third.T
    planes = second @ rows.reshape(*maps.shape[:3], len(third))
    flat = first @ planes.reshape(*maps.shape[:2], len(second) * len(third))
    a, b, c = (ends for _, ends in axes)
    return flat.reshape(len(maps), len(first), len(second), len(third)), (a, b, c)


def _weights(length: int, wanted: int, ends: tuple[int, int]) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Rows of the interpolation matrix of an axis that the voxels between two ends reach, and which rows these are."""
    place = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    below = np.minimum(place.astype(np.int64), length - 1)
    share = (place - below).astype(np.float32)
    matrix = np.zeros((wanted, length), np.float32)
    rows = np.arange(wanted)
    matrix[rows, below] = 1 - share
    matrix[rows, np.minimum(below + 1, length - 1)] += share
    reached = matrix[:, slice(*ends)]
    found = np.flatnonzero(reached.any(1))
    start, stop = (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)
    return np.ascontiguousarray(reached[start:stop]), (start, stop)
