"""The network in the box: cross-validated over the cases that may teach, compared, put together and calibrated.

Folds are cut from the training and validation cases of a split; its test cases are in none of them. The networks of the
folds are the members of what is shipped, so that everything that is said of it (the table of what was tried, expected
Dice, calibration) comes from cases that the member in question has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.api import Progress, prepare
from mindgap.batch import fill_absent
from mindgap.data.prepared import Preparation
from mindgap.data.resident import ResidentCases
from mindgap.data.splits import find_split
from mindgap.data.store import INDEX, open_store
from mindgap.errors import SettingError
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.scores import Score, read_scores, values_of, write_scores
from mindgap.evaluation.statistics import Interval, bootstrap_mean, paired_difference
from mindgap.evaluation.summary import ALL_SUBSETS, BASELINE, average_subsets, mean_dice_of_cases
from mindgap.evaluation.threshold import fit_thresholds, thresholds_to_plain
from mindgap.files import write_json
from mindgap.inference.calibration import cross_calibrate
from mindgap.inference.confidence import write_confidence
from mindgap.inference.decision import Decision
from mindgap.inference.exported import Exported, Gate, write_exported
from mindgap.inference.predictor import Predictor
from mindgap.inference.tiling import predict_whole
from mindgap.networks import build_network
from mindgap.networks.ensemble import Ensemble
from mindgap.networks.vnet import STRIDE
from mindgap.networks.weights import WEIGHTS, load_network, save_network
from mindgap.processor import cpu_count
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.runfiles import MANIFEST, THRESHOLDS
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset
from mindgap.sequences import Sequence as MriSequence
from mindgap.study.grid import Run
from mindgap.study.keep import DECIDED
from mindgap.study.scale import Place, Scale

FOLDS = 4
STEPS, TRIED_STEPS = 5000, 800
BOX, OUTSIDE = "box", "dynunet"
SPACING_MM = 2.0
PLAIN = " (most probable class)"
BASE = "base"
"""The trial that the other short ones are compared with."""


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
    """

    name: str
    says: str
    method: str = "compact"
    flags: str = ""
    steps: int = TRIED_STEPS
    folds: tuple[int, ...] = (1,)
    against: str | None = BASE

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
                extra=tuple(self.flags.split()),
            )
            for fold in self.folds
        ]

    def seed(self, fold: int) -> int:
        """Of the run of a fold; short trials share one, so that they differ in nothing else."""
        return fold if self.steps == STEPS else 0


_ALL = tuple(range(1, FOLDS + 1))
_STRONG = "--scale 0.2 --gamma 0.3 --bias 0.2 --noise 0.08 --warp 0 --blur 0 --curve 0 --slab 0 --average 0.995"
_WIDER = (
    "--scale 0.25 --gamma 0.35 --bias 0.3 --noise 0.1 --warp 0.7 --rotate 0.35 --zoom 0.2 --elastic 0.06 --blur 0.15 "
    "--curve 0.2 --slab 0.05 --average 0.995"
)
_TRIALS = (
    Trial(BOX, "what is shipped, one network a fold", steps=STEPS, folds=_ALL, against=OUTSIDE),
    Trial(
        OUTSIDE,
        "MONAI DynUNet, absent sequences zero, random subsets, same steps, crops and augmentation",
        "dynunet",
        steps=STEPS,
        folds=(1, 3),
        against=None,
    ),
    Trial(BASE, "the network of the box, 800 steps, intensities vary only", flags=_STRONG, against=None),
    Trial("class-loss", "cross-entropy and Dice of classes, not of regions", flags=f"{_STRONG} --loss classes"),
    Trial("wider", "also strongly bent, thick slices, curves, short stacks", flags=_WIDER),
    Trial(
        "distilled",
        "one crop, seen whole and in part, the whole teaching the part",
        flags=f"{_STRONG} --batch 1 --distillation-weight 0.5",
    ),
    Trial("larger-crop", "one crop of 64^3 in place of two of 48^3", flags=f"{_STRONG} --batch 1 --crop 64"),
)
TRIALS = {trial.name: trial for trial in _TRIALS}


