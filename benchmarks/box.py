"""How long the network in the box takes for a patient, NIfTI to NIfTI: warm, and as a process of its own.

    python benchmarks/box.py --case PATIENT --rounds 5

Medians with the range over the rounds; for all sequences of the case and for FLAIR alone. Warm: loaded once, reading,
computing and writing included. Cold: `mindgap segment`, from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import mindgap
from mindgap.data.cohort import case_from_folder
from mindgap.processor import detect_processor, keep_freed_memory
from mindgap.sequences import Sequence

FLAGS = {Sequence.T1: "t1", Sequence.T2: "t2", Sequence.T1CE: "t1ce", Sequence.FLAIR: "flair"}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, required=True, help="a folder with four sequences at 1 mm")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    keep_freed_memory()
    images = {FLAGS[s]: source.path for s, source in case_from_folder(words.case, label=False).images.items()}
    network = mindgap.load()
    processor = detect_processor("auto")
    print(f"{processor.kind}, {network.choice.name} {network.precision}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seg.nii.gz"
        for name, given in (("all sequences", images), ("FLAIR alone", {"flair": images["flair"]})):
            warm = rounds(words.rounds, lambda given=given: mindgap.segment(**given, model=network, out=out))
            cold = rounds(words.rounds, lambda given=given: call(given, out))
            print(f"{name:<14} warm {warm}   cold {cold}")


def call(images: Mapping[str, Path], out: Path) -> None:
    """One process."""
    flags = [word for name, path in images.items() for word in (f"--{name}", str(path))]
    subprocess.run(
        [sys.executable, "-m", "mindgap", "segment", *flags, "-o", str(out)], check=True, capture_output=True
    )


def rounds(count: int, run: Callable[[], object]) -> str:
    """Median and range in seconds, after one round that is not counted."""
    run()
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return f"{statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]"


if __name__ == "__main__":
    main()
