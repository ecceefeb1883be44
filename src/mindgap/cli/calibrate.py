"""mindgap calibrate: what is known of a network from cases it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say

if TYPE_CHECKING:
    from mindgap.inference.assessment import Assessment, Verdict
    from mindgap.inference.confidence import Confidence
    from mindgap.inference.predictor import Predictor
    from mindgap.sequences import Subset

TRIALS = "confidence-test.csv"


@dataclass(frozen=True)
class Calibrate:
    """Measure a network on cases it did not learn from; `mindgap segment` then says how far a mask can be trusted.

    Writes confidence.json beside the weights: Dice of every case, subset and region, the temperature of the
    probabilities, how expected Dice relates to reached Dice, how far volumes were off, and what the cases look like.

    Attributes:
        model: Run folder; with --cases none also a network that comes with mindgap, such as box.
        data: Cohort with labels, or the store that was made from it; by default the run's own.
        cases: validation (those of the run), all (every case of DATA that is neither a training nor a test case of the
            run), names joined by commas, or none: what is known stays as it is, and is only held against --test.
        subsets: What to measure, such as T1+T2,FLAIR; all are the fifteen. By default all the network takes.
        level: Probability of the volume intervals; n patients reach n/(n+1) at most.
        review_below: Expected Dice of WT below which a mask is flagged.
        test: A second cohort with labels, on which the estimates are held against what is so.
        out: Folder for the test's table (confidence-test.csv) and picture (reliability.png); the run folder by default,
            where `mindgap report` looks for the picture.
        labels: Label convention, where the files do not tell.
        coverage: As of `mindgap segment`; calibrate as you will segment.
        engine: As of `mindgap segment`.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
    """

    model: Annotated[Path, tyro.conf.Positional]
    data: Path | None = None
    cases: str = "validation"
    subsets: str | None = None
    level: float = 0.9
    review_below: float = 0.7
    test: Path | None = None
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    labels: str | None = None
    coverage: Literal["auto", "tiles", "whole"] = "auto"
    engine: Literal["auto", "torch", "openvino"] = "auto"
    device: str = "auto"
    precision: str = "auto"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Calibrate, words, verb="calibrate")
    from mindgap.data.cohort import discover_labelled
    from mindgap.errors import SettingError
    from mindgap.inference.confidence import write_confidence
    from mindgap.inference.predictor import Predictor
    from mindgap.processor import keep_freed_memory
    from mindgap.runfiles import CONFIDENCE
    from mindgap.sequences import parse_subsets

    if settings.out is not None and settings.test is None:
        raise SettingError("--out is where the table of --test goes: name a test cohort too, or leave it out.")
    keep_freed_memory()
    folder = _folder_of(settings)
    wanted = None if settings.subsets is None else parse_subsets(settings.subsets)
    predictor = Predictor.load(
        folder,
        device=settings.device,
        precision=settings.precision,
        coverage=settings.coverage,
        engine=settings.engine,
    )
    trial = None  # looked for before the work
    if settings.test is not None:
        trial, _ = discover_labelled(settings.test, settings.labels)
    confidence = what_is_known(predictor) if settings.cases == "none" else _measure(settings, predictor, wanted)
    print_confidence(confidence)
    if settings.cases != "none":
        write_confidence(folder, confidence)
        say(f"wrote {folder / CONFIDENCE}")
    if trial is not None:
        from mindgap.inference.assessment import assess

        found = assess(predictor, confidence, trial, subsets=wanted, progress=ProgressLine("testing"))
        print_assessment(found, confidence.level)
        write_assessment(found, settings.out or folder, predictor)
    return 0


def _folder_of(settings: Calibrate) -> Path:
    """The network that is meant; one that comes with the package is only held against cases, not measured again."""
    from mindgap.errors import SettingError
    from mindgap.inference.shipped import model_folder

    if settings.cases == "none":
        if settings.test is None or settings.out is None:
            raise SettingError("--cases none writes nothing beside the weights: name a cohort with --test, and --out.")
        _refuse_idle(settings)
        return model_folder(settings.model)
    if not settings.model.exists() and model_folder(settings.model):  # which says what there is
        raise SettingError(
            f"what is known of {settings.model} came with it and is not measured again: hold it against cases of yours "
            "with --cases none --test COHORT -o OUT."
        )
    return settings.model


def _measure(settings: Calibrate, predictor: Predictor, wanted: tuple[Subset, ...] | None) -> Confidence:
    from mindgap.inference.calibration import calibrate

    return calibrate(
        predictor,
        settings.data,
        cases=settings.cases,
        subsets=wanted,
        level=settings.level,
        review_below=settings.review_below,
        labels=settings.labels,
        progress=ProgressLine("calibrating"),
    )


def _refuse_idle(settings: Calibrate) -> None:
    """Refuse what would be ignored where nothing is measured."""
    from mindgap.errors import SettingError

    defaults = {f.name: f.default for f in fields(settings)}
    idle = [n for n in ("data", "level", "review_below") if getattr(settings, n) != defaults[n]]
    if idle:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise SettingError(f"{flags} would do nothing with --cases none, which measures nothing: leave it out.")


def what_is_known(predictor: Predictor) -> Confidence:
    """The confidence.json that lies beside the weights.

    Raises:
        SettingError: There is none.
    """
    from mindgap.errors import SettingError
    from mindgap.inference.confidence import read_confidence

    known = read_confidence(predictor.folder, predictor.sha256)
    if known is None:
        raise SettingError(f"{predictor.folder} was not calibrated: leave --cases none out, and it will be.")
    return known


def print_confidence(confidence: Confidence) -> None:
    """Print a row per subset: cases, Dice, the temperature in use, what the intervals can reach."""
    from mindgap.evaluation.conformal import highest_level
    from mindgap.evaluation.statistics import bootstrap_mean
    from mindgap.inference.confidence import POOLED
    from mindgap.regions import REGIONS

    rows = []
    for subset in dict.fromkeys(row.subset for row in confidence.observed):
        dice = {name: bootstrap_mean(values) for name, values in confidence.dice(subset).items()}
        n, patients = dice["mean"].n, dice["mean"].patients
        reached = highest_level(patients) >= confidence.level
        level = f"{confidence.level:.0%}" if reached else f"not available (at most {highest_level(patients):.0%})"
        own = "" if subset in confidence.temperatures else " (all subsets)"
        rows.append(
            [
                subset,
                str(n) if patients == n else f"{n} of {patients} patients",
                " / ".join(f"{dice[str(region)].mean:.3f}" for region in REGIONS),
                dice["mean"].text(),
                f"{confidence.temperature(subset):.2f}{own}",
                level,
            ]
        )
    print_table(["subset", "n", "Dice WT / TC / ET", "mean", "temperature", "volume intervals"], rows)
    pooled = confidence.temperatures[POOLED]
    say(f"temperature of all subsets {pooled.value:.2f} [{pooled.low:.2f}, {pooled.high:.2f}], {pooled.n} cases; above "
        "1 the network was too sure.")  # fmt: skip


def print_assessment(found: Assessment, level: float) -> None:
    """Print a row per subset and region: errors of expected Dice, coverage, ECE."""
    print_table(
        ["subset", "region", "n", "Dice", "MAE of expected Dice", "MAE of the mean", "Spearman",
         f"coverage of {level:.0%}", "ECE before", "after"],
        (
            [
                row.subset, row.region, str(row.n), f"{row.dice:.3f}",
                row.error.text(), f"{row.constant_error:.3f}",
                f"{row.rank_correlation:.2f}" if math.isfinite(row.rank_correlation) else "-",
                _coverage(row),
                f"{row.ece_before:.4f}", f"{row.ece_after:.4f}",
            ]
            for row in found.verdicts
        ),
    )  # fmt: skip
    if found.left_out:
        say(f"left out, as the network has learnt from them or was calibrated on them: {', '.join(found.left_out)}")
    say("MAE with 95 % bootstrap intervals over cases; of the mean: where every case is given the mean Dice of the "
        "calibration cases. Coverage of patients, with exact 95 % intervals (Clopper-Pearson).")  # fmt: skip


def write_assessment(found: Assessment, out: Path, predictor: Predictor) -> None:
    """Write the table of cases and the picture."""
    from mindgap.inference.assessment import write_trials
    from mindgap.report.figures import save_png
    from mindgap.report.reliability import draw_reliability
    from mindgap.runfiles import RELIABILITY

    write_trials(out / TRIALS, found.trials)
    pairs = [(trial.subset, trial.region, trial.expected_dice, trial.dice) for trial in found.trials]
    save_png(draw_reliability(found.bins, pairs, title=predictor.folder.resolve().name), out / RELIABILITY)
    say(f"wrote {out / TRIALS} and {out / RELIABILITY}")


def _coverage(row: Verdict) -> str:
    _, low, high = row.coverage
    return f"{row.covered}/{row.intervals} [{low:.2f}, {high:.2f}]" if row.intervals else "-"
