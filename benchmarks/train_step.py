"""Seconds per training step: ours against MONAI's pipeline and against our own without what makes it fast.

    python benchmarks/train_step.py                          about 15 minutes on two cores
    python benchmarks/train_step.py --paper --device cuda    the paper's settings on a GPU
    python benchmarks/train_step.py --quick                  whether it runs

All pipelines train the same network with the same loss on the same cases; each is a process of its own, in turn, in
every round, beginning with another one each time. Ours also varies intensities, which MONAI's here does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cohort import write_cohort
from jobs import DEFAULT_VARIANTS, VARIANTS, Job, interleave, measure

_DEFAULTS = {"rounds": 5, "steps": 20, "warm_up": 5, "width": 8, "crop": 48, "batch": 4}
_PAPER = {"width": 16, "crop": 80, "batch": 4}
_QUICK = {"rounds": 1, "steps": 2, "warm_up": 1, "width": 4, "crop": 32, "batch": 2}
_CASES = 12
_STEPS_PER_S = 33
"""Wanted of the paper's settings on one H100: 50,000 steps in 25 minutes."""
_H100_FLOPS, _H100_BYTES = 989e12, 3.35e12
"""Published for the SXM card: dense bf16 operations, and bytes of memory traffic, per second."""

Found = dict[str, list[dict[str, Any]]]
"""What the processes of each pipeline found, one per round."""


@dataclass(frozen=True)
class Target:
    """A number that is asked for.

    Attributes:
        text: What it is.
        value: What was measured.
        bound: What is asked for.
        at_most: Whether the bound is an upper one.
    """

    text: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the number is as asked for."""
        return self.value < self.bound if self.at_most else self.value >= self.bound


def main() -> None:
    """Measure, print, save."""
    options, load = parse(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        jobs = plan(options, Path(name))
        found = interleave(jobs, options.rounds)
        bounds, outlook = look_closely(options, jobs, Path(name))
    mine = found["ours"][0]
    print(f"\n{mine['processor']}; {describe_versions()}; load of the machine before: {load:.1f}\n")
    main_jobs = {key: job for key, job in jobs.items() if key in VARIANTS}
    print_table(main_jobs, found, options.rounds)
    for size in dict.fromkeys(job.size for key, job in jobs.items() if key not in VARIANTS):
        print(f"\nBeside it, {jobs[f'ours, {size}'].steps} steps a round:\n")
        print_table({key: job for key, job in jobs.items() if key.endswith(size)}, found, options.rounds)
    targets = check_targets(found, options)
    print_targets(targets, jobs["ours"], native=mine["native_bf16"])
    if bounds is not None:
        print_bounds(bounds, jobs["ours"], median_seconds(found["ours"]), share(found["ours"], "data"))
        if options.profile:
            print(bounds["table"])
    if outlook is not None:
        print_outlook(*outlook)
    if options.json is not None:
        save(options, jobs, found, targets, bounds, outlook)


def parse() -> argparse.Namespace:
    """Options: what is given, else those of --quick, of --paper, the default ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in _DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {value}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="beside ours; on a GPU none by default")
    parser.add_argument("--paper", action="store_true", help="width 16, batch 4 of 80^3")
    parser.add_argument("--quick", action="store_true", help="a few steps of a tiny network: whether it runs")
    parser.add_argument("--profile", action="store_true", help="print the 15 most expensive operators")
    parser.add_argument(
        "--no-beside", action="store_true", help="only the size asked for, not twice the width and 80^3"
    )
    parser.add_argument("--no-bounds", action="store_true", help="do not look at what bounds a step")
    parser.add_argument("--json", type=Path, help="save everything here")
    options = parser.parse_args()
    values = _DEFAULTS | (_PAPER if options.paper else {}) | (_QUICK if options.quick else {})
    for name, value in values.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    chosen = options.variants or (DEFAULT_VARIANTS if options.device == "cpu" else ())
    options.variants = list(dict.fromkeys(["ours", *chosen]))
    return options