def choose_trials(names: Sequence[str]) -> list[Trial]:
    """Trials by name; the box and its comparator by default.

    Raises:
        SettingError: One is unknown.
    """
    strange = [name for name in names if name not in TRIALS]
    if strange:
        raise SettingError(f"there is no trial {strange[0]!r}: choose among {', '.join(TRIALS)}.")
    return [trial for trial in _TRIALS if trial.name in (names or (BOX, OUTSIDE))]


def scale_of(trials: Sequence[Trial], *, steps: int | None = None) -> Scale:
    """Size of the runs of some trials; ``steps`` replaces those of all of them, for a look at the machinery."""
    wanted = {run.name: steps or trial.steps for trial in trials for run in trial.runs}
    costs = {"": 0.25, "dynunet": 0.17}
    return Scale(
        "box",
        SPACING_MM,
        ("--preset", "box"),
        {"": STEPS, **wanted},
        costs,
        120.0,
        ("--grid", "model", "--engine", "auto", "--coverage", "whole"),
    )


def prepare_folds(
    out: Path,
    data: Path,
    trials: Sequence[Trial],
    *,
    split: str,
    device: str,
    stage: Callable[[str], Progress],
    folds: int = FOLDS,
) -> Place:
    """Make the stores of the folds that are missing.

    Args:
        out: Folder of the study.
        data: Cohort with labels.
        trials: Whose folds.
        split: As ``mindgap prepare`` takes it; its test cases stay out.
        device: For the trainings.
        stage: Announces a stage and gives its progress callback.
        folds: How many there are.

    Raises:
        SettingError: A store there was made from other data.
    """
    place = Place(out, data, out / "folds", device)
    for fold in sorted({fold for trial in trials for fold in trial.folds}):
        store = out / "folds" / str(fold)
        if (store / INDEX).is_file():
            if Path(open_store(store).source).resolve() != data.resolve():
                raise SettingError(f"{store} was prepared from other data than {data}: name another --out.")
            continue
        said = stage(f"preparing fold {fold} of {folds}")
        prepare(data, store, Preparation(spacing_mm=SPACING_MM), split=f"{split}:{fold}/{folds}", workers=cpu_count(),
                progress=said)  # fmt: skip
    return place


def is_here(place: Place, run: Run) -> bool:
    """Whether the network of a run lies on this machine."""
    return (place.run(run.name) / WEIGHTS).is_file()


def score_folds(place: Place, trial: Trial, *, progress: Progress) -> None:
    """Score every case by the network that has not seen it, on the network's grid, by both rules of decision.

    Writes ``decided.csv`` into the run folder of each fold: rows of the run's name decide by the highest expected Dice,
    rows of :data:`PLAIN` after it by the most probable class.

    Args:
        place: Of the study.
        trial: It; folds whose networks are not here are left out.
        progress: Called after each case.
    """
    runs = [run for run in trial.runs if is_here(place, run)]
    done, total = 0, sum(len(open_store(place.store_of(run)).part("test")) for run in runs)
    for run in runs:
        store = open_store(place.store_of(run))
        judged = store.part("test")
        rules: tuple[Decision, ...] = ("expected_dice", "most_probable")
        predictor, plain = (
            Predictor.load(place.run(run.name), device=place.device, coverage="whole", engine="auto", decision=rule)
            for rule in rules
        )
        cases, rows = ResidentCases(store, judged, subset=store.sequences), []
        for index, case in enumerate(judged):
            batch = cases.whole(index)
            assert batch.target is not None
            reference = batch.target[0].numpy().astype(np.uint8)
            for seen in (batch.show(subset) for subset in SUBSETS if set(subset) <= set(store.cases[case].sequences)):
                subset = format_subset(
                    s for s, shown in zip(store.sequences, seen.present[0].tolist(), strict=True) if shown
                )
                image = fill_absent(seen.image, seen.present)[0]
                maps = predict_whole(image, partial(predictor.engine, present=seen.present[0]), multiple=STRIDE).cpu()
                for name, masks in ((run.name, predictor.classes(maps)), (run.name + PLAIN, plain.classes(maps))):
                    rows += [_score(name, case, subset, region, masks, reference) for region in REGIONS]
            done += 1
            progress(done, total, case)
        write_scores(place.run(run.name) / DECIDED, rows)


