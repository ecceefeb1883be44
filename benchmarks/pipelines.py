"""Training steps of the same network, loss and cases, fed by our loop or by MONAI's loader; times one of them.

Started by ``jobs.measure`` with a job in JSON; prints what it found as JSON in the last line.
"""

from __future__ import annotations

import json
import mmap
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bounds import look
from jobs import VARIANTS, Job, Variant
from torch import Tensor

from mindgap.batch import Batch
from mindgap.data.augmentation import paper_augmentation
from mindgap.data.codes import decode
from mindgap.data.resident import ResidentCases
from mindgap.data.store import Store, open_store
from mindgap.methods.base import AbstractMethod, Parts
from mindgap.methods.teacher import TeacherRecipe
from mindgap.networks.blocks import channels_last
from mindgap.processor import Precision, choose_precision, detect_processor, keep_freed_memory, peak_memory_gib
from mindgap.sequences import SEQUENCES
from mindgap.training.loop import Schedule, Training, add_terms
from mindgap.training.optimisation import Optimisation, make_optimiser
from mindgap.training.processes import make_accelerator

FOREGROUND = 0.5
"""Share of crops centred on tumour; MONAI's pos=1, neg=1."""
PHASES = ("data", "forward", "backward", "optimiser", "log")
_CUDA_BLOCKS = 8


class Clock:
    """Adds up the time of the phases of steps.

    Args:
        device: With "cuda" every phase waits for the GPU, so that it is charged for its own work.
    """

    def __init__(self, device: str) -> None:
        self.device, self.running = device, False
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = 0.0

    def begin(self) -> None:
        """A step begins."""
        self.last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """A phase of a step has ended."""
        if self.running:
            synchronise(self.device)
            now = time.perf_counter()
            self.seconds[phase] += now - self.last
            self.last = now


