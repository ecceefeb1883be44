"""What costs memory in a training step: recomputed activations, and an answer when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mindgap.processor import is_short_of_memory


def recompute_activations(network: nn.Module) -> None:
    """Keep only what enters each stage of a network, and compute the inside again in the backward pass.

    Stages are the network's own ``nn.Sequential`` children, at any depth. The running averages of BatchNorm take in a
    batch once, in the first computation, so that weights and buffers are bit for bit those of a run without it.

    Args:
        network: Changed in place; its parameters and their names stay.

    Reference:
        Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, https://arxiv.org/abs/1604.06174.
    """
    for stage in list(network.modules()):
        if isinstance(stage, nn.Sequential):
            stage.forward = partial(_run_twice, stage, stage.forward)  # type: ignore[method-assign]


def explain_shortage(error: BaseException, *, batch: int, accumulate: int, recompute: bool, crop: int) -> str | None:
    """A sentence that names the settings that help, if an error says that memory ran out; else None.

    Args:
        error: What was raised in a step.
        batch: Cases per step of this process.
        accumulate: Micro-batches they are computed in.
        recompute: Whether activations are recomputed already.
        crop: Side of the crops.
    """
    if not is_short_of_memory(error):
        return None
    helps = []
    larger = next((k for k in range(accumulate + 1, batch + 1) if batch % k == 0), None)
    if larger:
        helps.append(f"--accumulate {larger} computes {batch // larger} instead of {batch // accumulate} cases at once")
    if not recompute:
        helps.append("--recompute keeps fewer activations and takes about a quarter longer")
    if crop > 16:
        helps.append(f"--crop {crop - 16} has {1 - ((crop - 16) / crop) ** 3:.0%} fewer voxels")
    helps.append("a smaller --width")
    return "memory ran out. What helps, best first: " + "; ".join(helps) + ". The last checkpoint is untouched."


def _run_twice(stage: nn.Sequential, forward: Any, x: Tensor) -> Tensor:
    if not (torch.is_grad_enabled() and stage.training):
        result: Tensor = forward(x)
        return result
    kept: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=partial(_contexts, stage))
    return kept


def _contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _running_averages_kept(stage)


@contextmanager
def _running_averages_kept(stage: nn.Module) -> Iterator[None]:
    norms = [module for module in stage.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
