"""mindgap phantom: a cohort of synthetic patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say


@dataclass(frozen=True)
class Phantom:
    """Write synthetic patients as a BraTS 2018 tree: physics on real anatomy with grown tumours.

    Prints the Dice of the best single threshold per sequence for the whole tumour, so that you see how hard the
    cohort is (real BraTS cases: FLAIR 0.6, T2 0.3, T1 and T1ce 0.15).

    Attributes:
        out: Folder of the cohort; finished cases in it are kept.
        cases: How many.
        seed: The same seed gives the same patients.
        spacing_mm: Voxel edge.
        workers: Cases at the same time; 0 is one per processor.
    """

    out: Annotated[Path, tyro.conf.Positional]
    cases: int = 12
    seed: int = 0
    spacing_mm: float = 2.0
    workers: int = 0


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Phantom, words, verb="phantom")
    from mindgap.data.phantom import write_cohort
    from mindgap.processor import cpu_count

    progress = ProgressLine("growing phantoms")
    folders = write_cohort(
        settings.out,
        cases=settings.cases,
        seed=settings.seed,
        spacing_mm=settings.spacing_mm,
        workers=settings.workers or cpu_count(),
        progress=lambda done, total: progress(done, total, ""),
    )
    print_difficulty(settings.out, {folder.name for folder in folders})
    others = sum(path.is_dir() for path in settings.out.glob("*GG/*")) - len(folders)
    if others:
        say(f"{settings.out} also holds {others} phantoms of other calls: who reads the folder reads all of them")
    return 0


def print_difficulty(cohort: Path, case_ids: set[str]) -> None:
    """Print volumes and the Dice of the best single threshold per sequence."""
    import numpy as np
    from numpy.typing import NDArray

    from mindgap.data.codes import encode
    from mindgap.data.cohort import discover
    from mindgap.data.preparation import prepare_case
    from mindgap.data.prepared import Preparation
    from mindgap.data.volume import volume_of_voxel_ml
    from mindgap.evaluation.threshold import fit_thresholds
    from mindgap.regions import CONVENTIONS, Region
    from mindgap.sequences import Sequence as MriSequence

    found = [files for files in discover(cohort).cases if files.case_id in case_ids]
    volumes: list[float] = []

    def prepared() -> Iterator[tuple[dict[MriSequence, NDArray[np.uint8]], NDArray[np.uint8]]]:
        for files in found:
            case = files.load(convention=CONVENTIONS["brats2017"])
            ready = prepare_case(case, Preparation())
            assert ready.target is not None
            volumes.append(int(np.count_nonzero(ready.target)) * volume_of_voxel_ml(case.reference.affine))
            yield dict(zip(ready.sequences, encode(ready.image), strict=True)), ready.target

    fitted = fit_thresholds(prepared())[Region.WT]
    say(f"{len(found)} cases in {cohort}; whole tumour: median {np.median(volumes):.0f} mL, "
        f"range {min(volumes):.0f}-{max(volumes):.0f} mL")  # fmt: skip
    print_table(
        ["sequence", "Dice of the best single threshold (WT)", "region is"],
        [[str(s), f"{t.dice:.2f}", "brighter" if t.above else "darker"] for s, t in fitted.items()],
    )
