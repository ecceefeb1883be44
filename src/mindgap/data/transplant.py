"""A tumour moved into another brain: few patients give many pairs of tumour and anatomy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.data.codes import CodeRange
from mindgap.shapes import Shaped

_LEAST_HEALTHY = 100  # voxels to compare brightness by
_MOST_RATIO = 2.0


def transplant(codes: Shaped[Tensor, "K i j k"], donor: Shaped[Tensor, "K i j k"]) -> Shaped[Tensor, "K i j k"]:
    r"""Lay the tumour of one crop over another one, voxel by voxel where both are brain.

    Of every sequence $y' = (1 - a)\,y + a\,r\,d$ with the distances from the background of the crop, $y$, and of the
    donor, $d$. The weight $a$ is 1 within the tumour and falls to 0 over two voxels around it, and is 0 where the crop
    has tumour of its own that the donor's does not cover; $r$, at most 2 and at
    least a half, is the brightness of the crop's healthy tissue over that of the donor's. Classes are the donor's where
    it has tumour, else they stay. The brain is not pushed aside.

    Args:
        codes: Sequences, and classes last.
        donor: The same of another case; nothing changes where it lacks a sequence that the crop has.

    Returns:
        A new crop, or the same one where nothing could be moved.
    """
    known = CodeRange.of(codes)
    brain, other_brain = (some[:-1] != known.background for some in (codes, donor))
    there = brain.flatten(1).any(1)
    inside = (brain & other_brain)[there].all(0)
    tumour = (donor[-1] != 0) & inside
    if not bool(tumour.any()):
        return codes
    wide = F.max_pool3d(tumour[None].float(), 3, stride=1, padding=1)
    around = F.avg_pool3d(wide, 3, stride=1, padding=1, count_include_pad=False)[0]
    healthy = inside & (around == 0)
    weight = torch.where(tumour, 1.0, around * (inside & (codes[-1] == 0)))
    both = [(some[:-1][there].float() - known.background, healthy & (some[-1] == 0)) for some in (codes, donor)]
    if min(int(where.sum()) for _, where in both) < _LEAST_HEALTHY:
        return codes
    mine, other = (level[:, where].mean(1) for level, where in both)
    ratio = (mine / other).clamp(1 / _MOST_RATIO, _MOST_RATIO)[:, None, None, None]
    mixed = (1 - weight) * both[0][0] + weight * ratio * both[1][0]
    mixed = torch.where(inside, mixed.clamp(known.lowest - known.background), both[0][0]) + known.background
    result = codes.clone()
    result[:-1][there] = known.fit(mixed.clamp_max(known.highest), codes.dtype)
    result[-1] = torch.where(tumour, donor[-1], codes[-1])
    return result
