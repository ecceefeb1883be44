"""The demo: the main job on a cohort of phantoms, from nothing to a report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from mindgap.api import evaluate, prepare, report, train
from mindgap.data.prepared import Preparation
from mindgap.data.store import INDEX
from mindgap.errors import SettingError
from mindgap.evaluation.scores import Score, read_scores
from mindgap.experiment import Experiment, quick
from mindgap.files import write_text
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.processor import cpu_count
from mindgap.progress import Say, Stage, mute, silent
from mindgap.report.collect import choose_pictures
from mindgap.report.figures import draw_overlay, save_png
from mindgap.runfiles import REPORT, SCORES

TRAIN, VALIDATION, TEST = 24, 6, 12
SPACING_MM = 2.0
PICTURE = "picture.png"
"""The median test case of the last network, as one picture."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        page: The report.
        scores: Rows of the teacher, the two T1 networks and the threshold baselines.
        seconds: Duration.
    """

    page: Path
    scores: list[Score]
    seconds: float


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    precision: str = "auto",
    stage: Stage = lambda name: silent,
    say: Say = mute,
) -> DemoResult:
    """Phantoms, a teacher with P_*, a unimodal and a PMKL network for T1, scores, a report; resumes after a kill.

    Args:
        out: Folder; finished parts in it are kept.
        seed: Of the cohort and the networks.
        steps: Steps per network; the quick preset's by default.
        precision: auto, fp32 or bf16.
        stage: Announces stages.
        say: Takes lines worth reading.

    Raises:
        SettingError: There are no steps.
    """
    if steps is not None and steps < 1:
        raise SettingError(f"--steps {steps} trains nothing: name at least 1, or leave it out.")
    from mindgap.data.phantom import write_cohort

    began = time.perf_counter()
    cohort, store = out / "cohort", out / "store"
    count = TRAIN + VALIDATION + TEST
    made = stage(f"growing {count} phantoms")
    folders = write_cohort(
        cohort,
        cases=count,
        seed=seed,
        spacing_mm=SPACING_MM,
        workers=cpu_count(),
        progress=lambda done, total: made(done, total, ""),
    )
    write_split(cohort / "splits", [folder.name for folder in folders])
    if not (store / INDEX).is_file():
        prepare(
            cohort,
            store,
            Preparation(spacing_mm=SPACING_MM),
            progress=stage("preparing"),
            workers=cpu_count(),
        )
    runs = []
    for name, experiment in demo_experiments(store, out, seed=seed, steps=steps, precision=precision).items():
        train(experiment, out / name, resume=True, progress=stage(f"training {name}"), say=say)
        runs.append(out / name)
    scores: list[Score] = []
    for run in runs:
        rows, _ = evaluate(run, cohort, precision=precision, progress=stage(f"scoring {run.name}"))
        known = {(row.model, row.subset) for row in scores}
        scores += [row for row in rows if (row.model, row.subset) not in known]
    _, median, *_ = choose_pictures(runs[-1], read_scores(runs[-1] / SCORES))
    save_png(draw_overlay(median), out / PICTURE)
    page = report(runs, out / REPORT, title="mindgap demo: a patient with only T1")
    return DemoResult(page, scores, time.perf_counter() - began)


def demo_experiments(store: Path, out: Path, *, seed: int, steps: int | None, precision: str) -> dict[str, Experiment]:
    """The three trainings, in the order they depend on each other."""

    def settings(recipe: TeacherRecipe | UnimodalRecipe | PmklRecipe, subset: str, share: float) -> Experiment:
        base = quick(store, recipe)
        wanted = round((base.schedule.steps if steps is None else steps) * share)
        return dataclasses.replace(
            base,
            subset=subset,
            seed=seed,
            precision=precision,
            schedule=dataclasses.replace(base.schedule, steps=max(1, wanted)),
        )

    return {
        "teacher": settings(TeacherRecipe(), "all", 1.8),
        "unimodal-T1": settings(UnimodalRecipe(), "T1", 1.0),
        "pmkl-T1": settings(PmklRecipe(teacher=out / "teacher"), "T1", 1.0),
    }


def write_split(folder: Path, case_ids: list[str]) -> None:
    """Lists of training, validation and test cases, by position."""
    ordered = sorted(case_ids)
    parts = {
        "train": ordered[:TRAIN],
        "val": ordered[TRAIN : TRAIN + VALIDATION],
        "test": ordered[TRAIN + VALIDATION :],
    }
    for name, part in parts.items():
        write_text(folder / f"{name}.txt", "".join(f"{case_id}\n" for case_id in part))
