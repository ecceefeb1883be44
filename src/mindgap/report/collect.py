"""From run folders on disk to what a report page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mindgap.data.case import Case
from mindgap.data.cohort import discover
from mindgap.data.nifti import read_volume
from mindgap.errors import InputError, MindgapError
from mindgap.evaluation.rules import DEFAULT_RULES
from mindgap.evaluation.scores import Score, read_scores, values_of
from mindgap.evaluation.statistics import bootstrap_mean, paired_difference, wilcoxon
from mindgap.evaluation.summary import BASELINE, average_subsets, best_median_worst, mean_dice_of_cases
from mindgap.files import read_json
from mindgap.regions import REGIONS, find_convention, target_from_label
from mindgap.report.figures import Picture
from mindgap.report.page import Comparison, RunSection
from mindgap.runfiles import (
    EVALUATION,
    MANIFEST,
    PREDICTIONS,
    RELIABILITY,
    SCORES,
    SETTINGS,
    TERMS,
    VALIDATIONS,
    read_lines,
)
from mindgap.sequences import parse_subset


def collect(runs: Sequence[Path]) -> dict[str, Any]:
    """Arguments of :func:`mindgap.report.page.build_page`, except the title.

    Runs that were not evaluated show their settings and learning curves only; a cohort that is no longer where it
    was scored costs the pictures, not the page.

    Args:
        runs: Run folders.
    """
    sections, pictures, notes = [], [], []
    scores: list[Score] = []
    for run in runs:
        sections.append(load_section(run))
        if not (run / SCORES).is_file():
            notes.append(f"{run.name} has not been evaluated: run `mindgap evaluate --model {run} DATA`.")
            continue
        own = read_scores(run / SCORES)
        known = {(score.model, score.subset) for score in scores}
        taken = {s.model for s in own if s.model != BASELINE and (s.model, s.subset) in known}
        if taken:  # two folders of the same name: seed0/teacher, seed1/teacher
            own = [replace(s, model=f"{run.resolve().parent.name}/{s.model}") if s.model in taken else s for s in own]
        scores += [score for score in own if score.model != BASELINE or (score.model, score.subset) not in known]
        notes += _remarks(run.name, read_json(run / EVALUATION))
        try:
            pictures += choose_pictures(run, own)
        except MindgapError as error:
            notes.append(f"No pictures for {run.name}: {error}")
    return {
        "runs": sections,
        "scores": scores,
        "comparisons": compare(scores),
        "pictures": pictures,
        "notes": notes,
    }


def _remarks(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """What a reader of the scores has to know: cases left out, and rules other than the usual ones."""
    notes = [f"{name}: {case} was not scored. {reason}" for case, reason in evaluation.get("failed", {}).items()]
    notes += [
        f"{name}: {case} lacks a sequence and was not scored on {', '.join(subsets)}."
        for case, subsets in evaluation.get("lacking", {}).items()
    ]
    usual = DEFAULT_RULES.to_plain()
    said = {key: evaluation.get(key, usual[key]) for key in ("protocol", "grid")}
    rules = [f"{key} {value}" for key, value in said.items() if value != usual[key]]
    rules += ["the ProtoKD crop"] * bool(evaluation.get("protokd_crop"))
    if rules:
        notes.append(f"{name} was scored with {' and '.join(rules)}: do not compare it with runs scored otherwise.")
    return notes


def load_section(run: Path) -> RunSection:
    """Settings, facts and logs of one run.

    Raises:
        MindgapError: The folder is no run.
    """
    settings, facts = read_json(run / SETTINGS), read_json(run / MANIFEST)
    curves = (run / RELIABILITY).read_bytes() if (run / RELIABILITY).is_file() else b""
    logs = read_lines(run / TERMS), read_lines(run / VALIDATIONS)
    return RunSection(run.resolve().name, settings, facts, *logs, curves)


def compare(scores: Sequence[Score]) -> list[Comparison]:
    """Every pair of networks on the same subset, the later minus the earlier, per region and on average.

    Networks that saw all fifteen subsets are compared per region on the mean of the fifteen, and on single subsets on
    average only: sixty tests would leave none that could say anything.
    """
    averaged = average_subsets(scores)
    found = []
    for rows in (averaged, scores):
        for subset in dict.fromkeys(row.subset for row in rows):
            models = dict.fromkeys(row.model for row in rows if row.subset == subset and row.model != BASELINE)
            for first, second in combinations(models, 2):
                made = _compare_pair(rows, first, second, subset)
                whole = {row.model for row in averaged} >= {first, second}
                found += made[-1:] if whole and rows is scores else made
    return found


def _compare_pair(scores: Sequence[Score], first: str, second: str, subset: str) -> list[Comparison]:
    """Per region, and on average last."""
    text = f"{second} minus {first} on {subset}"
    rows = [
        [values_of(scores, model=model, subset=subset, region=str(region)) for model in (second, first)]
        for region in REGIONS
    ]
    found = [
        Comparison(text, str(region), paired_difference(later, earlier), wilcoxon(later, earlier))
        for region, (later, earlier) in zip(REGIONS, rows, strict=True)
    ]
    shared = [case for case in rows[0][0] if case in rows[0][1]]
    means = {case: float(np.mean([late[case] - early[case] for late, early in rows])) for case in shared}
    return [*found, Comparison(text, "mean", bootstrap_mean(means), wilcoxon(means, dict.fromkeys(means, 0.0)))]


def choose_pictures(run: Path, scores: Sequence[Score]) -> list[Picture]:
    """Best, median and worst case of a run by mean Dice of the three regions, with its images.

    Of a network that was scored on several subsets, the one with the most sequences is shown.

    Raises:
        MindgapError: The cohort is not where it was scored.
    """
    evaluation = read_json(run / EVALUATION)
    cohort = discover(Path(evaluation["data"]), labels=evaluation["labels"])
    files = {case.case_id: case for case in cohort.cases}
    mine = [score for score in scores if score.model != BASELINE]
    if not mine:
        return []
    shown = max(mine, key=lambda row: len(parse_subset(row.subset)))
    means = mean_dice_of_cases(scores, model=shown.model, subset=shown.subset)
    pictures = []
    for place, case_id in best_median_worst(means).items():
        if case_id not in files:
            raise InputError(
                case=case_id,
                expected=f"it in {evaluation['data']}",
                found="none",
                mend="evaluate again where the data is",
            )
        case = files[case_id].load(convention=find_convention(evaluation["labels"]))
        caption = f"{place}: mean Dice {means[case_id]:.3f}"
        pictures.append(_picture(run, case, shown, caption, evaluation))
    return pictures


def _picture(run: Path, case: Case, row: Score, caption: str, evaluation: dict[str, Any]) -> Picture:
    path = run / PREDICTIONS / row.subset / f"{case.case_id}.nii.gz"
    predicted = read_volume(path, case=case.case_id)
    if predicted.array.shape != case.reference.array.shape:
        raise InputError(
            case=case.case_id,
            expected=f"a prediction of shape {case.reference.array.shape}",
            found=str(predicted.array.shape),
            mend="evaluate again",
        )
    return Picture(
        case_id=case.case_id,
        caption=caption,
        model=row.model,
        seen=tuple(str(sequence) for sequence in parse_subset(row.subset)),
        images={str(sequence): volume.array for sequence, volume in case.images.items()},
        reference=case.target,
        predicted=target_from_label(predicted.array, find_convention(evaluation["labels"]), case.case_id),
        affine=case.reference.affine,
    )
