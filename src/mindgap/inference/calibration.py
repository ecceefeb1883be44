"""A trained network and cases it did not learn from, into what is known of it: ``confidence.json``."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case, CaseFiles
from mindgap.data.cohort import Cohort, discover_labelled
from mindgap.data.history import cases_of, history_of
from mindgap.data.patients import of_same_patients
from mindgap.data.volume import volume_of_voxel_ml
from mindgap.errors import SettingError
from mindgap.evaluation.calibration import DiceModel, Temperature, fit_dice, fit_temperature, likelihood_curve
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.rules import DEFAULT_RULES
from mindgap.files import read_json
from mindgap.inference.confidence import POOLED, Confidence, Observed, expected_by_region, shown_voxels
from mindgap.inference.familiarity import Features, describe_image
from mindgap.inference.opened import OpenedCase
from mindgap.inference.predictor import Predictor, Segmentation
from mindgap.progress import Progress, silent
from mindgap.regions import REGIONS, region_mask, region_volumes_ml
from mindgap.runfiles import MANIFEST
from mindgap.sequences import Sequence as MriSequence
from mindgap.sequences import Subset, format_subset

FEWEST_ALONE = 20
"""Cases from which on a subset has its own temperature and Dice model; below, all subsets share one."""
_VOXELS = 20_000
_SHOWN = 300_000
_COARSE = np.geomspace(0.25, 8.0, 17)


@dataclass
class _Measured:
    """What cases gave, before the temperature is known."""

    curves: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    rows: list[tuple[Observed, NDArray[np.float64]]] = field(default_factory=list)
    known: dict[str, dict[MriSequence, Features]] = field(default_factory=dict)


def calibrate(
    predictor: Predictor,
    data: Path | None = None,
    *,
    cases: str = "validation",
    subsets: Sequence[Subset] | None = None,
    level: float = 0.9,
    review_below: float = 0.7,
    labels: str | None = None,
    progress: Progress = silent,
) -> Confidence:
    """Measure a network on cases it did not learn from.

    Args:
        predictor: The network, applied as it will be applied.
        data: Cohort with labels, or the store that was made from it; by default what the run's manifest names.
        cases: "validation", those of the run; "all", every case that is neither a training nor a test case of the run;
            or names, joined by commas.
        subsets: What to measure; every subset the network takes when None.
        level: Of the volume intervals.
        review_below: Expected Dice of WT below which a mask is to be looked at.
        labels: Label convention, where the layout does not tell.
        progress: Called after each subset of each case.

    Raises:
        SettingError: A case is one the network learnt from or is judged by, or there is none.
        InputError: A case has no reference, or cannot be read.
    """
    if not 0 < level < 1 or not 0 <= review_below <= 1:
        raise SettingError(f"level {level} and review-below {review_below}: choose 0 to 1, such as 0.9 and 0.7.")
    wanted = predictor.subsets if subsets is None else tuple(subsets)
    for subset in wanted:
        predictor.check(subset)
    cohort, _ = discover_labelled(data or _source(predictor.folder), labels)
    parts = cases_of(predictor.folder) if (predictor.folder / MANIFEST).is_file() else {}
    chosen = _choose(cohort, cases, parts, predictor.folder)
    measured = _Measured()
    for view in segmented(predictor, chosen, cohort, wanted, progress=progress):
        _measure(measured, view)
    _look_at(measured, cohort, parts.get("train", ()), predictor)
    return _conclude(measured, predictor, wanted, part=cases, level=level, review_below=review_below)


def cross_calibrate(
    shipped: Predictor,
    members: Sequence[Predictor],
    data: Path,
    *,
    level: float = 0.9,
    review_below: float = 0.7,
    labels: str | None = None,
    progress: Progress = silent,
) -> Confidence:
    """Measure the networks of a cross-validation, each on its own test cases, and say it of what they make together.

    Together they are a little better and less sure of themselves than each alone, so that what is said errs towards
    caution; nothing else can be said without cases that none of them has seen.

    Args:
        shipped: What the result speaks of: the members, averaged.
        members: Run folders of the folds, loaded; each knows its cases from its manifest.
        data: Cohort with labels.
        level: Of the volume intervals.
        review_below: Expected Dice of WT below which a mask is to be looked at.
        labels: Label convention, where the layout does not tell.
        progress: Called after each subset of each case.

    Raises:
        SettingError: Two members judge the same case, or one learnt from what it judges.
        InputError: A case has no reference, or cannot be read.
    """
    cohort, _ = discover_labelled(data, labels)
    there = {files.case_id: files for files in cohort.cases}
    parts = [cases_of(member.folder) for member in members]
    judged = [case for part in parts for case in part["test"]]
    if len(set(judged)) < len(judged) or any({*p["test"]} & {*p["train"], *p["validation"]} for p in parts):
        raise SettingError("these are no folds of one cross-validation: a case is judged twice, or by who learnt it.")
    measured, done = _Measured(), 0
    for member, part in zip(members, parts, strict=True):
        chosen = [there[case] for case in part["test"] if case in there]
        before = done

        def said(some: int, _: int, case: str, before: int = before) -> None:
            progress(before + some, len(judged) * len(shipped.subsets), case)

        for view in segmented(member, chosen, cohort, shipped.subsets, progress=said):
            _measure(measured, view)
        done += len(chosen) * len(shipped.subsets)
    return _conclude(
        measured, shipped, shipped.subsets, part="cross-validation", level=level, review_below=review_below
    )


def _look_at(measured: _Measured, cohort: Cohort, case_ids: Sequence[str], predictor: Predictor) -> None:
    """Note what training cases look like."""
    for files in cohort.cases:
        if files.case_id in case_ids:
            case = files.load(tuple(s for s in predictor.card.sequences if s in files.images))
            measured.known[files.case_id] = {s: describe_image(volume) for s, volume in case.images.items()}


def _conclude(
    measured: _Measured, predictor: Predictor, wanted: Sequence[Subset], *, part: str, level: float, review_below: float
) -> Confidence:
    if not measured.rows:
        raise SettingError(f"no case has all sequences of any of {', '.join(map(format_subset, wanted))}.")
    temperatures = _temperatures(measured)
    observed = tuple(_at_temperature(row, curve, temperatures) for row, curve in measured.rows)
    return Confidence(
        model_sha256=predictor.sha256,
        coverage=predictor.planned_coverage,
        part=part,
        level=level,
        review_below=review_below,
        observed=observed,
        temperatures=temperatures,
        dice_models=_dice_models(observed),
        known=measured.known,
    )


@dataclass(frozen=True)
class View:
    """A subset of a case, what the network found in it, and the reference on the same grid."""

    case: Case
    segmentation: Segmentation
    reference: NDArray[np.uint8]


def segmented(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    cohort: Cohort,
    subsets: Sequence[Subset],
    *,
    progress: Progress = silent,
) -> Iterator[View]:
    """Every case on every one of the subsets that it has.

    Raises:
        InputError: A case has no reference, or cannot be read.
    """
    assert cohort.convention is not None
    for number, files in enumerate(cases):
        opened = OpenedCase(files, cohort.convention, predictor.preparation, DEFAULT_RULES)
        for done, subset in enumerate(subsets, start=number * len(subsets) + 1):
            if set(subset) <= set(files.sequences):
                case = opened.case(subset)
                assert case.target is not None
                found = predictor.segment(case, subset, prepared=opened.prepared(subset))
                yield View(case, found, case.target)
            progress(done, len(cases) * len(subsets), files.case_id)


def brain_voxels(view: View) -> NDArray[np.intp]:
    """At most 20,000 brain voxels of a case, drawn at random but the same for all of its subsets on the same brain."""
    inside = np.any([volume.array > 0 for volume in view.case.images.values()], axis=0)
    places = np.flatnonzero(inside)
    if len(places) <= _VOXELS:
        return places
    rng = np.random.default_rng(zlib.crc32(view.case.case_id.encode(errors="surrogateescape")))
    return rng.choice(places, _VOXELS, replace=False)


def region_dice(view: View) -> dict[str, float]:
    """Dice of each region, on the grid of the files."""
    masks = ((r, region_mask(view.segmentation.target, r), region_mask(view.reference, r)) for r in REGIONS)
    return {str(region): dice(found, reference) for region, found, reference in masks}


def reference_volumes_ml(view: View) -> dict[str, float]:
    """Volume of each region of the reference."""
    volumes = region_volumes_ml(view.reference, volume_of_voxel_ml(view.case.reference.affine))
    return {str(region): ml for region, ml in volumes.items()}


def _measure(measured: _Measured, view: View) -> None:
    case_id, subset = view.case.case_id, format_subset(view.segmentation.subset)
    places = brain_voxels(view)
    flat = view.segmentation.probabilities.reshape(len(REGIONS), -1)[:, places]
    measured.curves.setdefault(subset, {})[case_id] = likelihood_curve(flat, view.reference.ravel()[places])
    probabilities, classes = shown_voxels(view.segmentation)
    every = max(1, len(classes) // _SHOWN)  # Dice is a ratio of sums: a share of the voxels tells it well enough here
    curves = [expected_by_region(probabilities[:, ::every], classes[::every], float(t)) for t in _COARSE]
    reached, volumes = region_dice(view), reference_volumes_ml(view)
    for region in REGIONS:
        name = str(region)
        row = Observed(
            case=case_id,
            subset=subset,
            region=name,
            dice=reached[name],
            expected=float("nan"),
            predicted_ml=view.segmentation.volumes_ml[region],
            reference_ml=volumes[name],
        )
        measured.rows.append((row, np.array([curve[region] for curve in curves])))
    features = measured.known.setdefault(case_id, {})
    features.update({s: describe_image(v) for s, v in view.case.images.items() if s not in features})


def _temperatures(measured: _Measured) -> dict[str, Temperature]:
    """One of all subsets together, and one of each subset that has enough cases."""
    cases = sorted({case for curves in measured.curves.values() for case in curves})
    pooled = {case: np.mean([c[case] for c in measured.curves.values() if case in c], axis=0) for case in cases}
    own = {subset: curves for subset, curves in measured.curves.items() if len(curves) >= FEWEST_ALONE}
    return {POOLED: fit_temperature(pooled), **{subset: fit_temperature(curves) for subset, curves in own.items()}}


def _at_temperature(row: Observed, curve: NDArray[np.float64], temperatures: Mapping[str, Temperature]) -> Observed:
    """The row with the Dice to expect at the temperature of its subset, from a curve over temperatures."""
    temperature = (temperatures.get(row.subset) or temperatures[POOLED]).value
    return replace(row, expected=float(np.interp(np.log(temperature), np.log(_COARSE), curve)))


def _dice_models(observed: Sequence[Observed]) -> dict[str, dict[str, DiceModel]]:
    """One of all subsets together, and one of each subset that has enough cases."""
    models: dict[str, dict[str, DiceModel]] = {POOLED: {}}
    for subset in (POOLED, *dict.fromkeys(row.subset for row in observed)):
        for region in map(str, REGIONS):
            rows: dict[str, list[tuple[float, float, float]]] = {}
            for row in observed:
                if row.region == region and subset in (POOLED, row.subset):
                    rows.setdefault(row.case, []).append((row.expected, row.predicted_ml, row.dice))
            model = fit_dice(rows)
            if model is not None and (subset == POOLED or model.n >= FEWEST_ALONE):
                models.setdefault(subset, {})[region] = model
    return models


def _source(folder: Path) -> Path:
    path = folder / MANIFEST
    source = read_json(path).get("source") if path.is_file() else None
    if source is None:
        raise SettingError(f"{folder} does not say from which data it was trained: name a cohort with --data.")
    return Path(source)


def _choose(cohort: Cohort, cases: str, parts: Mapping[str, Sequence[str]], folder: Path) -> list[CaseFiles]:
    """The cases asked for, none of which shows a patient whom the network learnt from or is judged by."""
    barred = {*history_of(folder).learnt, *parts.get("test", ())}
    if cases == "validation":
        wanted = set(parts.get("validation", ()))
        if not wanted:
            raise SettingError(f"{folder} names no validation cases: add --cases all, or their names.")
    elif cases == "all":
        wanted = {files.case_id for files in cohort.cases}
        wanted -= set(of_same_patients(wanted, barred))
    else:
        wanted = {name.strip() for name in cases.split(",") if name.strip()}
    taken = of_same_patients(wanted, barred)
    if taken:
        raise SettingError(
            f"{', '.join(taken[:5])}: training or test cases of {folder}. What a network learnt from makes it look "
            "better than it is, and test cases only judge: name others."
        )
    there = {files.case_id: files for files in cohort.cases}
    absent = sorted(wanted - set(there))
    if absent or not wanted:
        said = f"{', '.join(absent[:5])} not among them" if absent else "all were for training or testing"
        raise SettingError(f"{cohort.root} holds {len(there)} cases, {said}: name the right cohort with --data.")
    return [there[case] for case in sorted(wanted)]
