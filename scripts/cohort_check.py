"""Segment a cohort of phantoms of which five are broken, kill it with SIGKILL in the middle, resume, and verify.

    python scripts/cohort_check.py --cases 30 --spacing-mm 4

Five cases are broken in five ways. The first life is killed when a third of the cases has ended, the second goes on
with --resume. Then every sound case has a whole mask, those of the first life are the same files (SHA-256 and time of
writing), the five broken ones are listed with their reasons, and the exit code says that some failed. Exits 1 if
anything is not so.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from mindgap.data.prepared import Preparation
from mindgap.files import sha256_of
from mindgap.inference.status import read_status
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard
from mindgap.networks.weights import save_network
from mindgap.runfiles import STATUS, read_lines
from mindgap.sequences import SEQUENCES

PATIENCE_S = 900.0
Files = dict[str, tuple[int, str]]


def main() -> int:
    """Run the check; 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--spacing-mm", type=float, default=4.0)
    settings = parser.parse_args()
    if settings.cases < len(BREAKS) + 4:
        parser.error(f"at least {len(BREAKS) + 4} cases are needed")
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder), settings.cases, settings.spacing_mm)


def check(root: Path, count: int, spacing_mm: float) -> int:
    """Make, break, segment, kill, resume, verify."""
    cohort, out = root / "cohort", root / "masks"
    subprocess.run(
        [*_mindgap("phantom"), str(cohort), "--cases", str(count), "--spacing-mm", f"{spacing_mm:g}"], check=True
    )
    broken = break_cases(sorted(path for path in cohort.glob("*GG/*") if path.is_dir()))
    model = save_untrained(root / "model")
    words = [*_mindgap("segment"), str(cohort), "--model", str(model), "-o", str(out), "--coverage", "whole"]

    began = time.perf_counter()
    killed = kill_when(words, lambda: len(read_lines(out / STATUS)) >= count // 3)
    lines = read_lines(out / STATUS)
    finished = {line["case"] for line in lines if line["status"] == "done"}  # a mask without its line is made again
    first = {case: file for case, file in masks_of(out).items() if case in finished}
    middle = time.perf_counter()
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=False)
    seconds = (middle - began, time.perf_counter() - middle)

    last, status = masks_of(out), read_status(out)
    repeated = [line["case"] for line in read_lines(out / STATUS)[len(lines) :] if line["status"] == "done"]
    listed = {line.removeprefix("failed: ").split(":")[0] for line in done.stdout.splitlines() if "failed: " in line}
    facts = {
        "killed by SIGKILL in the middle": killed == -signal.SIGKILL and 0 < len(first) < count - len(broken),
        "every sound case has a mask": len(last) == count - len(broken),
        "masks of the first life untouched": all(last.get(case) == file for case, file in first.items()),
        "no finished case segmented again": not finished & set(repeated),
        "exactly the broken cases listed": listed == set(broken),
        "and in the books": {c for c, line in status.items() if line.status == "failed"} == set(broken),
        "exit code says that some failed": done.returncode == 1,
        "no half file left": not list(out.rglob(".*.part.*")),
    }
    print(f"\n{count} cases, {len(broken)} broken; killed after {len(first)} masks ({seconds[0]:.0f} s), ", end="")
    print(f"resumed: {len(repeated)} more ({seconds[1]:.0f} s)\n")
    for case, way in broken.items():
        print(f"  {case}  {way:<22} {status[case].reason if case in status else done.stderr}")
    print()
    for fact, holds in facts.items():
        print(f"  {'yes' if holds else 'NO ':<4} {fact}")
    if not all(facts.values()):
        print(done.stdout + done.stderr, file=sys.stderr)
    return 0 if all(facts.values()) else 1


def break_cases(folders: list[Path]) -> dict[str, str]:
    """Break five cases, spread over the cohort, in five ways; gives the way by case."""
    chosen = folders[1 :: len(folders) // len(BREAKS)][: len(BREAKS)]
    for folder, change in zip(chosen, BREAKS.values(), strict=True):
        change(next(folder.glob("*_flair.nii.gz")))
    return {folder.name: way for folder, way in zip(chosen, BREAKS, strict=True)}


def save_untrained(folder: Path) -> Path:
    """A network that takes FLAIR: what it says is of no interest here."""
    torch.manual_seed(0)
    arguments = {"channels_in": 1, "width": 4}
    card = ModelCard("vnet", arguments, SEQUENCES[3:], asdict(Preparation()), crop=16, method="unimodal")
    save_network(folder, build_network("vnet", arguments), card)
    return folder


def kill_when(words: list[str], due: Callable[[], bool]) -> int:
    """Run a command and kill it when something is due; gives its exit code."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not due() and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    return process.wait()


def masks_of(out: Path) -> Files:
    """Case -> time of writing and SHA-256 of its mask."""
    return {p.parent.name: (p.stat().st_mtime_ns, sha256_of(p)) for p in out.glob("*/[!.]*_seg.nii.gz")}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def _label(path: Path) -> None:
    path.write_bytes(next(path.parent.glob("*_seg.nii.gz")).read_bytes())


def _change(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(image.get_fdata(dtype=np.float32)), image.affine), path)


def _nan(array: np.ndarray) -> np.ndarray:
    array[tuple(n // 2 for n in array.shape)] = np.nan
    return array


BREAKS: dict[str, Callable[[Path], object]] = {
    "truncated gzip": _cut,
    "sequence missing": Path.unlink,
    "NaN": lambda path: _change(path, _nan),
    "a mask as image": _label,
    "two axes": lambda path: _change(path, lambda array: array[:, :, array.shape[2] // 2]),
}


def _mindgap(verb: str) -> list[str]:
    return [sys.executable, "-m", "mindgap", verb]


if __name__ == "__main__":
    sys.exit(main())
