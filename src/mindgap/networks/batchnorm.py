"""Batch normalisation that is as fast on few channels as on many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_LANES = 64
"""Values side by side that the processor is given at once."""


class BatchNorm(nn.BatchNorm3d):
    """BatchNorm3d; in training, for up to eight bf16 channels laid out last on a CPU, in our own steps.

    torch 2.13 goes through such maps voxel by voxel, and a voxel of eight channels does not fill a vector of the
    processor: it takes longer for 8 channels than for 16 (4.4 and 1.9 ms for 4 maps of 48^3). The same sums are taken
    over rows of many voxels, in float32 as torch takes them.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the parent's argument
        """Normalise."""
        if not (self.training and _is_narrow(input)) or self.momentum is None or self.weight is None:
            return super().forward(input)
        normalised, mean, variance = _narrow_batch_norm(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                count = input.numel() // input.shape[1]
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return normalised


def _is_narrow(maps: Tensor) -> bool:
    return (
        maps.device.type == "cpu"
        and maps.dtype == torch.bfloat16
        and maps.shape[1] in (2, 4, 8)
        and maps.is_contiguous(memory_format=torch.channels_last_3d)
        and maps.numel() % _LANES == 0
    )


def _rows(maps: Tensor) -> Tensor:
    """Maps with channels last as a matrix in float32 whose rows hold several voxels."""
    last = maps.contiguous(memory_format=torch.channels_last_3d).permute(0, 2, 3, 4, 1)
    return last.reshape(-1, _LANES).float()


def _back(rows: Tensor, like: Tensor) -> Tensor:
    maps = torch.empty_like(like, memory_format=torch.channels_last_3d)
    maps.permute(0, 2, 3, 4, 1).view(-1, _LANES).copy_(rows)
    return maps


class _NarrowBatchNorm(torch.autograd.Function):
    r"""$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$ over batch and space; also $\mu$ and $\sigma^2$."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        channels = maps.shape[1]
        times, count = _LANES // channels, maps.numel() // channels
        rows = _rows(maps)
        mean = rows.sum(0).view(times, channels).sum(0) / count
        rows.sub_(mean.repeat(times))
        variance = (rows * rows).sum(0).view(times, channels).sum(0) / count
        scale = torch.rsqrt(variance + epsilon)
        ctx.save_for_backward(maps, weight, mean, scale)
        ctx.mark_non_differentiable(mean, variance)
        rows.mul_((weight * scale).repeat(times)).add_(bias.repeat(times))
        return _back(rows, maps), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        maps, weight, mean, scale = ctx.saved_tensors
        channels = maps.shape[1]
        times, count = _LANES // channels, maps.numel() // channels
        inner = _rows(gradient)
        normalised = _rows(maps).sub_(mean.repeat(times)).mul_(scale.repeat(times))
        for_bias = inner.sum(0).view(times, channels).sum(0)
        for_weight = (inner * normalised).sum(0).view(times, channels).sum(0)
        inner.sub_((for_bias / count).repeat(times))
        inner.sub_(normalised.mul_((for_weight / count).repeat(times)))
        inner.mul_((weight * scale).repeat(times))
        return _back(inner, maps), for_weight, for_bias, None


_narrow_batch_norm: Callable[..., tuple[Tensor, Tensor, Tensor]] = _NarrowBatchNorm.apply
