"""One network over a whole volume: overlapping windows, or a single pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import SettingError
from mindgap.shapes import BACKGROUND, Float

Maps = NDArray[np.float32]
Run = Callable[[Maps], Maps]
"""Maps images (B J i j k) to region probabilities (B R i j k)."""


def window_starts(length: int, window: int) -> list[int]:
    """Starts of windows along one axis: half-overlapping, the last one flush with the border."""
    if length <= window:
        return [0]
    starts = list(range(0, length - window, max(window // 2, 1)))
    return [*starts, length - window]


def predict_tiled(image: Float[Maps, "J i j k"], run: Run, *, window: int, batch: int = 4) -> Float[Maps, "R i j k"]:
    """Average the predictions of half-overlapping windows, each with the same weight everywhere.

    A constant prediction comes out constant. A volume smaller than the window is padded on both sides with the
    prepared background.

    Args:
        image: Prepared intensities.
        run: The network.
        window: Side in voxels, the crop it was trained with.
        batch: Windows per call.

    Reference:
        ProtoKD's public code (stride half a window, uniform mean). We differ: it pads with 0, which in prepared
        images is a grey value; here the pad is background.
    """
    if window < 1:
        raise SettingError(f"window is {window}: it has to be positive.")
    padded, (x, y, z) = pad_to(image, [max(side, window) for side in image.shape[1:]])
    total: Maps | None = None
    count = np.zeros(padded.shape[1:], np.float32)
    for corners in _batched(list(product(*(window_starts(side, window) for side in padded.shape[1:]))), batch):
        parts = [[slice(start, start + window) for start in corner] for corner in corners]
        maps = run(np.stack([padded[:, a, b, c] for a, b, c in parts]))
        if total is None:
            total = np.zeros((maps.shape[1], *padded.shape[1:]), np.float32)
        for tile, (a, b, c) in zip(maps, parts, strict=True):
            total[:, a, b, c] += tile
            count[a, b, c] += 1
    assert total is not None
    total /= count
    return total[:, x, y, z]


def predict_whole(image: Float[Maps, "J i j k"], run: Run, *, multiple: int) -> Float[Maps, "R i j k"]:
    """One pass over the whole volume, padded with background to a multiple of the network's stride."""
    padded, (x, y, z) = pad_to(image, padded_shape(image.shape[1:], multiple))
    return run(padded[None])[0, :, x, y, z]


def mirrored(run: Run) -> Run:
    """A run that averages the predictions for the eight mirror images of what it is given, each turned back."""
    flips = [tuple(axis + 2 for axis in range(3) if chosen[axis]) for chosen in product((False, True), repeat=3)]

    def run_all(images: Maps) -> Maps:
        total: Maps = run(images).copy()
        for axes in flips[1:]:
            total += np.flip(run(np.ascontiguousarray(np.flip(images, axes))), axes)
        total /= len(flips)
        return total

    return run_all


def padded_shape(shape: Sequence[int], multiple: int) -> list[int]:
    """Sides rounded up to a multiple."""
    return [-(-side // multiple) * multiple for side in shape]


def pad_to(image: Float[Maps, "J i j k"], shape: list[int]) -> tuple[Maps, tuple[slice, slice, slice]]:
    """Pad with background on both sides to a shape; the slices undo it."""
    before = [(whole - have) // 2 for whole, have in zip(shape, image.shape[1:], strict=True)]
    x, y, z = (slice(b, b + have) for b, have in zip(before, image.shape[1:], strict=True))
    padded = np.full((len(image), *shape), BACKGROUND, np.float32)
    padded[:, x, y, z] = image
    return padded, (x, y, z)


def _batched(items: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
