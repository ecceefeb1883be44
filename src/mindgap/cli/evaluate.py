"""mindgap evaluate: scores of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say

if TYPE_CHECKING:
    from mindgap.evaluation.scores import Score


@dataclass(frozen=True)
class Evaluate:
    """Score a trained network on a cohort with reference labels: Dice and HD95 of WT, TC and ET, in the native grid.

    Beside the network stands the best single threshold on the same sequences, fitted on its training cases.

    Attributes:
        data: Cohort with labels; in the native grid, not the prepared store.
        model: Run folder.
        out: Where the scores go besides RUN/scores.csv.
        baseline: threshold, or none.
        cases: test scores the test part of the run's split, all scores every case of DATA.
        labels: Label convention of DATA, where its files do not tell.
        name: Name of the network in the table; the run folder's by default.
        coverage: Half-overlapping tiles as in the paper's base, or the whole brain in one pass.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
    """

    data: Annotated[Path, tyro.conf.Positional]
    model: Path
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    baseline: Literal["threshold", "none"] = "threshold"
    cases: Literal["test", "all"] = "test"
    labels: str | None = None
    name: str | None = None
    coverage: Literal["tiles", "whole"] = "tiles"
    device: str = "auto"
    precision: str = "auto"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Evaluate, words, verb="evaluate")
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    from mindgap.api import evaluate

    scores, failed = evaluate(
        settings.model,
        settings.data,
        settings.out,
        baseline=settings.baseline == "threshold",
        cases=settings.cases,
        labels=settings.labels,
        name=settings.name,
        device=settings.device,
        precision=settings.precision,
        coverage=settings.coverage,
        progress=ProgressLine("scoring"),
    )
    print_scores(scores)
    if settings.cases == "all":
        say("every case of DATA was scored, those the network learnt from too: this is no estimate of its accuracy.")
    for reason in failed.values():
        say(f"not scored: {reason}")
    return 1 if failed else 0


def print_scores(scores: Sequence[Score]) -> None:
    """Print one row per model and subset: mean Dice with its interval, and HD95."""
    from mindgap.evaluation.metrics import DEFINITIONS
    from mindgap.evaluation.statistics import Interval
    from mindgap.evaluation.summary import summarise
    from mindgap.regions import REGIONS

    def cell(interval: Interval) -> str:
        return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"

    header = ["model", "subset", "n", *(f"Dice {region}" for region in REGIONS), "mean"]
    header += [f"HD95 {region}" for region in REGIONS]
    rows = [
        [
            row.model,
            row.subset,
            str(row.n),
            *(cell(row.dice[str(region)]) for region in REGIONS),
            f"{row.mean.mean:.3f}",
            *(f"{row.hd95_mm[str(region)]:.1f}" for region in REGIONS),
        ]
        for row in summarise(scores)
    ]
    print_table(header, rows)
    say("native grid; Dice and HD95 in mm are means over cases, with 95 % bootstrap intervals.")
    for definition in DEFINITIONS.values():
        say(definition.text)
