"""One process or several: what starts them together, how they agree to stop, how they part."""

from __future__ import annotations

import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from mindgap.processor import Precision

_PATIENCE = timedelta(hours=2)  # how long processes wait for the one that validates or writes


def make_accelerator(device: str, precision: Precision, *, players: int = 1) -> Accelerator:
    """The accelerator of one run; an earlier run in this process may have used another device or precision.

    Started by torchrun it joins the other processes: over NCCL on GPUs, over gloo elsewhere.

    Args:
        device: cpu or cuda.
        precision: fp32 or bf16.
        players: How many optimisers take turns; with more than one, a turn leaves some networks without gradients.
    """
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    # The strides of a 1x1x1 kernel can be read as either layout; the two readings copy the same bytes.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=device == "cpu",
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE),
            DistributedDataParallelKwargs(find_unused_parameters=players > 1),
        ],
    )


def agree_to_stop(accelerator: Accelerator, asked: bool, *, may_ask: bool) -> bool:
    """Whether all processes stop now, because one of them was asked to.

    Args:
        accelerator: Of the run.
        asked: Whether this process was asked to stop.
        may_ask: Whether this is a step at which the others may be waited for; the same in all processes.
    """
    if accelerator.num_processes == 1:
        return asked
    if not may_ask:
        return False
    flag = torch.tensor(float(asked), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


def leave(accelerator: Accelerator) -> None:
    """Let go of the other processes, when all have come to the same point."""
    if accelerator.num_processes > 1:
        accelerator.wait_for_everyone()
        accelerator.end_training()
