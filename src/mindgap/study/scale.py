"""How large a study is run: the paper's settings, or what a laptop can do; from a run to its command lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mindgap.errors import SettingError
from mindgap.processor import cpu_count, detect_processor
from mindgap.study.grid import Run

_TEACHERS = ("teacher",)


@dataclass(frozen=True)
class Scale:
    """Size of a study.

    Attributes:
        name: paper, mini or phantom.
        spacing_mm: Of the prepared cohort; None keeps the grid of the cases.
        flags: Flags of every training.
        steps: Steps by name of a run or by method; "" for all others.
        seconds_per_step: By method on two cores with native bf16, measured, or for the paper's scale reckoned from
            smaller steps (``mindgap study --dry-run`` prints estimates from it); "" for all others.
        overhead_s: Start, validation and scoring of a run on the same machine.
        score_flags: Flags of every scoring.
        scoring_s: Scoring of each further subset there, where a network is scored on fifteen.
    """

    name: str
    spacing_mm: float | None
    flags: tuple[str, ...]
    steps: Mapping[str, int]
    seconds_per_step: Mapping[str, float] = field(default_factory=dict)
    overhead_s: float = 60.0
    score_flags: tuple[str, ...] = ()
    scoring_s: float = 0.0

    def steps_of(self, run: Run) -> int:
        """Optimiser steps of a run."""
        return self.steps.get(run.name, self.steps.get(run.method, self.steps[""]))

    def seconds_of(self, run: Run) -> float:
        """Estimated duration of a run on two cores with native bf16."""
        return self.training_seconds_of(run, self.steps_of(run)) + self.overhead_s_of(run)

    def overhead_s_of(self, run: Run) -> float:
        """Estimated duration of all but its steps."""
        return self.overhead_s + self.scoring_s * (run.scored_subsets - 1)

    def training_seconds_of(self, run: Run, steps: int) -> float:
        """Estimated duration of some steps of a run there."""
        return steps * self.seconds_per_step.get(run.backbone or run.method, self.seconds_per_step[""])


_SMALL = ("--width", "8", "--batch", "2", "--crop", "48")
_COSTS = {"": 0.15, "vnet": 0.25, "smunet": 0.6, "anysubset": 0.3, "dynunet": 0.3, "pmkl": 0.2}
_PAPER_TEACHER = 0.54 * 4.3
"""Seconds of a teacher's step at the paper's scale, reckoned: four crops of 48^3 at width 16 take 0.54 s, and 80^3
takes 4.3 times as long as 48^3 (both in docs/performance.md)."""
_PAPER_COSTS = {method: seconds / _COSTS["vnet"] * _PAPER_TEACHER for method, seconds in _COSTS.items()}

SCALES: dict[str, Scale] = {
    "paper": Scale("paper", None, ("--preset", "paper"), {"": 50_000}, _PAPER_COSTS, 1800.0, scoring_s=1500.0),
    "mini": Scale(
        "mini", 2.0, ("--preset", "small", *_SMALL, "--learning-rate", "4e-3"), {"": 1200}, _COSTS, 60.0, scoring_s=22.0
    ),
    "phantom": Scale("phantom", 2.0, ("--preset", "quick"), {"": 400, "teacher": 600}, _COSTS, 40.0, scoring_s=16.0),
}


@dataclass(frozen=True)
class Place:
    """Folders of a study.

    Attributes:
        out: Of the study: runs, tables, logs.
        data: The cohort as files.
        store: The prepared cohort.
        device: auto, cpu or cuda.
        keep: Folder that keeps the scores of finished runs and the tables; None keeps them nowhere else.
    """

    out: Path
    data: Path
    store: Path
    device: str = "auto"
    keep: Path | None = None

    def store_of(self, run: Run) -> Path:
        """The prepared cohort a run learns from: the study's, or that of its fold."""
        if run.fold is None:
            return self.store
        return self.out / "folds" / (f"{run.fold}-phantoms{run.phantoms}" if run.phantoms else str(run.fold))

    def run(self, name: str) -> Path:
        """Folder of a run."""
        return self.runs / name

    def kept(self, name: str) -> Path:
        """Folder of what is kept of a run."""
        return (self.keep or self.out) / "runs" / name

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.out / "runs"

    @property
    def score_folders(self) -> tuple[Path, ...]:
        """Where the scores of runs lie; what is kept goes first."""
        return tuple(folder / "runs" for folder in (self.keep, self.out) if folder is not None)


WITHOUT_BF16 = 2.3
"""How many times as long a study takes on two cores without native bf16 (measured with AVX2 alone, on phantoms)."""
GAIN_TOGETHER = 1.2
"""How much more two small trainings at a time get done on two cores than one after the other (measured)."""


def find_scale(name: str) -> Scale:
    """A scale by name.

    Raises:
        SettingError: There is none of that name.
    """
    if name not in SCALES:
        raise SettingError(f"there is no scale {name!r}: choose one of {', '.join(SCALES)}.")
    return SCALES[name]


def jobs_at_once(scale: Scale, runs: int, *, device: str) -> int:
    """Trainings to run at the same time on this machine, if nobody says how many."""
    if scale.name == "paper" or detect_processor(device).device == "cuda":
        return 1
    return max(1, min(cpu_count(), runs))


def commands_of(run: Run, scale: Scale, place: Place) -> tuple[tuple[str, ...], ...]:
    """The command lines of a run: train, then score."""
    folder = place.run(run.name)
    train = ["train", run.method, *scale.flags, "--steps", str(scale.steps_of(run)), *run.flags]
    train += ["--data", str(place.store_of(run)), "--out", str(folder), "--device", place.device, "--resume"]
    if run.teacher:
        train += ["--teacher", str(place.run(run.teacher))]
    if run.start:
        train += ["--start", str(place.run(run.start))]
    score = ["evaluate", str(place.data), "--model", str(folder), "--name", run.name, "--device", place.device]
    return tuple(train), (*score, *scale.score_flags, *run.score_extra)