def plan(options: argparse.Namespace, folder: Path) -> dict[str, Job]:
    """The jobs of a round: the chosen pipelines, and beside them ours and the plain one at twice the width and at 80^3.

    Args:
        options: Of the command line.
        folder: Where cohorts are written.
    """
    first = Job(
        store=cohort_for(folder, options.crop),
        **{name: getattr(options, name) for name in ("width", "crop", "batch", "steps", "warm_up", "device")},
    )
    jobs = {name: replace(first, variant=name) for name in options.variants}
    if options.paper or options.no_beside:
        return jobs
    few = replace(first, steps=max(2, first.steps // 4), warm_up=min(2, first.warm_up))
    larger = 48 if options.quick else 80
    beside = [replace(few, width=2 * few.width), replace(few, crop=larger, store=cohort_for(folder, larger))]
    for job in beside:
        for name in ("ours", "plain"):
            if name in jobs:
                jobs[f"{name}, {job.size}"] = replace(job, variant=name)
    return jobs


def cohort_for(folder: Path, crop: int) -> str:
    """A store whose cases are large enough for a crop, made when first asked for."""
    store = folder / ("large" if crop > 64 else "small")
    if not store.exists():
        write_cohort(store, crop=crop, cases=_CASES)
    return str(store)


def look_closely(
    options: argparse.Namespace, jobs: dict[str, Job], folder: Path
) -> tuple[dict[str, Any] | None, tuple[Job, dict[str, Any]] | None]:
    """What bounds our step; and on a CPU a look at the paper's step, to read what would bound it on a GPU."""
    if options.no_bounds:
        return None, None
    bounds = measure(replace(jobs["ours"], task="bounds"))
    if options.device != "cpu" or options.quick:
        return bounds, None
    paper = replace(jobs["ours"], task="bounds", store=cohort_for(folder, _PAPER["crop"]), **_PAPER)
    same = (jobs["ours"].width, jobs["ours"].crop, jobs["ours"].batch) == (paper.width, paper.crop, paper.batch)
    return bounds, (paper, bounds if same else measure(paper))


def median_seconds(results: list[dict[str, Any]]) -> float:
    """Median over the rounds of seconds per step."""
    return statistics.median(result["seconds"] for result in results)


def share(results: list[dict[str, Any]], phase: str) -> float:
    """Median over the rounds of a phase's share of a step."""
    return statistics.median(result["phases"][phase] for result in results)


def ratios(ours: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[float]:
    """How many times faster ours is, round by round."""
    return [other["seconds"] / own["seconds"] for own, other in zip(ours, baseline, strict=True)]


def print_table(jobs: dict[str, Job], found: Found, rounds: int) -> None:
    """Print a Markdown table of pipelines at one size, of which the first is ours."""
    first = next(iter(jobs))
    print(f"{jobs[first].size}, {jobs[first].device}, median of {rounds} interleaved rounds\n")
    print(
        "| pipeline | precision | s/step | steps/s | ours is faster by | data | forward | backward | optimiser | log |"
        " peak GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for key, job in jobs.items():
        results = found[key]
        seconds, times = median_seconds(results), ratios(found[first], results)
        faster = "" if key == first else f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]"
        phases = [f"{share(results, phase):.1%}" for phase in ("data", "forward", "backward", "optimiser", "log")]
        peak = max(result["peaks_gib"][-1] for result in results)
        cells = [VARIANTS[job.variant].text, results[0]["precision"], f"{seconds:.3f}", f"{1 / seconds:.2f}", faster]
        print("| " + " | ".join([*cells, *phases, f"{peak:.2f}"]) + " |")


def check_targets(found: Found, options: argparse.Namespace) -> list[Target]:
    """The numbers asked for, as far as their pipelines were measured."""
    ours, targets = found["ours"], []
    if options.device == "cuda":
        if options.paper:
            steps = 1 / median_seconds(ours)
            targets.append(Target(f"steps/s of the paper's settings on {ours[0]['processor']}", steps, _STEPS_PER_S))
        return targets
    native = ours[0]["native_bf16"]
    same = [name for name in ("monai-same-0", "monai-same-2") if name in found]
    if same:
        best = min(same, key=lambda name: median_seconds(found[name]))
        text = f"times faster than MONAI at our precision and layout ({VARIANTS[best].workers} workers, the faster)"
        targets.append(Target(text, statistics.median(ratios(ours, found[best])), 1.0))
    targets.append(Target("share of data in our step", share(ours, "data"), 0.05, at_most=True))
    for name, text, bound in (
        ("monai-tutorial", "times faster than MONAI as its tutorial has it", 1.8 if native else 1.3),
        ("plain", "times faster than our loop in fp32, contiguous, allocator as it comes", 2.0 if native else 1.4),
    ):
        if name in found:
            targets.append(Target(text, statistics.median(ratios(ours, found[name])), bound))
    return targets


def print_targets(targets: list[Target], job: Job, *, native: bool) -> None:
    """Say which targets are met."""
    sizes = [{**_DEFAULTS, **changed} for changed in ({}, _PAPER)]
    set_for = [(size["width"], size["crop"], size["batch"]) for size in sizes]
    note = "" if (job.width, job.crop, job.batch) in set_for else " (set for other sizes than these)"
    print(f"\nTargets for a processor {'with' if native else 'without'} native bf16{note}:\n")
    for target in targets:
        sign, verdict = "<" if target.at_most else ">=", "met" if target.met else "NOT MET"
        print(f"- {target.text}: {target.value:.3f} (asked for {sign} {target.bound:g}): {verdict}")


def print_bounds(bounds: dict[str, Any], job: Job, seconds: float, data: float) -> None:
    """Say how far a step is from what the machine can do, and what bounds it."""
    flop, matrix, kinds = bounds["flop"], bounds["matrix_rate"], bounds["kinds"]
    total, traffic = sum(kinds.values()), bounds["bytes"]
    alone = flop / kinds["convolutions"]
    print(f"\nWhat bounds a step ({job.size}, {bounds['precision']}):\n")
    print(
        f"- {flop / 1e9:.1f} GFLOP a step, {flop / seconds / 1e9:.0f} GFLOP/s achieved: {flop / seconds / matrix:.0%} "
        f"of this machine's matrix product ({matrix / 1e9:.0f} GFLOP/s)"
    )
    print(f"- convolutions alone: {alone / 1e9:.0f} GFLOP/s, they reach {alone / matrix:.0%} of the matrix rate")
    print(f"- time of operators: {listing(kinds, lambda value: f'{value / total:.0%}')}")
    print(
        f"- {sum(traffic.values()) / 1e9:.2f} GB read and written a step, if nothing stays in a cache: "
        f"{listing(traffic, lambda value: f'{value / 1e9:.2f}')}; on average "
        f"{sum(traffic.values()) / seconds / 1e9:.0f} GB/s"
    )
    print(f"- the device computes {bounds['busy']:.0%} of a profiled step")
    print(f"- bound by {verdict(bounds, data, alone / matrix, cuda=job.device == 'cuda')}")


def verdict(bounds: dict[str, Any], data: float, reach: float, *, cuda: bool) -> str:
    """What bounds a step, in words.

    Args:
        bounds: From ``bounds.look``.
        data: Share of data.
        reach: Of the matrix rate by the convolutions.
        cuda: Whether a GPU waits for a host.
    """
    if data > 0.2:
        return "data"
    if cuda and bounds["busy"] < 0.85:
        return "the host, which does not start kernels fast enough"
    kinds = bounds["kinds"]
    most = kinds["convolutions"] / sum(kinds.values())
    if most > 0.5:
        return f"its convolutions ({most:.0%} of the time), which reach {reach:.0%} of the matrix rate"
    return f"memory traffic of everything that is no convolution ({1 - most:.0%} of the time)"


def listing(values: dict[str, float], show: Callable[[float], str]) -> str:
    """Names and values, the largest first."""
    return ", ".join(f"{name} {show(value)}" for name, value in sorted(values.items(), key=lambda item: -item[1]))


def print_outlook(job: Job, bounds: dict[str, Any]) -> None:
    """Say what the paper's step would ask of an H100, read from its profile on this processor."""
    flop, traffic, kinds = bounds["flop"], sum(bounds["bytes"].values()), bounds["kinds"]
    operations_s, traffic_s, wanted_s = flop / _H100_FLOPS, traffic / _H100_BYTES, 1 / _STEPS_PER_S
    print(
        f"\nThe paper's settings ({job.size}) were not timed on a GPU; the script is ready: python "
        "benchmarks/train_step.py --paper --device cuda. Read from a profile on this processor "
        f"({bounds['precision']}, {bounds['profiled_seconds']:.2f} s a step):\n"
    )
    print(f"- {_STEPS_PER_S} steps/s leave {wanted_s * 1e3:.0f} ms a step")
    print(
        f"- {flop / 1e12:.2f} TFLOP a step: {operations_s * 1e3:.1f} ms at an H100's published dense bf16 rate "
        f"({_H100_FLOPS / 1e12:.0f} TFLOP/s); {operations_s / wanted_s:.0%} of it has to be reached"
    )
    print(
        f"- {traffic / 1e9:.1f} GB a step with operators as they stand: {traffic_s * 1e3:.1f} ms at its published "
        f"{_H100_BYTES / 1e12:g} TB/s, {traffic_s / wanted_s:.0%} of the time there is: "
        f"{listing(bounds['bytes'], lambda value: f'{value / 1e9:.1f} GB')}"
    )
    print(f"- time here: {listing(kinds, lambda value: f'{value / sum(kinds.values()):.0%}')}")
    print(f"- would be bound by {'memory traffic' if traffic_s > operations_s else 'operations'}")


def describe_versions() -> str:
    """Versions of what was measured."""
    names = ("mindgap", "torch", "monai", "accelerate", "numpy")
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {importlib.metadata.version(n)}" for n in names)])


def save(
    options: argparse.Namespace,
    jobs: dict[str, Job],
    found: Found,
    targets: list[Target],
    bounds: dict[str, Any] | None,
    outlook: tuple[Job, dict[str, Any]] | None,
) -> None:
    """Write everything as JSON."""
    text = json.dumps(
        {
            "versions": describe_versions(),
            "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
            "jobs": {key: {**asdict(job), "store": ""} for key, job in jobs.items()},
            "rounds": found,
            "targets": [asdict(target) | {"met": target.met} for target in targets],
            "bounds": bounds,
            "outlook": None if outlook is None else outlook[1],
        },
        indent=1,
    )
    options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