def _score(
    model: str, case: str, subset: str, region: Region, found: NDArray[np.uint8], reference: NDArray[np.uint8]
) -> Score:
    a, b = region_mask(found, region), region_mask(reference, region)
    ml = SPACING_MM**3 / 1000.0
    return Score(model, case, subset, str(region), dice(a, b), math.nan, float(b.sum()) * ml, float(a.sum()) * ml)


def build_box(place: Place, trial: Trial, *, split: str, progress: Progress) -> Path:
    """Put the networks of the folds together, in float16, and say of them what the cross-validation found.

    Args:
        place: Of the study.
        trial: Whose networks.
        split: Whose folds they are; its test cases, which no network has seen, judge what is made.
        progress: Called after each subset of each case of the calibration.

    Returns:
        The model folder, OUT/box.
    """
    runs = trial.runs
    members = [load_network(place.run(run.name)) for run in runs]
    first = members[0].card
    arguments = {"count": len(members), "architecture": first.architecture, "arguments": first.arguments}
    card = replace(first, architecture="ensemble", arguments=arguments, method=BOX, decision="expected_dice")
    network = build_network(card.architecture, card.arguments)
    assert isinstance(network, Ensemble)
    for member, known in zip(network.members, members, strict=True):
        member.load_state_dict(known.network.state_dict())
    out = place.out / BOX
    save_network(out, network, card, half=True)
    _write_history(out, place, trial, split=split)
    gate = Gate(True, "cross-validated, calibrated and scored in whole-brain passes only", {}, {}, 0)
    write_exported(out, load_network(out).sha256, Exported(whole=gate))
    predictors = [
        Predictor.load(
            place.run(run.name), device=place.device, coverage="whole", engine="auto", decision="expected_dice"
        )
        for run in runs
    ]
    shipped = Predictor.load(out, device=place.device, coverage="whole", engine="auto")
    write_confidence(out, cross_calibrate(shipped, predictors, place.data, progress=progress))
    return out


def _write_history(out: Path, place: Place, trial: Trial, *, split: str) -> None:
    """Which cases taught and which judge, and the threshold baseline of those that taught, as a run folder has them."""
    store = open_store(place.store_of(trial.runs[0]))
    parts = find_split(split, list(store.cases))
    taught = sorted((*parts.train, *parts.validation))
    cases = {"train": taught, "validation": [], "test": list(parts.test)}
    write_json(out / MANIFEST, {"finished": True, "cases": cases, "source": str(place.data)})

    def codes() -> Iterator[tuple[dict[MriSequence, NDArray[np.uint8]], NDArray[np.uint8]]]:
        for case in taught:
            array = np.asarray(store.read(case))
            yield dict(zip(store.cases[case].sequences, array[:-1], strict=True)), array[-1]

    write_json(out / THRESHOLDS, thresholds_to_plain(fit_thresholds(codes())))


def scores_of(trial: Trial, place: Place, *, rule: str = "") -> list[Score]:
    """Scores of every case by the network that did not see it, of the folds that ran; the trial is the model.

    Args:
        trial: It.
        place: Of the study.
        rule: "" for the highest expected Dice, or :data:`PLAIN`.
    """
    rows: list[Score] = []
    for run in trial.runs:
        paths = (folder / run.name / DECIDED for folder in place.score_folders)
        path = next((path for path in paths if path.is_file()), None)
        scores = [] if path is None else read_scores(path)
        rows += [replace(row, model=trial.name) for row in scores if row.model == run.name + rule]
    return rows


@dataclass(frozen=True)
class TrialRow:
    """A trial in numbers, over cases.

    Attributes:
        trial: It.
        cases: How many were scored.
        complete: Region -> mean Dice with all four sequences.
        average: Region -> mean Dice over the fifteen subsets.
        plain: The same, decided by the most probable class.
        difference: Region, or "mean" -> average minus that of the trial it is held against, paired by case.
    """

    trial: Trial
    cases: int
    complete: dict[str, Interval]
    average: dict[str, Interval]
    plain: dict[str, Interval]
    difference: dict[str, Interval]


