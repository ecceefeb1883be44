"""What bounds a training step: operations, bytes, the machine's matrix rate, and where the time goes."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

_KINDS = {
    "convolutions": ("conv",),
    "batch normalisation": ("batch_norm", "batchnorm"),
    "optimiser": ("adam", "optimizer"),
    "copies and casts": ("copy", "clone", "aten::to", "contiguous", "aten::cat", "split"),
    "activations": ("relu", "threshold"),
}
_REST = "elementwise and sums"
_SHOWN = 15


def look(steps: Iterator[Any], device: str, precision: str) -> dict[str, Any]:
    """Look closely at a few steps.

    Args:
        steps: Does a step for each item.
        device: cpu or cuda.
        precision: The steps are computed in.

    Returns:
        Of one step: "flop", "bytes" by kind of operator, "kinds" (seconds by kind of operator), "profiled_seconds",
        "busy" (share of the time that the device computes); the machine's "matrix_rate" in FLOP/s; the "table" of the
        most expensive operators.
    """
    for _ in range(3):
        next(steps)
    with Traffic() as traffic, FlopCounterMode(display=False, custom_mapping=_MAPPING) as counter:
        next(steps)
    found = {"flop": counter.get_total_flops(), "bytes": dict(traffic.bytes)} | _profile(steps, device)
    return found | {"matrix_rate": matrix_rate(device, precision)}


def kind_of(operator: str) -> str:
    """What an operator does, from its name."""
    name = operator.lower()
    return next((kind for kind, words in _KINDS.items() if any(word in name for word in words)), _REST)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operators read and write, by kind of operator; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes[kind_of(func.name())] += sum(x.numel() * x.element_size() for x in tensors)
        return result


def matrix_rate(device: str, precision: str, *, repeats: int = 7) -> float:
    """Operations per second of a large square matrix product, the median of some.

    Args:
        device: cpu or cuda.
        precision: fp32 or bf16.
        repeats: How many.
    """
    side = 8192 if device == "cuda" else 2048
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other = (torch.rand(side, side, device=device, dtype=kind) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        torch.matmul(one, other)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return float(2 * side**3 / sorted(seconds[2:])[repeats // 2])


def _profile(steps: Iterator[Any], device: str, *, count: int = 2) -> dict[str, Any]:
    """Where the time of some steps goes, per step."""
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(count):
            next(steps)
        if cuda:
            torch.cuda.synchronize()
        wall = (time.perf_counter() - began) / count
    averages = profiler.key_averages()
    kinds: dict[str, float] = defaultdict(float)
    for event in averages:
        if event.device_type == DeviceType.CPU:  # a kernel's time is charged to the operator that started it
            micro = event.self_device_time_total if cuda else event.self_cpu_time_total
            kinds[kind_of(event.key)] += micro / 1e6 / count
    table = averages.table(sort_by="self_device_time_total" if cuda else "self_cpu_time_total", row_limit=_SHOWN)
    return {"kinds": dict(kinds), "profiled_seconds": wall, "busy": sum(kinds.values()) / wall, "table": table}


def _backward_flop(grad: Any, x: Any, weight: Any, *arguments: Any, out_shape: Any = None, **_: Any) -> int:
    """Operations of a convolution's backward pass: as many as forward for each of the two gradients.

    torch's own formula counts the weight gradient of a grouped convolution as if it had one group.
    """
    transposed, wanted = arguments[4], arguments[7]
    positions = math.prod((x if transposed else grad)[2:])
    return 2 * positions * x[0] * math.prod(weight) * (int(wanted[0]) + int(wanted[1]))


_MAPPING = {torch.ops.aten.convolution_backward: _backward_flop}
