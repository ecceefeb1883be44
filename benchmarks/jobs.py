"""What is measured, and a process of its own for each measurement: allocator, threads and imports are a process's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mindgap.processor import calm_threads


@dataclass(frozen=True)
class Variant:
    """A way of training the same network with the same loss.

    Attributes:
        text: For the table.
        pipeline: Our loop on resident cases, or a plain loop on MONAI's loader.
        precision: As `choose_precision` takes it.
        layout: Memory layout of the network.
        keeps_memory: Whether glibc is told to keep freed memory.
        calm: Whether OpenMP threads sleep after a short wait, as our command line sets it.
        workers: Processes of the loader (MONAI).
        tuned: MONAI with what makes it faster: cached voxel indices, no metadata; and with our fused optimiser.
        compiled: Whether torch.compile makes kernels (ours).
    """

    text: str
    pipeline: Literal["mindgap", "monai"] = "mindgap"
    precision: str = "auto"
    layout: Literal["channels_last", "contiguous"] = "channels_last"
    keeps_memory: bool = True
    calm: bool = True
    workers: int = 0
    tuned: bool = True
    compiled: bool = False


_TUTORIAL = Variant(
    "MONAI as its tutorial", "monai", "fp32", "contiguous", keeps_memory=False, calm=False, workers=2, tuned=False
)
VARIANTS = {
    "ours": Variant("mindgap"),
    "monai-same-0": Variant("MONAI, our precision and layout, no workers", "monai"),
    "monai-same-2": Variant("MONAI, our precision and layout, 2 workers", "monai", workers=2),
    "monai-tutorial": _TUTORIAL,
    "plain": Variant("mindgap in fp32, contiguous, allocator as it comes", "mindgap", "fp32", "contiguous", False),
    "monai-tutorial-calm": Variant(**{**asdict(_TUTORIAL), "text": _TUTORIAL.text + ", threads sleep", "calm": True}),
    "ours-compiled": Variant("mindgap with torch.compile", compiled=True),
}
DEFAULT_VARIANTS = ("ours", "monai-same-0", "monai-same-2", "monai-tutorial", "plain")


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        store: Folder of the cohort.
        variant: Name in :data:`VARIANTS`.
        width: Channels of the backbone at full resolution.
        crop: Side of the crops.
        batch: Crops per step.
        steps: Timed steps.
        warm_up: Steps before them.
        device: cpu or cuda.
        accumulate: Micro-batches per step (ours).
        recompute: Whether activations are recomputed (ours).
        task: "time" a step, or see what "bounds" it.
    """

    store: str
    variant: str = "ours"
    width: int = 8
    crop: int = 48
    batch: int = 4
    steps: int = 20
    warm_up: int = 5
    device: str = "cpu"
    accumulate: int = 1
    recompute: bool = False
    task: Literal["time", "bounds"] = "time"

    @property
    def size(self) -> str:
        """Width, batch and crop in words."""
        return f"width {self.width}, batch {self.batch} of {self.crop}^3"


def measure(job: Job) -> dict[str, Any]:
    """Run one measurement in a process of its own.

    Args:
        job: What is measured.

    Returns:
        What the process found, see ``pipelines.py`` and ``bounds.py``.

    Raises:
        SystemExit: The process failed.
    """
    environment = dict(os.environ)
    if VARIANTS[job.variant].calm:
        calm_threads(environment)  # as mindgap.cli does
    else:
        environment.pop("OMP_WAIT_POLICY", None)
        environment.pop("GOMP_SPINCOUNT", None)
    command = [sys.executable, str(Path(__file__).with_name("pipelines.py")), json.dumps(asdict(job))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job}: exit {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def interleave(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Measure every job once a round, each round beginning with another one, and say so on standard error.

    Args:
        jobs: By name.
        rounds: How often.

    Returns:
        For each name what its processes found, one per round.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    names = list(jobs)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            result = measure(jobs[name])
            found[name].append(result)
            print(
                f"round {number + 1}/{rounds}  {name:<44} {result['seconds']:.3f} s/step", file=sys.stderr, flush=True
            )
    return found
