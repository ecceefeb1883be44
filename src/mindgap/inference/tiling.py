"""One network over a whole volume: overlapping windows, or a single pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.batch import BACKGROUND, Float
from mindgap.errors import SettingError

Run = Callable[[Tensor], Tensor]
"""Maps images (B J i j k) to region probabilities (B R i j k)."""


def window_starts(length: int, window: int) -> list[int]:
    """Starts of windows along one axis: half-overlapping, the last one flush with the border."""
    if length <= window:
        return [0]
    starts = list(range(0, length - window, max(window // 2, 1)))
    return [*starts, length - window]


def predict_tiled(
    image: Float[Tensor, "J i j k"], run: Run, *, window: int, batch: int = 4
) -> Float[Tensor, "R i j k"]:
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
    shape = list(image.shape[1:])
    padded, place = pad_to(image, [max(side, window) for side in shape])
    total: Tensor | None = None
    count = torch.zeros(padded.shape[1:])
    for corners in _batched(list(product(*(window_starts(side, window) for side in padded.shape[1:]))), batch):
        tiles = torch.stack([padded[:, a : a + window, b : b + window, c : c + window] for a, b, c in corners])
        maps = run(tiles).float()
        if total is None:
            total = maps.new_zeros((maps.shape[1], *padded.shape[1:]))
            count = count.to(maps.device)
        for tile, (a, b, c) in zip(maps, corners, strict=True):
            part = (slice(a, a + window), slice(b, b + window), slice(c, c + window))
            total[:, part[0], part[1], part[2]] += tile
            count[part] += 1
    assert total is not None
    return (total / count)[:, place[0], place[1], place[2]]


def predict_whole(image: Float[Tensor, "J i j k"], run: Run, *, multiple: int) -> Float[Tensor, "R i j k"]:
    """One pass over the whole volume, padded with background to a multiple of the network's stride."""
    padded, place = pad_to(image, padded_shape(image.shape[1:], multiple))
    return run(padded[None])[0].float()[:, place[0], place[1], place[2]]


def mirrored(run: Run) -> Run:
    """A run that averages the predictions for the eight mirror images of what it is given, each turned back."""
    flips = [[axis + 2 for axis in range(3) if chosen[axis]] for chosen in product((False, True), repeat=3)]

    def run_all(images: Tensor) -> Tensor:
        total = run(images).float()
        for axes in flips[1:]:
            total = total + run(images.flip(axes)).float().flip(axes)
        return total / len(flips)

    return run_all


def padded_shape(shape: Sequence[int], multiple: int) -> list[int]:
    """Sides rounded up to a multiple."""
    return [-(-side // multiple) * multiple for side in shape]


def pad_to(image: Float[Tensor, "J i j k"], shape: list[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad with background on both sides to a shape; the slices undo it."""
    before = [(whole - have) // 2 for whole, have in zip(shape, image.shape[1:], strict=True)]
    after = [whole - have - b for whole, have, b in zip(shape, image.shape[1:], before, strict=True)]
    pads = [n for b, a in zip(reversed(before), reversed(after), strict=True) for n in (b, a)]
    place = tuple(slice(b, b + have) for b, have in zip(before, image.shape[1:], strict=True))
    return F.pad(image, pads, value=BACKGROUND), place


def _batched(items: list[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
