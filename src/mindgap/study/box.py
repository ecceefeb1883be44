"""The network in the box: cross-validated over the cases that may teach, compared, put together and calibrated.

Folds are cut from the training and validation cases of a split; its test cases are in none of them. The networks of the
folds are the members of what is shipped, so that everything that is said of it (the table of what was tried, expected
Dice, calibration) comes from cases that the member in question has not seen.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mindgap.api import prepare
from mindgap.batch import fill_absent
from mindgap.data.cohort import discover_labelled
from mindgap.data.phantom import write_cohort
from mindgap.data.prepared import Preparation
from mindgap.data.resident import ResidentCases
from mindgap.data.splits import find_split
from mindgap.data.store import INDEX, open_store
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.scores import Score, write_scores
from mindgap.evaluation.threshold import fit_thresholds, thresholds_to_plain
from mindgap.files import read_json, write_json
from mindgap.inference.calibration import cross_calibrate
from mindgap.inference.confidence import write_confidence
from mindgap.inference.decision import classes_from_regions, highest_expected_dice
from mindgap.inference.export import GateCases, can_quantise, counted, cross_gate, make_int8, quantised_folder
from mindgap.inference.exported import write_exported
from mindgap.inference.predictor import Predictor
from mindgap.inference.tiling import predict_tiled, predict_whole
from mindgap.networks.build import build_network
from mindgap.networks.card import WEIGHTS
from mindgap.networks.ensemble import Ensemble
from mindgap.networks.fused_unet import FusedUNet
from mindgap.networks.weights import load_network, save_network
from mindgap.processor import cpu_count
from mindgap.progress import Progress, Stage
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.runfiles import MANIFEST, MEMBERS, THRESHOLDS
from mindgap.sequences import SUBSETS, Subset, format_subset
from mindgap.sequences import Sequence as MriSequence
from mindgap.shapes import STRIDE
from mindgap.study.cohort import follow_data, refuse_other_split
from mindgap.study.grid import Run
from mindgap.study.keep import DECIDED
from mindgap.study.scale import Place
from mindgap.study.trial_tables import LOWERED, PLAIN, rule_of
from mindgap.study.trials import BOX, FOLDS, SPACING_MM, Trial, runs_of

LOWER = 1.0
"""By how much the log-odds of tumour against none are lowered in what is shipped.

Many crops of the training are centred on a tumour, so that the networks draw too much of it; chosen by cross-validation
of the trainings before and kept (docs/results/box/tables/odds.md).
"""
_PHANTOM_SEED = 500
_PER_FOLD = 3
"""Cases of each fold that give what is shipped the ranges of int8."""


def prepare_folds(
    out: Path,
    data: Path,
    trials: Sequence[Trial],
    *,
    split: str,
    device: str,
    stage: Stage,
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
        SettingError: A store there was made from other data, or with another split.
    """
    place = Place(out, data, out / "folds", device)
    runs = {place.store_of(run): run for run in runs_of(trials)}
    for store, run in sorted(runs.items()):
        if (store / INDEX).is_file():
            known = open_store(store)
            refuse_other_split(known, f"{split}:{run.fold}/{folds}")
            follow_data(known, data)
            continue
        also = {_grow(out / f"phantoms{run.phantoms}", run.phantoms, stage): None} if run.phantoms else {}
        said = stage(f"preparing fold {run.fold} of {folds}")
        prepare(data, store, Preparation(spacing_mm=SPACING_MM), split=f"{split}:{run.fold}/{folds}", also=also,
                workers=cpu_count(), progress=said)  # fmt: skip
    return place


def _grow(folder: Path, count: int, stage: Stage) -> Path:
    """Synthetic patients that teach; others than those that judge."""
    said = stage(f"growing {count} phantoms")
    write_cohort(folder, cases=count, seed=_PHANTOM_SEED, spacing_mm=SPACING_MM, workers=cpu_count(),
                 progress=lambda done, total: said(done, total, ""))  # fmt: skip
    return folder


def _judged(place: Place, run: Run) -> list[str]:
    """The cases that the network of a fold has not seen."""
    return open_store(place.store_of(run)).part("test")


