"""mindgap evaluate: scores of a trained network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say

if TYPE_CHECKING:
    from mindgap.evaluation.scores import Score
    from mindgap.evaluation.summary import SummaryRow


@dataclass(frozen=True)
class Evaluate:
    """Score a trained network on a cohort with reference labels: WT, TC, ET, and ETpp (ET without small predictions).

    Beside the network stands the best single threshold on the same sequences, fitted on its training cases.

    Attributes:
        data: Cohort with labels; in the native grid, not the prepared store.
        model: Run folder; or a network without its run, such as box, which needs --cases all and -o. Masks and settings
            then lie beside OUT, in NAME-evaluation.
        out: Where the scores go besides RUN/scores.csv.
        baseline: threshold, or none.
        subsets: What the network is to look at, such as T1+T2,FLAIR; all are the fifteen. By default all it takes.
        metrics: Which columns are computed: hd95 (Dice, HD95), lesions (lesion-wise Dice too), default (surface
            Dice too), all (HD95 in medpy's convention too).
        protocol: strict opens only the files of a subset. leaky takes crop and intensity scale from all four files, as
            many published scores do.
        grid: native compares masks on the grid of the files, model on the network's.
        protokd_crop: Count only what lies in the fixed crop of ProtoKD's tables (BraTS grid).
        cases: test scores the test part of the run's split, all scores every case of DATA.
        labels: Label convention of DATA, where its files do not tell.
        name: Name of the network in the table; the run folder's by default.
        coverage: Half-overlapping tiles as in the paper's base, or the whole brain in one pass; card: as the network is
            meant to be used, which is tiles for all but the box.
        decision: How probabilities become a mask. most_probable takes the class of each voxel, as in the paper.
            expected_dice takes of each region the mask whose Dice is expected to be highest, which is not empty where a
            sequence shows a region poorly. card: as the network is meant to be used.
        engine: What computes: torch, as for the tables of the paper, or openvino; auto takes what `doctor` shows.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
    """

    data: Annotated[Path, tyro.conf.Positional]
    model: Path
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    baseline: Literal["threshold", "none"] = "threshold"
    subsets: str | None = None
    metrics: Literal["default", "hd95", "lesions", "all"] = "default"
    protocol: Literal["strict", "leaky"] = "strict"
    grid: Literal["native", "model"] = "native"
    protokd_crop: bool = False
    cases: Literal["test", "all"] = "test"
    labels: str | None = None
    name: str | None = None
    coverage: Literal["card", "tiles", "whole"] = "card"
    decision: Literal["card", "most_probable", "expected_dice"] = "card"
    engine: Literal["auto", "torch", "openvino"] = "torch"
    device: str = "auto"
    precision: str = "auto"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Evaluate, words, verb="evaluate")
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    from mindgap.api import evaluate, evaluation_folder
    from mindgap.data.history import history_of
    from mindgap.data.patients import of_same_patients
    from mindgap.evaluation.presets import find_preset
    from mindgap.evaluation.rules import Rules
    from mindgap.files import read_json
    from mindgap.inference.shipped import model_folder
    from mindgap.runfiles import EVALUATION
    from mindgap.sequences import parse_subsets

    rules = Rules(find_preset(settings.metrics), settings.protocol, settings.grid, settings.protokd_crop)
    model = model_folder(settings.model)
    place = evaluation_folder(model, settings.out)
    scores, failed = evaluate(
        model,
        settings.data,
        settings.out,
        subsets=None if settings.subsets is None else parse_subsets(settings.subsets),
        rules=rules,
        baseline=settings.baseline == "threshold",
        cases=settings.cases,
        labels=settings.labels,
        name=settings.name,
        device=settings.device,
        precision=settings.precision,
        coverage=None if settings.coverage == "card" else settings.coverage,
        engine=settings.engine,
        decision=None if settings.decision == "card" else settings.decision,
        progress=ProgressLine("scoring"),
    )
    record = read_json(place / EVALUATION)
    spacings_mm = [(x, y, z) for x, y, z in record["spacings_mm"]]
    print_scores(scores, rules.describe(spacings_mm))
    history = history_of(model)
    known = of_same_patients({score.case for score in scores}, history.known)
    if known:
        some = ", ".join([*known[:3], *["..."][: len(known) > 3]])
        say(f"{len(known)} of these cases show patients the network learnt from or was chosen by ({some}): this is no "
            "estimate of its accuracy.")  # fmt: skip
    elif not history.known:
        say(f"{model.name} does not say what it has learnt: on cases among that this is no estimate of its accuracy.")
    if place != model and settings.baseline == "threshold":
        say(f"no threshold baseline: {model.name} comes without the cases it would be fitted on.")
    for case, names in record["lacking"].items():
        say(f"{case} lacks a sequence and is not scored on {', '.join(names)}")
    for reason in failed.values():
        say(f"not scored: {reason}")
    return 1 if failed else 0


def print_scores(scores: Sequence[Score], explained: Sequence[str] | None = None) -> None:
    """Print one row per model and subset: mean Dice with its interval, then the other columns, then what they mean.

    Args:
        scores: Rows of scores.csv.
        explained: Lines about the rules; those of the default ones when None.
    """
    from mindgap.evaluation.presets import DEFINITIONS
    from mindgap.evaluation.rules import DEFAULT_RULES
    from mindgap.evaluation.scores import TABLE_REGIONS
    from mindgap.evaluation.summary import average_subsets, summarise

    rows = summarise(scores) + summarise(average_subsets(scores))
    print_table(
        ["model", "subset", "n", *(f"Dice {region}" for region in TABLE_REGIONS), "mean"],
        (
            [
                row.model,
                row.subset,
                str(row.n),
                *(row.dice[r].text() for r in TABLE_REGIONS),
                _number(row.mean.mean),
            ]
            for row in rows
        ),
    )
    columns = [column for column in DEFINITIONS if column != "dice" and any(column in row.means for row in rows)]
    say(f"{' / '.join(TABLE_REGIONS)}:")
    print_table(
        ["model", "subset", *(DEFINITIONS[column].title for column in columns)],
        ([row.model, row.subset, *(_values(row, column) for column in columns)] for row in rows),
    )
    say("means over cases, Dice with 95 % bootstrap intervals; the column mean is that of WT, TC and ET.")
    for line in DEFAULT_RULES.describe() if explained is None else explained:
        say(line)


def _values(row: SummaryRow, column: str) -> str:
    values = row.means.get(column, dict.fromkeys(row.dice, math.nan)).values()
    return " / ".join(_number(value, 1 if column.endswith("_mm") else 3) for value in values)


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
