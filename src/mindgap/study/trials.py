"""What was trained for the network in the box: trials as data, each cross-validated over folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mindgap.errors import SettingError
from mindgap.study.grid import Run, unique
from mindgap.study.scale import Scale

FOLDS = 4
STEPS, MORE_STEPS, TRIED_STEPS = 5000, 3000, 800
BOX, THIRD, SECOND, FIRST, OUTSIDE = "box", "third", "second", "first", "dynunet"
"""What is shipped, the trainings it goes on from, and a network of others with the settings of the first."""
SPACING_MM = 2.0
BASE, LONGER = "base", "longer"
"""The trials that other short ones are compared with: from random weights, and going on from the first training; those
that go on from the third are compared with what is shipped."""


@dataclass(frozen=True)
class Trial:
    """One way to train, cross-validated.

    Attributes:
        name: Of the trial.
        says: What it changes, for the table.
        method: Name in ``METHODS``.
        flags: Words of the command line beside those of the preset "box".
        steps: Of each fold.
        folds: Which, counted from 1.
        against: The trial its scores are held against; None for a first one.
        start: The trial whose network of the same fold it starts from; None starts from random weights.
        coverage: How its networks are scored: in one pass, or in half-overlapping tiles of the crops they were trained
            with.
        phantoms: How many synthetic patients join the training cases.
    """

    name: str
    says: str
    method: str = "compact"
    flags: str = ""
    steps: int = TRIED_STEPS
    folds: tuple[int, ...] = (1,)
    against: str | None = BASE
    start: str | None = None
    coverage: Literal["whole", "tiles"] = "whole"
    phantoms: int = 0

    @property
    def runs(self) -> list[Run]:
        """A run per fold; the seed follows the fold, so that members differ in both."""
        return [
            Run(
                f"{self.name}-fold{fold}",
                self.method,
                "all",
                self.seed(fold),
                fold=fold,
                phantoms=self.phantoms,
                extra=tuple(self.flags.split()),
                score_extra=("--coverage", self.coverage),
                start=f"{self.start}-fold{fold}" if self.start else None,
            )
            for fold in self.folds
        ]

    def seed(self, fold: int) -> int:
        """Of the run of a fold; short trials share one, so that they differ in nothing else.

        A network that goes on from another one meets other draws than those before it met.
        """
        if self.start:
            return FOLDS * len(before(self)) + fold
        return fold if self.steps == STEPS else 0


_ALL = tuple(range(1, FOLDS + 1))
_STRONG = "--scale 0.2 --gamma 0.3 --bias 0.2 --noise 0.08 --warp 0 --blur 0 --curve 0 --slab 0 --average 0.995"
_WIDER = (
    "--scale 0.25 --gamma 0.35 --bias 0.3 --noise 0.1 --warp 0.7 --rotate 0.35 --zoom 0.2 --elastic 0.06 --blur 0.15 "
    "--curve 0.2 --slab 0.05 --average 0.995"
)
_MORE = "--learning-rate 1e-3 --average 0.99"
_FASTER = "--learning-rate 2e-3 --average 0.99"
_APART = f"{_FASTER} --no-shared-norm"
_SECOND = f"{_APART} --own-share 0.75"
_THIRD = f"{_SECOND} --foreground 0.4 --single-share 0.2 --start-share 0.5"
_TWO = (1, 3)
_TRIALS = (
    Trial(
        BOX,
        "what is shipped, before its odds are lowered: 800 steps more than third, half way",
        flags=_THIRD,
        folds=_ALL,
        start=THIRD,
        against=THIRD,
    ),
    Trial(
        THIRD,
        "half way from second to 3,000 steps more, with fewer crops at tumours and more single sequences",
        flags=_THIRD,
        steps=MORE_STEPS,
        folds=_ALL,
        start=SECOND,
        against=SECOND,
    ),
    Trial(
        SECOND,
        "3,000 steps more than first, every sequence normalised by itself",
        flags=_SECOND,
        steps=MORE_STEPS,
        folds=_ALL,
        start=FIRST,
        against=FIRST,
    ),
    Trial(FIRST, "from random weights, one network a fold", steps=STEPS, folds=_ALL, against=OUTSIDE),
    Trial(
        OUTSIDE,
        "MONAI DynUNet, absent sequences filled with background, random subsets, same steps, crops and augmentation",
        "dynunet",
        steps=STEPS,
        folds=_TWO,
        against=None,
        coverage="tiles",
    ),
    Trial(BASE, "as first, 800 steps, intensities vary only", flags=_STRONG, against=None),
    Trial("class-loss", "cross-entropy and Dice of classes, not of regions", flags=f"{_STRONG} --loss classes"),
    Trial("wider", "also strongly bent, thick slices, curves, short stacks", flags=_WIDER),
    Trial(
        "distilled",
        "one crop, seen whole and in part, the whole teaching the part",
        flags=f"{_STRONG} --batch 1 --distillation-weight 0.5",
    ),
    Trial("larger-crop", "one crop of 64^3 in place of two of 48^3", flags=f"{_STRONG} --batch 1 --crop 64"),
    Trial(LONGER, "800 steps more than first", flags=_MORE, start=FIRST, against=FIRST),
    Trial(
        "settled",
        "800 steps more, normalisations by running averages as in prediction",
        flags=f"{_MORE} --settle 1 --own-share 0",
        start=FIRST,
        against=LONGER,
    ),
    Trial(
        "singles",
        "800 steps more, half of the rows with one sequence",
        flags=f"{_MORE} --single-share 0.5",
        start=FIRST,
        against=LONGER,
    ),
    Trial("faster", "800 steps more with twice the learning rate", flags=_FASTER, start=FIRST, against=LONGER),
    Trial("apart", "the same, every sequence normalised by itself", flags=_APART, start=FIRST, against="faster"),
    Trial("again", "800 steps more than box, half way once more", flags=_THIRD, folds=_ALL, start=BOX, against=BOX),
    Trial(
        "phantoms",
        "box, with as many synthetic patients as real ones among the training cases",
        flags=_THIRD,
        folds=_TWO,
        start=THIRD,
        against=BOX,
        phantoms=21,
    ),
    Trial(
        "transplanted",
        "box, with a tumour of another case laid into a third of the crops",
        flags=f"{_THIRD} --transplant 0.33",
        folds=_TWO,
        start=THIRD,
        against=BOX,
    ),
    Trial(
        "residue",
        "box, with skull left around the brain in a third of the crops",
        flags=f"{_THIRD} --residue 0.33",
        folds=_TWO,
        start=THIRD,
        against=BOX,
    ),
)
TRIALS = {trial.name: trial for trial in _TRIALS}


def before(trial: Trial) -> list[Trial]:
    """The trials that a trial goes on from, the first one first."""
    if trial.start is None:
        return []
    start = TRIALS[trial.start]
    return [*before(start), start]


def choose_trials(names: Sequence[str]) -> list[Trial]:
    """Trials by name; the box, the trainings before it and the network of others by default.

    Raises:
        SettingError: One is unknown.
    """
    strange = [name for name in names if name not in TRIALS]
    if strange:
        raise SettingError(f"there is no trial {strange[0]!r}: choose among {', '.join(TRIALS)}.")
    return [trial for trial in _TRIALS if trial.name in (names or (BOX, THIRD, SECOND, FIRST, OUTSIDE))]


def runs_of(trials: Sequence[Trial]) -> list[Run]:
    """The runs of some trials, each once, and before them those they start from."""
    runs: list[Run] = []
    for trial in trials:
        for one in (*before(trial), trial):
            runs += [run for run in one.runs if run.fold in trial.folds]
    return unique(runs)


def scale_of(trials: Sequence[Trial]) -> Scale:
    """Size of the runs of some trials, and of those they start from."""
    known = {run.name: trial.steps for trial in TRIALS.values() for run in trial.runs}
    wanted = {run.name: known[run.name] for run in runs_of(trials)}
    costs = {"": 0.25, "dynunet": 0.17}
    return Scale(
        "box",
        SPACING_MM,
        ("--preset", "box"),
        {"": STEPS, **wanted},
        costs,
        120.0,
        ("--grid", "model", "--engine", "auto"),
    )
