"""Normalisations as they are in prediction: held still while a network learns, or loud channels of them silenced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mindgap.networks.encoders import BrainNorm

_KINDS = (_BatchNorm, BrainNorm)


def settle_norms(network: nn.Module) -> None:
    """Let every normalisation use its running averages, and leave them as they are; weights go on learning.

    Args:
        network: Changed in place, until ``train()`` is called on all of it.
    """
    for module in network.modules():
        if isinstance(module, _KINDS):
            module.eval()


@torch.no_grad()
def silence_channels(network: nn.Module, *, above: float) -> int:
    """Let channels whose running variance lies above a limit say their bias everywhere, as if it were infinite.

    Args:
        network: Changed in place: weight 0, mean 0 and variance 1 in these channels of every affine BatchNorm.
        above: The limit.

    Returns:
        How many there were.
    """
    count = 0
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            mean, variance = module.running_mean, module.running_var
            if mean is None or variance is None:
                continue
            loud = variance > above
            module.weight[loud], mean[loud], variance[loud] = 0.0, 0.0, 1.0
            count += int(loud.sum())
    return count


def running_averages(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point averages of all normalisations, by their names in the state of the network."""
    for name, module in network.named_modules():
        if isinstance(module, _KINDS):
            for key, value in module.named_buffers(name, recurse=False):
                if value.is_floating_point():
                    yield key, value
