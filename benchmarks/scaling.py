"""How time and memory of a training step grow with batch, crop, steps, width, micro-batches and recomputation.

    python benchmarks/scaling.py            about 10 minutes on two cores
    python benchmarks/scaling.py --quick    whether it runs

Each setting is a process of its own, in turn, in every round. A fitted exponent is the slope of a line through
logarithms: 1 is linear. Crops of 32 voxels have maps with a side of two voxels, which are computed in fp32 on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cohort import write_cohort
from jobs import Job, interleave

Found = dict[str, list[dict[str, Any]]]
_CASES = 8


@dataclass(frozen=True)
class Series:
    """Settings that differ in one number.

    Attributes:
        title: What differs.
        field: Its name in a job.
        jobs: In order.
        size: The number whose power is fitted, of a job; None fits nothing.
    """

    title: str
    field: str
    jobs: tuple[Job, ...]
    size: Callable[[Job], float] | None


def main() -> None:
    """Measure and print Markdown tables."""
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        store = write_cohort(Path(name) / "store", crop=80, cases=_CASES)
        base, many = base_jobs(options, str(store))
        all_series = plan(base, quick=options.quick)
        jobs = {key(job): job for job in [*(job for series in all_series for job in series.jobs), many]}
        found = interleave(jobs, options.rounds)
    first = found[key(base)][0]
    print(f"\n{first['processor']}, {first['precision']}; {base.size} unless said, {options.rounds} rounds")
    for series in all_series:
        print_series(series, found)
    print_steps(many, found[key(many)])
    if options.json is not None:
        saved = [{"job": {**asdict(job), "store": ""}, "rounds": found[key(job)]} for job in jobs.values()]
        options.json.write_text(json.dumps(saved, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each setting")
    parser.add_argument("--many", type=int, default=64, help="steps of the run that is looked at early and late")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few steps of tiny networks: whether it runs")
    parser.add_argument("--json", type=Path, help="save everything here")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.many, options.warm_up = 1, 2, 8, 1
    return options


def base_jobs(options: argparse.Namespace, store: str) -> tuple[Job, Job]:
    """The setting that all series share, and the same one with many steps.

    Args:
        options: Of the command line.
        store: The cohort.
    """
    width, crop, batch = (4, 32, 2) if options.quick else (8, 48, 4)
    job = Job(store, width=width, crop=crop, batch=batch, steps=options.steps, warm_up=options.warm_up)
    job = replace(job, device=options.device)
    return job, replace(job, steps=options.many)


def plan(base: Job, *, quick: bool) -> list[Series]:
    """The series.

    Args:
        base: What all share.
        quick: Fewer and smaller ones.
    """
    batches, crops = ((1, 2), (32, 48)) if quick else ((1, 2, 4, 8), (32, 48, 64, 80))
    widths, parts = ((2, 4), (1, 2)) if quick else ((8, 16), (1, 2, 4))

    def vary(name: str, values: tuple[Any, ...]) -> tuple[Job, ...]:
        return tuple(replace(base, **{name: value}) for value in values)

    return [
        Series("Batch", "batch", vary("batch", batches), lambda job: job.batch),
        Series("Voxels of a crop", "crop", vary("crop", crops), lambda job: job.crop**3),
        Series(
            "Width (operations grow with its square, bytes with itself)",
            "width",
            vary("width", widths),
            lambda job: job.width,
        ),
        Series("Micro-batches of the same batch", "accumulate", vary("accumulate", parts), None),
        Series("Recomputed activations", "recompute", vary("recompute", (False, True)), None),
    ]


def key(job: Job) -> str:
    """A name for a job, the same for equal settings."""
    parts = f"{job.accumulate} micro-batches, " if job.accumulate > 1 else ""
    return f"{job.size}, {parts}{'recomputed, ' if job.recompute else ''}{job.steps} steps"


def seconds_of(results: list[dict[str, Any]]) -> float:
    """Median over rounds of seconds per step."""
    return statistics.median(result["seconds"] for result in results)


def memory_of(results: list[dict[str, Any]]) -> tuple[float, float]:
    """Median over rounds of the peak, and of what the steps added to it, in GiB."""
    peaks = [result["peaks_gib"][-1] for result in results]
    added = [max(result["peaks_gib"][-1] - result["before_gib"], 1e-3) for result in results]
    return statistics.median(peaks), statistics.median(added)


def print_series(series: Series, found: Found) -> None:
    """Print the table of a series and its exponents, or ratios to its first row."""
    times = [seconds_of(found[key(job)]) for job in series.jobs]
    memories = [memory_of(found[key(job)]) for job in series.jobs]
    print(f"\n**{series.title}**\n")
    print(
        f"| {series.field} | s/step | ns/voxel | peak GiB | of it for steps | time to the first | memory to the first |"
    )
    print("|---|---|---|---|---|---|---|")
    for job, seconds, (peak, added) in zip(series.jobs, times, memories, strict=True):
        voxel = seconds / (job.batch * job.crop**3) * 1e9
        relative = f"{seconds / times[0]:.2f} | {added / memories[0][1]:.2f}"
        print(f"| {getattr(job, series.field)} | {seconds:.3f} | {voxel:.0f} | {peak:.2f} | {added:.2f} | {relative} |")
    if series.size is not None:
        sizes = [series.size(job) for job in series.jobs]
        steps_memory = [added for _, added in memories]
        powers = f"{slope(sizes, times):.2f}, memory for steps with {slope(sizes, steps_memory):.2f}"
        print(f"\ntime grows with the power {powers}")


def print_steps(job: Job, rounds: list[dict[str, Any]]) -> None:
    """Print how time and memory grow with the number of steps within one run."""
    counts = [count for power in range(3, -1, -1) if (count := job.steps // 2**power) > 0]
    totals = [statistics.median(sum(result["durations"][:count]) for result in rounds) for count in counts]
    print("\n**Steps**\n")
    print("| steps | s together | s/step | s/step of the later half | peak GiB |\n|---|---|---|---|---|")
    for count, total in zip(counts, totals, strict=True):
        late = statistics.median(statistics.mean(result["durations"][count // 2 : count]) for result in rounds)
        peak = statistics.median(result["peaks_gib"][count - 1] for result in rounds)
        print(f"| {count} | {total:.2f} | {total / count:.3f} | {late:.3f} | {peak:.2f} |")
    print(f"\ntime grows with the power {slope([float(count) for count in counts], totals):.2f}")


def slope(sizes: list[float], values: list[float]) -> float:
    """Exponent of a power law through points: the slope between logarithms."""
    logs = [[math.log(value) for value in numbers] for numbers in (sizes, values)]
    return statistics.linear_regression(*logs).slope


if __name__ == "__main__":
    main()
