"""mindgap prepare: from MRI files to a store to train from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say


@dataclass(frozen=True)
class Prepare:
    """Prepare a cohort for training: resample, normalise and crop every sequence by its own brain.

    Reads BraTS 2017-2021 and 2023+ trees, MSD Task01 (4-D), nnU-Net raw folders with dataset.json, folders with
    common file names, and CSV manifests (columns: case, t1, t2, t1ce, flair, label). Cases may lack sequences. A bad
    case is listed and the rest goes on; a second call does only what is missing or has changed. A store that was
    prepared with another spacing or normalisation is refused.

    Attributes:
        data: The cohort.
        out: Folder of the store.
        spacing_mm: Voxel edge to work at, such as 2; none keeps the grid of the cases.
        split: protokd (the paper's lists), a folder with train, val and test lists, fractions of patients such as
            0.7/0.1/0.2, or auto: DATA/splits where there is one, else 0.7/0.1/0.2. With :2/4 behind it, the second of
            four folds of the cases that are not for the test.
        also: Another cohort whose cases join those that train, such as phantoms beside few patients: they choose
            nothing and judge nothing, and the threshold baseline does not know them. FOLDER=CONVENTION where its files
            do not tell how labels are numbered. Can be given several times.
        labels: Label convention (brats2017, brats2023, brats2024-postop, brats-ped, msd, nnunet) where the files do not
            tell.
        normalisation: percentile maps the 0.5 and 99.5 percentile of the brain to -1 and 1; zscore divides by the
            standard deviation.
        codes: How intensities are stored: uint8 takes half the space of float16, and no loss of accuracy from it was
            found (docs/performance.md).
        seed: Of a split by fractions.
        workers: Cases at the same time; 0 is one per processor.
    """

    data: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    spacing_mm: float | Literal["none"] = "none"
    split: str = "auto"
    also: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    labels: str | None = None
    normalisation: Literal["percentile", "zscore"] = "percentile"
    codes: Literal["uint8", "float16"] = "uint8"
    seed: int = 0
    workers: int = 0


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Prepare, words, verb="prepare")
    from mindgap.api import prepare
    from mindgap.data.prepared import Preparation
    from mindgap.processor import cpu_count, keep_freed_memory

    keep_freed_memory()
    spacing_mm = None if settings.spacing_mm == "none" else settings.spacing_mm
    store = prepare(
        settings.data,
        settings.out,
        Preparation(spacing_mm=spacing_mm, normalisation=settings.normalisation),
        split=settings.split,
        also=dict(map(folder_and_convention, settings.also)),
        labels=settings.labels,
        codes=settings.codes,
        seed=settings.seed,
        workers=settings.workers or cpu_count(),
        progress=ProgressLine("preparing"),
    )
    gib = sum(store.path_of(case_id).stat().st_size for case_id in store.cases) / 2**30
    split = store.split["name"]
    say(f"{len(store.cases)} cases ({gib:.2f} GiB) in {store.folder}, labels {store.convention}, split {split}")
    for joined in store.split["joined"]:
        say(f"{len(joined['cases'])} cases to train from {joined['source']}, labels {joined['convention']}")
    rows = [[part, str(len(store.part(part)))] for part in ("train", "validation", "test")]
    rows += [["in no list", str(len(store.split["unassigned"]))], ["failed", str(len(store.failed))]]
    rows += [
        [f"with {sequence}", str(sum(sequence in case.sequences for case in store.cases.values()))]
        for sequence in store.sequences
    ]
    print_table(["", "cases"], rows)
    for reason in store.failed.values():
        say(f"left out: {reason}")
    return 1 if store.failed else 0


def folder_and_convention(text: str) -> tuple[Path, str | None]:
    """From FOLDER or FOLDER=CONVENTION; a folder may have a = in its name."""
    from mindgap.regions import CONVENTIONS

    folder, sign, name = text.rpartition("=")
    return (Path(folder), name) if sign and name in CONVENTIONS else (Path(text), None)
