"""A crop rotated, zoomed and bent in one resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.data.augmentation import Draws
from mindgap.data.codes import CodeRange
from mindgap.shapes import Shaped


def bend(codes: Shaped[Tensor, "K i j k"], draws: Draws, row: int, *, crop: int) -> Tensor:
    """Rotate, zoom and bend a window in one resampling, and keep its middle.

    Intensities are interpolated among brain voxels only, so that the rim of a stripped brain does not grow dim; what is
    brain and the classes are taken from the nearest voxel.

    Args:
        codes: Sequences, and classes last; a cube larger than the crop, for what turns in from outside.
        draws: From :func:`draw`.
        row: Which row of them.
        crop: Side that is kept.
    """
    device, known = codes.device, CodeRange.of(codes)
    axis = (torch.arange(crop, device=device) - (crop - 1) / 2) / (codes.shape[-1] / 2)  # -1..1 across the window
    at = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)  # i j k 3, as (i, j, k)
    at = at @ torch.from_numpy(draws.frame[row]).to(device).T
    coarse = torch.from_numpy(draws.elastic[row])[None].to(device) * (2 * crop / codes.shape[-1])
    at += F.interpolate(coarse, size=at.shape[:3], mode="trilinear", align_corners=True)[0].movedim(0, -1)
    grid = at.flip(-1)[None]  # grid_sample counts the last axis first
    inside = codes[:-1] != known.background
    if bool((inside == inside[:1]).all()):  # co-registered and stripped by one mask, as most cohorts are
        inside = inside[:1]
    brain = inside.float()
    level = codes[:-1].float() - known.background
    both = F.grid_sample(torch.cat([level, brain])[None], grid, mode="bilinear", align_corners=False)[0]
    values, shares = both[: len(level)], both[len(level) :]
    level = (values / shares.clamp_min(0.5)).clamp_min(known.lowest - known.background)
    values = torch.where(shares >= 0.5, level, torch.zeros_like(values)) + known.background
    target = F.grid_sample(codes[-1:].float()[None], grid, mode="nearest", align_corners=False)[0]
    return known.fit(torch.cat([values, target]), codes.dtype)
