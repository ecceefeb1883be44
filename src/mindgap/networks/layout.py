"""From one memory layout to another in one pass, forward and backward.

Latents lie channel after channel, so that one sequence's can be passed over alone; convolutions want channels last. An
elementwise operation on one tensor of each kind walks through memory in neither order and is up to ten times slower;
autograd lets gradients keep the layout they come in, so that one mixed gradient spoils every step before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mindgap.shapes import Float


class _HandOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = maps.dtype
        return maps.to(dtype).contiguous(memory_format=torch.channels_last_3d)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype, memory_format=torch.contiguous_format), None


class _TakeBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.dtype = maps.dtype
        return maps.to(torch.float32, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to(ctx.dtype).contiguous(memory_format=torch.channels_last_3d)


_hand_over: Callable[[Tensor, torch.dtype], Tensor] = _HandOver.apply
_take_back: Callable[[Tensor], Tensor] = _TakeBack.apply


def hand_over(maps: Float[Tensor, "B C i j k"], network: nn.Module) -> Float[Tensor, "B C i j k"]:
    """Maps as a network wants them: channels last, and in autocast's type, where its convolutions are laid out so.

    Args:
        maps: Channel after channel.
        network: Who takes them; its first parameter tells the layout.
    """
    weight = next(network.parameters())
    if weight.dim() != maps.dim() or weight.is_contiguous() or maps.shape[1] == 1:
        return maps
    device = maps.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps.dtype
    return _hand_over(maps, dtype)


def take_back(maps: Float[Tensor, "B C i j k"]) -> Float[Tensor, "B C i j k"]:
    """Maps channel after channel in float32; their gradient goes back as the maps came."""
    if maps.is_contiguous():
        return maps.float()
    return _take_back(maps)
