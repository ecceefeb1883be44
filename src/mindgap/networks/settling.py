"""Normalisations as they are in prediction, held still while a network learns."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mindgap.networks.norms import BrainNorm

_KINDS = (_BatchNorm, BrainNorm)


def settle_norms(network: nn.Module) -> None:
    """Let every normalisation use its running averages, and leave them as they are; weights go on learning.

    Args:
        network: Changed in place, until ``train()`` is called on all of it.
    """
    for module in network.modules():
        if isinstance(module, _KINDS):
            module.eval()


def running_averages(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating-point averages of all normalisations, by their names in the state of the network."""
    for name, module in network.named_modules():
        if isinstance(module, _KINDS):
            for key, value in module.named_buffers(name, recurse=False):
                if value.is_floating_point():
                    yield key, value