def compare(place: Place) -> list[TrialRow]:
    """Every trial that was run, with its difference to the one it is held against."""
    scores = {trial.name: scores_of(trial, place) for trial in TRIALS.values()}
    rows = []
    for trial in (trial for trial in TRIALS.values() if scores[trial.name]):
        mine = scores[trial.name]
        averaged = average_subsets(mine)
        complete = {str(r): bootstrap_mean(_values(mine, trial, str(r), format_subset(SEQUENCES))) for r in REGIONS}
        average = {str(r): bootstrap_mean(_values(averaged, trial, str(r), ALL_SUBSETS)) for r in REGIONS}
        alone = [replace(row, model=trial.name) for row in scores_of(trial, place, rule=PLAIN)]
        plain = {str(r): bootstrap_mean(_values(average_subsets(alone), trial, str(r), ALL_SUBSETS)) for r in REGIONS}
        difference = {}
        other = TRIALS[trial.against] if trial.against and scores[trial.against] else None
        if other is not None:
            theirs = average_subsets(scores[other.name])
            for region in (*map(str, REGIONS), "mean"):
                first, second = (_values(a, t, region, ALL_SUBSETS) for a, t in ((averaged, trial), (theirs, other)))
                shared = first.keys() & second.keys()
                difference[region] = paired_difference(
                    {case: first[case] for case in sorted(shared)}, {case: second[case] for case in sorted(shared)}
                )
        cases = len({row.case for row in mine})
        rows.append(TrialRow(trial, cases, complete, average, plain, difference))
    return rows


def _values(scores: Sequence[Score], trial: Trial, region: str, subset: str) -> dict[str, float]:
    if region == "mean":
        return mean_dice_of_cases(scores, model=trial.name, subset=subset)
    return dict(values_of(scores, model=trial.name, subset=subset, region=region))


def trials_markdown(rows: Sequence[TrialRow]) -> str:
    """The table of what was tried."""
    lines = [
        "| trial | what it is | n | steps | four sequences WT / TC / ET | mean of 15 WT / TC / ET |"
        " by the most probable class | against | difference of the mean of 15 WT / TC / ET | of all three |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        tables = (row.complete, row.average, row.plain)
        complete, average, plain = (" / ".join(_percent(table[str(r)]) for r in REGIONS) for table in tables)
        parts = [_signed(row.difference[str(r)]) for r in REGIONS] if row.difference else []
        mean = _signed(row.difference["mean"]) if row.difference else ""
        cells = [row.trial.name, row.trial.says, str(row.cases), f"{row.trial.steps:,}", complete, average, plain,
                 row.trial.against if row.difference else "", " / ".join(parts), mean]  # fmt: skip
        lines.append(f"| {' | '.join(cell or '' for cell in cells)} |")
    return "\n".join(lines) + "\n"


def subsets_markdown(scores: Sequence[Score]) -> str:
    """Dice of every subset and of their mean in percent, with 95 % bootstrap intervals, beside the best threshold.

    Args:
        scores: Of one network and of the baseline, as ``mindgap evaluate`` writes them.
    """
    model = next(row.model for row in scores if row.model != BASELINE)
    rows = [*scores, *average_subsets(scores)]
    lines = [
        f"| sequences | n | {' | '.join(map(str, REGIONS))} | best threshold {' / '.join(map(str, REGIONS))} |",
        f"|---|---|{'---|' * len(REGIONS)}---|",
    ]
    for subset in (*map(format_subset, SUBSETS), ALL_SUBSETS):
        values = [values_of(rows, model=model, subset=subset, region=str(region)) for region in REGIONS]
        if values[0]:
            means = [bootstrap_mean(column) for column in values]
            base = [bootstrap_mean(values_of(rows, model=BASELINE, subset=subset, region=str(r))) for r in REGIONS]
            beside = " / ".join(_percent(b) for b in base) if base[0].n else "not run"
            lines.append(f"| {' | '.join([subset, str(means[0].n), *map(_bracketed, means), beside])} |")
    return "\n".join(lines) + "\n"


def _bracketed(value: Interval) -> str:
    return f"{_percent(value)} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _percent(value: Interval) -> str:
    return f"{100 * value.mean:.1f}"


def _signed(value: Interval) -> str:
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
