"""A trained network held against labels: scores, masks and what was scored, written where a run keeps them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindgap.data.case import CaseFiles
from mindgap.data.cohort import Cohort, discover_labelled
from mindgap.data.history import cases_of
from mindgap.errors import MindgapError, SettingError
from mindgap.evaluation.rules import DEFAULT_RULES, Rules
from mindgap.evaluation.scores import Score, read_scores, write_scores
from mindgap.evaluation.threshold import thresholds_from_plain
from mindgap.files import PathLike, read_json, write_json
from mindgap.inference.predictor import Coverage, Predictor
from mindgap.inference.scoring import Scoring, score_cohort
from mindgap.inference.shipped import model_folder
from mindgap.networks.card import Decision
from mindgap.progress import Progress, silent
from mindgap.runfiles import EVALUATION, MANIFEST, PREDICTIONS, SCORES, THRESHOLDS
from mindgap.sequences import Subset


def evaluate(
    model: PathLike,
    data: PathLike,
    out: PathLike | None = None,
    *,
    subsets: Sequence[Subset] | None = None,
    rules: Rules = DEFAULT_RULES,
    baseline: bool = True,
    cases: str = "test",
    labels: str | None = None,
    name: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    coverage: Coverage | None = None,
    engine: str = "torch",
    decision: Decision | None = None,
    progress: Progress = silent,
) -> tuple[list[Score], dict[str, str]]:
    """Score a trained network on a cohort, beside the best single threshold.

    Writes the scores to ``out`` and into the run folder (scores.csv), masks under ``predictions/`` and what was
    scored in ``evaluation.json``; see :func:`evaluation_folder` for a network without its run.

    Args:
        model: Run folder, or a network without its run, such as that in the box.
        data: Cohort with reference labels.
        out: Where the scores go besides the run folder.
        subsets: What the network is to look at; every subset it takes when None.
        rules: Metrics, grid and protocol.
        baseline: Whether to score the threshold baseline too; a network without its run has none.
        cases: "test" for the test part of the run's split, "all" for every case of ``data``.
        labels: Label convention, where the layout does not tell.
        name: Name of the model in the table; the run folder's by default.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16.
        coverage: Half-overlapping "tiles" or the "whole" brain in one pass; as the model's card says when None.
        engine: auto, torch or openvino; the paper's tables take torch.
        decision: How probabilities become a mask, "most_probable" class or highest "expected_dice"; as the model's card
            says when None.
        progress: Called after each subset of each case.

    Returns:
        The scores, and the cases that could not be scored with the reason. A case that lacks a sequence of a subset is
        none of these: it is not scored on that subset, and stands under "lacking" in evaluation.json.

    Raises:
        SettingError: The network does not take one of the subsets, comes without its run and ``out`` is missing, or
            ``out`` is a file that holds no scores.
        MindgapError: Nothing could be scored.
    """
    model, data, out = model_folder(model), Path(data), None if out is None else Path(out)
    if out is not None and out.is_dir():
        raise SettingError(f"{out} is a folder: name a file for the scores, such as {out / SCORES}.")
    _refuse_to_overwrite(out)
    place = evaluation_folder(model, out)
    predictor = Predictor.load(
        model, device=device, precision=precision, coverage=coverage, engine=engine, decision=decision
    )
    cohort, convention = discover_labelled(data, labels)
    chosen, missing = _choose_cases(cohort, model) if cases == "test" else (list(cohort.cases), dict(cohort.rejected))
    thresholds = thresholds_from_plain(read_json(model / THRESHOLDS)) if baseline and place == model else None
    began = time.perf_counter()
    result = score_cohort(
        predictor,
        chosen,
        convention,
        model=name or model.resolve().name,
        subsets=subsets,
        rules=rules,
        thresholds=thresholds,
        predictions=place / PREDICTIONS,
        progress=progress,
    )
    if not result.scores:
        lacking = (f"{case} lacks a sequence for {', '.join(names)}" for case, names in result.lacking.items())
        reasons = [*result.failed.values(), *lacking]
        raise MindgapError("no case could be scored:\n" + "\n".join(f"  {line}" for line in reasons))
    failed = missing | result.failed
    write_scores(place / SCORES, result.scores)
    record = {
        "data": str(data.resolve()),
        "part": cases,
        "labels": convention.name,
        "failed": failed,
        "lacking": result.lacking,
        **_describe_scoring(result, predictor, rules),
        "seconds_per_case": round((time.perf_counter() - began) / len(chosen), 2),
    }
    write_json(place / EVALUATION, record)
    if out is not None:
        write_scores(out, result.scores)
    return result.scores, failed


def _refuse_to_overwrite(out: Path | None) -> None:
    """Refuse a file that is there and is none of ours, before any work.

    Raises:
        SettingError: It holds no scores.
    """
    if out is None or not out.exists():
        return
    try:
        read_scores(out)
    except (MindgapError, ValueError) as error:
        raise SettingError(f"{out} exists and holds no scores: name another file for them, or remove it.") from error


def evaluation_folder(model: Path, out: Path | None) -> Path:
    """Where an evaluation is written: into the run folder, or beside ``out``, into NAME-evaluation.

    Nothing is written beside weights that come without their run, such as those in the box.

    Raises:
        SettingError: There is no run, and no ``out``.
    """
    if (model / MANIFEST).is_file():
        return model
    if out is None:
        raise SettingError(f"{model.name} comes without its run: name a file for the scores (-o scores.csv).")
    return out.with_name(f"{out.stem}-evaluation")


def _describe_scoring(result: Scoring, predictor: Predictor, rules: Rules) -> dict[str, Any]:
    """For evaluation.json: what was scored, by which network and by which rules."""
    return {
        "cases": sorted({score.case for score in result.scores}),
        "subsets": list(dict.fromkeys(score.subset for score in result.scores)),
        **rules.to_plain(),
        "spacings_mm": sorted(result.spacings_mm),
        "coverage": predictor.coverage,
        "decision": predictor.decision,
        "engine": predictor.choice.name,
        "precision": predictor.precision,
        "model_sha256": predictor.sha256,
    }


def _choose_cases(cohort: Cohort, model: Path) -> tuple[list[CaseFiles], dict[str, str]]:
    """The test cases of a run in a cohort, and those that are not there with the reason.

    Raises:
        SettingError: None is there, or the network comes without its run.
    """
    if not (model / MANIFEST).is_file():
        raise SettingError(f"{model.name} comes without its run and knows no test cases: add --cases all.")
    wanted = set(cases_of(model)["test"])
    chosen = [files for files in cohort.cases if files.case_id in wanted]
    if not chosen:
        raise SettingError(
            f"none of the {len(wanted)} test cases of {model} is in {cohort.root}: name the data the run was prepared "
            "from, or score every case with --cases all."
        )
    absent = sorted(wanted - {files.case_id for files in chosen})
    return chosen, {c: cohort.rejected.get(c, f"{c}: a test case of the run, not in {cohort.root}") for c in absent}