def synchronise(device: str) -> None:
    """Wait for the GPU if there is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def build_method(width: int) -> AbstractMethod:
    """The aligned teacher of all four sequences with the mixture anchor, from the same random start every time."""
    torch.manual_seed(0)
    return TeacherRecipe().build(Parts(store_sequences=SEQUENCES, subset=SEQUENCES, width=width))


def our_steps(job: Job, variant: Variant, precision: Precision, clock: Clock) -> Iterator[Any]:
    """Steps of our loop, one for each item.

    Args:
        job: What is measured.
        variant: How.
        precision: To compute in.
        clock: Told of the phases.
    """
    store, accelerator = open_store(Path(job.store)), make_accelerator(job.device, precision)
    schedule = Schedule(
        steps=job.warm_up + 2 * job.steps + 10,
        batch=job.batch,
        crop=job.crop,
        foreground=FOREGROUND,
        log_every=1 if job.device == "cpu" else 10,  # the paper preset's: reading a value makes a GPU wait
        accumulate=job.accumulate,
        recompute=job.recompute,
    )
    training = Training(
        build_method(job.width),
        ResidentCases(store, store.part("train"), subset=SEQUENCES, device=accelerator.device),
        schedule,
        Optimisation(),
        paper_augmentation(),
        accelerator=accelerator,
        seed=0,
        layout=variant.layout,
        compiled=variant.compiled,
        mark=clock.mark,
    )
    return training.run()


def monai_steps(job: Job, variant: Variant, precision: Precision, clock: Clock) -> Iterator[None]:
    """Steps of a plain loop on batches of MONAI's loader, one for each item.

    Args:
        job: What is measured.
        variant: How.
        precision: To compute in.
        clock: Told of the phases.
    """
    method, device = build_method(job.width), torch.device(job.device)
    network = method.networks["segmenter"].to(device).train()
    if variant.layout == "channels_last":
        channels_last(network)
    if variant.tuned:
        optimiser = make_optimiser(Optimisation(), method, method.players[0])
    else:
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
    batches = iter(monai_loader(open_store(Path(job.store)), job, variant))
    available = torch.ones(job.batch, len(SEQUENCES), dtype=torch.bool)
    while True:
        item = next(batches)
        image, target = (
            item[key].as_subclass(torch.Tensor).to(device, non_blocking=True) for key in ("image", "label")
        )
        batch = Batch(image, SEQUENCES, available, available, target[:, 0], ("",) * job.batch)
        clock.mark("data")
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            terms = method.terms("segmenter", batch)
        loss = add_terms(terms, method.term_weights)
        clock.mark("forward")
        loss.backward()
        clock.mark("backward")
        loss.item()
        clock.mark("log")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        clock.mark("optimiser")
        yield


def monai_loader(store: Store, job: Job, variant: Variant) -> Any:
    """CacheDataset (all cases in memory as float32) -> RandCropByPosNegLabeld -> flips -> DataLoader.

    A batch is ``batch`` cases with one crop each, as ours. Epochs never end, so that no worker is started again. Tuned,
    the voxels to choose from are found once and cached, and tensors carry no metadata.

    Args:
        store: The cohort.
        job: Crop and batch.
        variant: Workers, and whether it is tuned.
    """
    from monai.data import CacheDataset, DataLoader, set_track_meta
    from monai.transforms import Compose, FgBgToIndicesd, RandCropByPosNegLabeld, RandFlipd

    set_track_meta(not variant.tuned)
    keys, brain = ("image", "label"), {"image_key": "image", "image_threshold": -1.0}
    known = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"} if variant.tuned else {}
    crop = RandCropByPosNegLabeld(
        keys, "label", (job.crop,) * 3, pos=FOREGROUND, neg=1 - FOREGROUND, num_samples=1, **brain, **known
    )
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    first = [FgBgToIndicesd(keys="label", **brain)] if variant.tuned else []
    dataset = CacheDataset(decoded(store), Compose([*first, crop, *flips]), cache_rate=1.0, progress=False)
    return DataLoader(
        dataset,
        batch_size=job.batch,
        num_workers=variant.workers,
        sampler=torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**6),
        pin_memory=job.device == "cuda",
    )


def decoded(store: Store) -> list[dict[str, Tensor]]:
    """The training cases as float32 images (J, i, j, k) and labels (1, i, j, k)."""
    cases = [torch.from_numpy(store.read(case_id)) for case_id in store.part("train")]
    return [{"image": decode(codes[:-1]), "label": codes[-1:].clone()} for codes in cases]


def time_steps(steps: Iterator[Any], job: Job, clock: Clock) -> dict[str, Any]:
    """Time steps after a warm-up: each on a CPU, in blocks that end with waiting on a GPU.

    Args:
        steps: Does a step for each item.
        job: How many.
        clock: Of the phases; on a GPU they come from further steps, in which every phase waits.

    Returns:
        Median "seconds" per step, the "durations", the largest memory up to each in "peaks_gib", that taken before
        the first in "before_gib", and the "phases" as shares.
    """
    before = _memory_now_gib(job.device)
    for _ in range(job.warm_up):
        next(steps)
    synchronise(job.device)
    clock.running = job.device == "cpu"
    block = 1 if job.device == "cpu" else max(1, job.steps // _CUDA_BLOCKS)
    durations, peaks = [], []
    for start in range(0, job.steps, block):
        count = min(block, job.steps - start)
        seconds = _block(steps, count, clock)
        durations += [seconds / count] * count
        peaks += [_memory_gib(job.device)] * count
    phased = sum(durations)
    if job.device == "cuda":
        clock.running = True
        phased = _block(steps, job.steps, clock)
    return {
        "seconds": statistics.median(durations),
        "durations": durations,
        "before_gib": before,
        "peaks_gib": peaks,
        "phases": {phase: clock.seconds[phase] / phased for phase in PHASES},
    }


def _block(steps: Iterator[Any], count: int, clock: Clock) -> float:
    """Seconds that some steps take together."""
    began = time.perf_counter()
    for _ in range(count):
        clock.begin()
        next(steps)
    synchronise(clock.device)
    return time.perf_counter() - began


def _memory_gib(device: str) -> float:
    """Largest memory so far, in GiB: of this process, without workers, or of tensors on the GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else peak_memory_gib()


def _memory_now_gib(device: str) -> float:
    """What is taken now, in GiB (0 where the system does not say)."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 2**30
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * mmap.PAGESIZE / 2**30 if pages.is_file() else 0.0


def main() -> None:
    """Do the job that was given."""
    job = Job(**json.loads(sys.argv[1]))
    variant = VARIANTS[job.variant]
    if variant.keeps_memory:
        keep_freed_memory()
    processor = detect_processor(job.device)
    precision = choose_precision(variant.precision, processor)
    clock = Clock(job.device)
    steps = (our_steps if variant.pipeline == "mindgap" else monai_steps)(job, variant, precision, clock)
    found = look(steps, job.device, precision) if job.task == "bounds" else time_steps(steps, job, clock)
    facts = {"processor": processor.kind, "native_bf16": processor.native_bf16, "precision": precision}
    print(json.dumps(facts | found), flush=True)


if __name__ == "__main__":
    main()
