"""NIfTI to NIfTI: mindgap beside the reference protocol of the paper's base and beside MONAI's BraTS network.

    python benchmarks/segment.py                 # four ratios, about a quarter of an hour on two cores
    python benchmarks/segment.py --rounds 1 --model RUN --case FOLDER

VNet of width 16 and four sequences at 1 mm. Every way is a process of its own that stays; a round asks each in turn,
and each round begins with another one. Reading and writing are included; memory is the peak of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch
from bounds import matrix_rate

from mindgap.data.cohort import case_from_folder
from mindgap.data.phantom import write_cohort
from mindgap.data.prepared import Preparation
from mindgap.inference.export import make_int8
from mindgap.inference.exported import Exported, Gate, quantised_file, write_exported
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard
from mindgap.networks.weights import load_network, save_network
from mindgap.processor import calm_threads, detect_processor
from mindgap.sequences import SEQUENCES

WARM = ("mindgap", "reference", "monai")
BESIDE = "mindgap-int8"
"""Also asked where bf16 is native and chosen, if there is an int8 network: whether that choice is the faster one."""
SAME_WINDOWS = ("mindgap-windows", "reference-windows")
ASKED = {True: (20.0, 4.0, 8.0, 6.0), False: (10.0, 2.8, 5.0, 6.0)}
"""Native bf16 -> the ratios that are asked for: warm, same windows, cold, MONAI."""
MOST_GIB = 6.0
CROP = 80


class Way:
    """A process that segments when it is asked to.

    Args:
        name: Of the way, in ``segment_ways.py``.
        case: Folder of the images.
        model: Model folder.
        out: The mask it writes.
    """

    def __init__(self, name: str, case: Path, model: Path, out: Path) -> None:
        self.name, self.seconds, self.phases = name, [], []
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("segment_ways.py")), name, str(case), str(model), str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(name),
        )
        self.seconds: list[float]
        self.phases: list[dict[str, float]]
        self.peak_gib = 0.0

    def ask(self, *, keep: bool = True) -> None:
        """Segment once; noted unless it is to warm up."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: the process ended with {self.process.wait()}")
        found = json.loads(line)
        self.peak_gib = found["peak_gib"]
        if keep:
            self.seconds.append(found["seconds"])
            self.phases.append(found["phases"])
            print(f"{self.name:<20} {found['seconds']:.2f} s", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Let the process go."""
        self.process.communicate()


def _environment(name: str) -> dict[str, str]:
    environment = dict(os.environ)
    if name.startswith("mindgap"):
        calm_threads(environment)  # as mindgap.cli does
    return environment


def cold(name: str, case: Path, model: Path, out: Path) -> float:
    """Seconds of a whole process, from its start to its end."""
    if name == "mindgap":
        command = [sys.executable, "-m", "mindgap", "segment", str(case), "--model", str(model), "-o", str(out)]
        command += ["--coverage", "whole"]
    else:
        ways = Path(__file__).with_name("segment_ways.py")
        command = [sys.executable, str(ways), name, str(case), str(model), str(out), "--once"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_environment(name))
    seconds = time.perf_counter() - began
    print(f"{name + ' cold':<20} {seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


def make_model(folder: Path, case: Path) -> Path:
    """A VNet of width 16 with random weights; how it is trained plays no part in how fast it is.

    It has an int8 network beside it, as ``mindgap export`` leaves one for a trained network that passes, and where bf16
    is not native mindgap takes that; random weights have no Dice to lose, so that its gate says nothing here. What int8
    costs a trained network is ``benchmarks/engines.py``.
    """
    torch.manual_seed(0)
    card = ModelCard(
        architecture="vnet",
        arguments={"channels_in": len(SEQUENCES), "width": 16},
        sequences=SEQUENCES,
        preparation=asdict(Preparation(spacing_mm=None)),
        crop=CROP,
        method="unimodal",
    )
    save_network(folder, build_network(card.architecture, card.arguments), card)
    make_int8(folder, [case_from_folder(case, label=False)])
    unjudged = Gate(True, "random weights: only its speed is measured", {}, {}, 0)
    write_exported(folder, load_network(folder).sha256, Exported(int8=unjudged))
    return folder


def interleave(names: tuple[str, ...], place: tuple[Path, Path, Path], rounds: int) -> dict[str, Way]:
    """Ask every way once a round, each round beginning with another one, after one that is not counted."""
    case, model, out = place
    ways = {name: Way(name, case, model, out / f"{name}.nii.gz") for name in names}
    for way in ways.values():
        way.ask(keep=False)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            ways[name].ask()
    for way in ways.values():
        way.end()
    return ways


def interleave_cold(place: tuple[Path, Path, Path], rounds: int) -> dict[str, list[float]]:
    """Seconds of whole processes, in turn; what is compiled for this processor lies in the cache from the warm ones."""
    case, model, out = place
    seconds: dict[str, list[float]] = {name: [] for name in WARM[:2]}
    for number in range(rounds):
        for name in sorted(seconds, reverse=bool(number % 2)):
            seconds[name].append(cold(name, case, model, out / f"{name}-cold.nii.gz"))
    return seconds


def ratio_of(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Median of the rounds' ratios, the least and the largest."""
    ratios = sorted(one / other for one, other in zip(slow, fast, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", type=Path, help="a folder with four sequences at 1 mm; a phantom by default")
    parser.add_argument("--model", type=Path, help="a model folder; a VNet of random weights by default")
    parser.add_argument("--json", type=Path, help="write what was measured")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        case = settings.case or write_cohort(out / "phantoms", cases=1, seed=0, spacing_mm=1.0)[0]
        model = settings.model or make_model(out / "model", case)
        place = (case, model, out)
        beside = detect_processor("cpu").native_bf16 and quantised_file(model).is_file()
        warm = interleave((*WARM, BESIDE) if beside else WARM, place, settings.rounds)
        same = interleave(SAME_WINDOWS, place, settings.rounds)
        colds = interleave_cold(place, settings.rounds)
    _print(warm, same, colds, settings.json)


def _print(warm: dict[str, Way], same: dict[str, Way], colds: dict[str, list[float]], kept: Path | None) -> None:
    processor = detect_processor("cpu")
    ratios = {
        "warm, against the reference protocol": ratio_of(warm["reference"].seconds, warm["mindgap"].seconds),
        "same 48 windows, engine alone": ratio_of(same["reference-windows"].seconds, same["mindgap-windows"].seconds),
        "one cold process": ratio_of(colds["reference"], colds["mindgap"]),
        "warm, against MONAI's SegResNet": ratio_of(warm["monai"].seconds, warm["mindgap"].seconds),
    }
    print(f"{processor.kind}; torch {torch.__version__}; {len(colds['mindgap'])} interleaved rounds, median [range]\n")
    print("| | seconds | peak GiB |\n|---|---|---|")
    for way in (*warm.values(), *same.values()):
        low, high = min(way.seconds), max(way.seconds)
        print(f"| {way.name} | {statistics.median(way.seconds):.2f} [{low:.2f}, {high:.2f}] | {way.peak_gib:.2f} |")
    for name, seconds in colds.items():
        print(f"| {name}, cold | {statistics.median(seconds):.2f} [{min(seconds):.2f}, {max(seconds):.2f}] | |")
    print("\n| mindgap is faster by | measured | asked for |\n|---|---|---|")
    for (text, (median, low, high)), asked in zip(ratios.items(), ASKED[processor.native_bf16], strict=True):
        print(f"| {text} | {median:.1f} [{low:.1f}, {high:.1f}] | {asked:g}{'' if median >= asked else ', NOT MET'} |")
    peak = warm["mindgap"].peak_gib
    print(f"| peak memory, GiB | {peak:.2f} | under {MOST_GIB:g}{'' if peak < MOST_GIB else ', NOT MET'} |")
    phases = warm["mindgap"].phases
    where = {name: statistics.median(found[name] for found in phases) for name in phases[0] if name != "gflop"}
    print("\nwhere the time goes: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in where.items()))
    gflop = phases[0].get("gflop", 0.0)
    precision = cast(Literal["fp32", "bf16"], "bf16" if processor.native_bf16 else "fp32")
    rate = matrix_rate("cpu", precision) / 1e9
    speed = gflop / where["network"]
    print(
        f"convolutions: {gflop:.0f} GFLOP in {where['network']:.2f} s, {speed:.0f} GFLOP/s; the machine's {precision} "
        f"matrix product reaches {rate:.0f} GFLOP/s, {speed / rate:.0%} of it is used"
    )
    if kept is not None:
        found: dict[str, Any] = {"processor": processor.kind, "ratios": ratios, "where": where, "cold": colds}
        found["ways"] = {way.name: [way.seconds, way.peak_gib] for way in (*warm.values(), *same.values())}
        kept.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
