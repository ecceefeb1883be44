"""mindgap export: a trained network made faster on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say


@dataclass(frozen=True)
class Export:
    """Make a trained network faster where that is measured to cost nothing.

    Two things are tried on the validation cases of the run: the whole brain in one pass instead of half-overlapping
    tiles, and int8 instead of fp32 for processors without native bf16 (most laptops), calibrated on training cases.
    Each is kept if mean Dice against the labels is at most 0.005 lower in every region, and `mindgap segment` then
    uses it by itself. exported.json in the run folder holds the figures.

    Attributes:
        model: Run folder.
        data: Cohort with labels that the run was prepared from.
        int8: Make an int8 network (needs openvino and nncf).
        labels: Label convention of DATA, where its files do not tell.
        device: auto, cpu or cuda.
    """

    model: Annotated[Path, tyro.conf.Positional]
    data: Path
    int8: bool = True
    labels: str | None = None
    device: str = "auto"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Export, words, verb="export")
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    from mindgap.api import export
    from mindgap.inference.exported import RECORD

    exported = export(
        settings.model,
        settings.data,
        int8=settings.int8,
        labels=settings.labels,
        device=settings.device,
        progress=ProgressLine("measuring"),
        say=say,
    )
    rows = []
    for gate in (exported.whole, exported.int8):
        for way, dice in () if gate is None else gate.dice.items():
            rows.append([way, *(f"{value:.4f}" for value in dice.values())])
    regions = next(iter(exported.whole.dice.values())) if exported.whole is not None else ()
    print_table(["mean Dice", *regions], rows)
    say(f"wrote {settings.model / RECORD}")
    return 0