def is_here(place: Place, run: Run) -> bool:
    """Whether the network of a run lies on this machine."""
    return (place.run(run.name) / WEIGHTS).is_file()


def score_folds(place: Place, trial: Trial, *, progress: Progress) -> None:
    """Score every case by the network that has not seen it, on the network's grid, by several rules of decision.

    Writes ``decided.csv`` into the run folder of each fold: rows of the run's name decide by the highest expected Dice,
    rows of :data:`PLAIN` after it by the most probable class; for the box also by lowered odds (:data:`LOWERED`).

    Args:
        place: Of the study.
        trial: It; folds whose networks are not here are left out.
        progress: Called after each case.
    """
    runs = [run for run in trial.runs if is_here(place, run)]
    done, total = 0, sum(len(_judged(place, run)) for run in runs)
    for run in runs:
        store = open_store(place.store_of(run))
        judged = store.part("test")
        predictor = Predictor.load(place.run(run.name), device=place.device, engine="auto")
        cases, rows = ResidentCases(store, judged, subset=store.sequences), []
        for index, case in enumerate(judged):
            target = cases.whole(index).target
            assert target is not None
            reference = target[0].numpy().astype(np.uint8)
            for subset in (some for some in SUBSETS if set(some) <= set(store.cases[case].sequences)):
                seen = cases.whole(index, shown=subset).show(subset)
                image = fill_absent(seen.image, seen.present)[0].numpy()
                run_it = partial(predictor.engine, present=seen.present[0].numpy())
                if trial.coverage == "whole":
                    maps = predict_whole(image, run_it, multiple=STRIDE)
                else:
                    maps = predict_tiled(image, run_it, window=predictor.card.crop)
                decided = {run.name + PLAIN: classes_from_regions(maps, predictor.head)}
                for lowered in LOWERED if trial.name == BOX else LOWERED[:1]:
                    decided[run.name + rule_of(lowered)] = highest_expected_dice(lower_odds(maps, lowered))
                for name, found in decided.items():
                    mask = cases.spread(index, found, subset)
                    rows += [_score(name, case, subset, region, mask, reference) for region in REGIONS]
            done += 1
            progress(done, total, case)
        write_scores(place.run(run.name) / DECIDED, rows)


def _score(
    model: str, case: str, subset: Subset, region: Region, found: NDArray[np.uint8], reference: NDArray[np.uint8]
) -> Score:
    a, b = region_mask(found, region), region_mask(reference, region)
    volumes = (float(mask.sum()) * SPACING_MM**3 / 1000.0 for mask in (b, a))
    return Score(model, case, format_subset(subset), str(region), dice(a, b), math.nan, *volumes)


def lower_odds(maps: NDArray[np.float32], by: float) -> NDArray[np.float32]:
    r"""Probabilities of nested regions after the log-odds of tumour against none were lowered.

    $w' = e^{-s} w / (1 - w + e^{-s} w)$ of the whole tumour; within it the shares of the regions stay.

    Args:
        maps: (3, i, j, k), WT first.
        by: s.
    """
    odds = np.float32(math.exp(-by))
    lowered: NDArray[np.float32] = maps * (odds / (1 - maps[:1] + odds * maps[:1]))
    return lowered


def _lower_bias(network: FusedUNet, by: float) -> None:
    """The same in the network itself: background, class 0, gains what the others lose."""
    assert network.head.bias is not None
    with torch.no_grad():
        network.head.bias[0] += by


def build_box(place: Place, trial: Trial, *, split: str, progress: Progress, int8: bool | None = None) -> Path:
    """Put the networks of the folds together, in float16, and say of them what the cross-validation found.

    Args:
        place: Of the study.
        trial: Whose networks.
        split: Whose folds they are; its test cases, which no network has seen, judge what is made.
        progress: Called after each subset of each case of the calibration.
        int8: Whether to make an int8 network, too; None where the packages for it are installed.

    Returns:
        The model folder, OUT/box.
    """
    out = assemble_box(place, trial, split=split)
    measure_gate(place, trial, int8=can_quantise() if int8 is None else int8, progress=progress)
    measure_confidence(place, trial, progress=progress)
    return out


def assemble_box(place: Place, trial: Trial, *, split: str) -> Path:
    """The networks of the folds as one, and what taught it."""
    known = [load_network(_make_member(place, run)) for run in trial.runs]
    first = known[0].card
    arguments = {"count": len(known), "architecture": first.architecture, "arguments": first.arguments}
    card = replace(first, architecture="ensemble", arguments=arguments, method=BOX)
    network = build_network(card.architecture, card.arguments)
    assert isinstance(network, Ensemble)
    for member, trained in zip(network.members, known, strict=True):
        member.load_state_dict(trained.network.state_dict())
    out = place.out / BOX
    save_network(out, network, card, half=True)
    _write_history(out, place, trial, split=split)
    return out


def measure_gate(place: Place, trial: Trial, *, int8: bool, progress: Progress) -> None:
    """Whether one pass over the brain and int8 lose nothing, by cross-validation; noted in ``exported.json``.

    Args:
        place: Of the study.
        trial: Whose networks.
        int8: Whether to quantise each member with cases that taught it, and where that loses nothing the box, too.
        progress: Called after each subset of each case.
    """
    cohort, convention = discover_labelled(place.data, None)
    there = {files.case_id: files for files in cohort.cases}

    def cases_of(run: Run) -> GateCases:
        store = open_store(place.store_of(run))
        taught, judged = (
            [there[case] for case in store.part(part) if case not in store.joined] for part in ("train", "test")
        )
        return GateCases(taught, judged, convention)

    folds = {_member_of(place, run): cases_of(run) for run in trial.runs}
    exported = cross_gate(folds, device=place.device, int8=int8, progress=progress)
    out = place.out / BOX
    shutil.rmtree(quantised_folder(out), ignore_errors=True)  # of a box before
    if exported.int8 is not None and exported.int8.passed:
        make_int8(out, [files for cases in folds.values() for files in cases.validation[:_PER_FOLD]])
    network = load_network(out)
    write_exported(out, network.sha256, counted(exported, network))


def measure_confidence(place: Place, trial: Trial, *, progress: Progress) -> None:
    """Expected Dice, calibration and volume intervals, by cross-validation."""
    load = partial(Predictor.load, device=place.device, coverage="whole", engine="auto")
    out = place.out / BOX
    members = [load(_member_of(place, run)) for run in trial.runs]
    write_confidence(out, cross_calibrate(load(out), members, place.data, progress=progress))


def _member_of(place: Place, run: Run) -> Path:
    """Where the network of a fold lies as it stands in what is shipped; gate and confidence are measured on it."""
    return place.out / MEMBERS / run.name


def _make_member(place: Place, run: Run) -> Path:
    """The network of a fold with lowered odds, in a folder of its own; its card asks for what it is scored by."""
    source, out = place.run(run.name), _member_of(place, run)
    trained = load_network(source)
    assert isinstance(trained.network, FusedUNet)
    _lower_bias(trained.network, LOWER)
    save_network(out, trained.network, replace(trained.card, decision="expected_dice", coverage="whole"))
    for name in (MANIFEST, THRESHOLDS):
        write_json(out / name, read_json(source / name))
    return out


def _write_history(out: Path, place: Place, trial: Trial, *, split: str) -> None:
    """Which cases taught and which judge, and the threshold baseline of those that taught, as a run folder has them."""
    store = open_store(place.store_of(trial.runs[0]))
    joined = store.joined
    parts = find_split(split, [case for case in store.cases if case not in joined])
    taught = sorted((*parts.train, *parts.validation))
    cases = {"train": sorted((*taught, *joined)), "validation": [], "test": list(parts.test)}
    write_json(out / MANIFEST, {"finished": True, "cases": cases, "source": str(place.data)})

    def codes() -> Iterator[tuple[dict[MriSequence, NDArray[np.uint8]], NDArray[np.uint8]]]:
        for case in taught:
            array = np.asarray(store.read(case))
            yield dict(zip(store.cases[case].sequences, array[:-1], strict=True)), array[-1]

    write_json(out / THRESHOLDS, thresholds_to_plain(fit_thresholds(codes())))
