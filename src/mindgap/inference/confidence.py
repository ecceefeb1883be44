"""How far a mask can be trusted: expected Dice, intervals of volumes, and a flag for those a human should look at.

What is known of a network stands in ``confidence.json`` beside its weights; :mod:`mindgap.inference.calibration` writes
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case
from mindgap.data.patients import by_patient
from mindgap.errors import MindgapError
from mindgap.evaluation.calibration import DiceModel, Temperature, expected_dice, scale_classes, scale_regions
from mindgap.evaluation.conformal import highest_level, volume_interval, volume_residual
from mindgap.files import read_json, write_json
from mindgap.inference.estimate import NO_TUMOUR, Estimate
from mindgap.inference.familiarity import Features, Strangeness, describe_image, strangeness, twin
from mindgap.inference.predictor import Segmentation
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.runfiles import CONFIDENCE
from mindgap.sequences import Sequence, format_subset

FORMAT = 1
POOLED = "all subsets"
"""Name under which what was fitted to all subsets together stands."""
FAINT = 1e-4
"""Voxels whose WT probability is lower, and which are outside the mask, count as background."""


@dataclass(frozen=True)
class Observed:
    """One region of a case the network was calibrated on.

    Attributes:
        case: Its name.
        subset: What the network looked at.
        region: WT, TC or ET.
        dice: Reached, on the grid of the files.
        expected: Dice that the probabilities lead to expect, not yet calibrated; NaN for an empty mask.
        predicted_ml: Volume of the mask.
        reference_ml: Volume of the reference.
    """

    case: str
    subset: str
    region: str
    dice: float
    expected: float
    predicted_ml: float
    reference_ml: float


@dataclass(frozen=True)
class Confidence:
    """What is known of a network from cases it did not learn from.

    Attributes:
        model_sha256: Of the weights it speaks of.
        coverage: How the cases were predicted, "tiles" or "whole".
        part: Which cases: "validation", "all" or the names given.
        level: Of the volume intervals.
        review_below: Expected Dice of WT below which a mask is to be looked at.
        observed: Every case, subset and region.
        temperatures: Subset, or ``POOLED`` -> temperature.
        dice_models: Subset, or ``POOLED`` -> region -> from expected to reached Dice.
        known: Case -> sequence -> features of training and calibration cases.
    """

    model_sha256: str
    coverage: str
    part: str
    level: float
    review_below: float
    observed: tuple[Observed, ...]
    temperatures: Mapping[str, Temperature]
    dice_models: Mapping[str, Mapping[str, DiceModel]]
    known: Mapping[str, Mapping[Sequence, Features]]

    def temperature(self, subset: str) -> float:
        """Of the subset, or of all together where its cases were too few."""
        return (self.temperatures.get(subset) or self.temperatures[POOLED]).value

    def dice_model(self, subset: str, region: str) -> DiceModel | None:
        """From expected to reached Dice; None where too few cases were known."""
        return self.dice_models.get(subset, {}).get(region) or self.dice_models[POOLED].get(region)

    def residuals(self, subset: str, region: str) -> list[float]:
        """Volume residuals on exactly this subset, one per patient: only these are exchangeable with a new patient's.

        Of several scans of a patient the first by name counts.
        """
        rows = {row.case: row for row in self.observed if row.subset == subset and row.region == region}
        return [volume_residual(rows[first].predicted_ml, rows[first].reference_ml) for first, *_ in by_patient(rows)]

    def dice(self, subset: str) -> dict[str, dict[str, float]]:
        """Region, or "mean" of the three -> case -> Dice reached on a subset."""
        table: dict[str, dict[str, float]] = {str(region): {} for region in REGIONS}
        for row in self.observed:
            if row.subset == subset:
                table[row.region][row.case] = row.dice
        cases = table[str(Region.WT)]
        return {**table, "mean": {case: float(np.mean([table[str(r)][case] for r in REGIONS])) for case in cases}}


def estimate(
    confidence: Confidence, segmentation: Segmentation, case: Case, *, coverage: str, mirrored: bool = False
) -> Estimate:
    """Say how far a mask can be trusted.

    Args:
        confidence: What is known of the network.
        segmentation: What it found.
        case: The images it looked at.
        coverage: How it was applied.
        mirrored: Whether its mirror images were averaged, which no calibration is made with.
    """
    subset = format_subset(segmentation.subset)
    temperature = confidence.temperature(subset)
    raw = expected_by_region(*shown_voxels(segmentation), temperature)
    models = {region: confidence.dice_model(subset, str(region)) for region in REGIONS}
    volumes_ml = segmentation.volumes_ml
    dice = {r: math.nan if model is None else model(raw[r], volumes_ml[r]) for r, model in models.items()}
    residuals = {region: confidence.residuals(subset, str(region)) for region in REGIONS}
    volumes = {region: volume_interval(volumes_ml[region], residuals[region], confidence.level) for region in REGIONS}
    features = {s: describe_image(case.images[s]) for s in segmentation.subset}
    strange, same = strangeness(features, confidence.known), twin(features, confidence.known)
    n = len(residuals[Region.WT])
    return Estimate(
        subset=subset,
        n=n,
        temperature=temperature,
        dice=dice,
        volumes=volumes,
        level=confidence.level,
        strangeness=strange,
        review=_reasons(segmentation, dice, strange, confidence.review_below),
        notes=(*_notes(confidence, subset, n, coverage, mirrored), *_note_of_known(same)),
    )


def shown_voxels(segmentation: Segmentation) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Probabilities (R v) and classes (v) of the voxels that are more than faint, or in the mask."""
    inside = (segmentation.probabilities[0] >= FAINT) | (segmentation.target > 0)
    return segmentation.probabilities[:, inside], segmentation.target[inside]


def expected_by_region(
    probabilities: NDArray[np.float32], classes: NDArray[np.uint8], temperature: float
) -> dict[Region, float]:
    """Expected Dice of each region at a temperature, not yet calibrated.

    Args:
        probabilities: WT, TC, ET (R v) of :func:`shown_voxels`.
        classes: Of the mask (v).
        temperature: Of the network.
    """
    scaled = scale_regions(probabilities, temperature)
    return {region: expected_dice(scaled[n], region_mask(classes, region)) for n, region in enumerate(REGIONS)}


def entropy_bits(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    r"""Entropy of the four classes in bits, $-\sum_c p_c \log_2 p_c$: 0 where the network is sure, 2 at most.

    Args:
        probabilities: WT, TC, ET (R i j k).
        temperature: Of the network; 1 takes the probabilities as they are.

    Returns:
        (i j k); 0 where WT is fainter than ``FAINT``.
    """
    entropy = np.zeros(probabilities.shape[1:], dtype=np.float32)
    inside = probabilities[0] >= FAINT
    shares = scale_classes(probabilities[:, inside], temperature)
    entropy[inside] = -(shares * np.log2(shares)).sum(0)
    return entropy


def write_confidence(folder: Path, confidence: Confidence) -> None:
    """Write confidence.json into a model folder."""
    value = {
        "format": FORMAT,
        **{name: getattr(confidence, name) for name in ("model_sha256", "coverage", "part", "level", "review_below")},
        "temperatures": {subset: _plain(asdict(t)) for subset, t in confidence.temperatures.items()},
        "dice_models": {s: {r: asdict(m) for r, m in models.items()} for s, models in confidence.dice_models.items()},
        "observed": [_plain(asdict(row)) for row in confidence.observed],
        "known": {
            case: {str(s): [round(x, 5) for x in features] for s, features in images.items()}
            for case, images in confidence.known.items()
        },
    }
    write_json(folder / CONFIDENCE, value)


def read_confidence(folder: Path, model_sha256: str) -> Confidence | None:
    """Read confidence.json of a model folder; None where there is none.

    Raises:
        MindgapError: It speaks of other weights, or is of another format, or is damaged.
    """
    path = folder / CONFIDENCE
    if not path.is_file():
        return None
    value = read_json(path)
    mend = f"run `mindgap calibrate {folder}` again, or remove the file."
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise MindgapError(f"{path} is not of format {FORMAT}, which this version reads: {mend}")
    if value.get("model_sha256") != model_sha256:
        raise MindgapError(
            f"{path} speaks of other weights (SHA-256 {str(value.get('model_sha256'))[:12]}..., these are "
            f"{model_sha256[:12]}...): {mend}"
        )
    try:
        return Confidence(
            **{name: value[name] for name in ("model_sha256", "coverage", "part", "level", "review_below")},
            observed=tuple(Observed(**_numbers(row)) for row in value["observed"]),
            temperatures={subset: Temperature(**_numbers(t)) for subset, t in value["temperatures"].items()},
            dice_models={
                s: {r: _dice_model(m) for r, m in models.items()} for s, models in value["dice_models"].items()
            },
            known={
                case: {Sequence(s): tuple(features) for s, features in images.items()}
                for case, images in value["known"].items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MindgapError(f"{path} is damaged ({error}): {mend}") from error


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {n: (round(v, 6) if math.isfinite(v) else None) if isinstance(v, float) else v for n, v in values.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _dice_model(value: dict[str, Any]) -> DiceModel:
    pairs: dict[str, Any] = {name: tuple(value[name]) for name in ("slopes", "low", "high")}
    return DiceModel(**{**value, **pairs})


def _reasons(
    segmentation: Segmentation, dice: Mapping[Region, float], strange: Strangeness | None, below: float
) -> tuple[str, ...]:
    reasons = []
    if not segmentation.target.any():
        reasons.append(NO_TUMOUR)
    elif dice[Region.WT] < below:
        reasons.append(f"expected Dice of WT {dice[Region.WT]:.2f} is below {below:.2f}")
    elif math.isnan(dice[Region.WT]):
        reasons.append("no Dice can be expected: the network was calibrated on too few cases to judge this mask")
    if strange is not None and strange.is_strange:
        reasons.append(
            f"unlike the {strange.n} cases the network is known on: the {strange.feature} is {strange.distance:.1f} "
            f"standard deviations off, theirs at most {strange.limit:.1f}"
        )
    return tuple(reasons)


def _note_of_known(case: str | None) -> tuple[str, ...]:
    if case is None:
        return ()
    return (f"these are images of {case}, which the network was trained or calibrated on: other cases come out worse",)


def _notes(confidence: Confidence, subset: str, n: int, coverage: str, mirrored: bool) -> tuple[str, ...]:
    notes = []
    if n == 0:
        notes.append(f"the network was not calibrated on {subset}: expected Dice is that of other subsets")
    elif highest_level(n) < confidence.level - 1e-9:
        notes.append(
            f"no volume interval at {confidence.level:.0%}: {n} calibration cases reach {highest_level(n):.0%} at most"
        )
    if confidence.part == "validation":
        notes.append("calibrated on the validation cases, which chose the network too: expected Dice may be too high")
    if coverage != confidence.coverage:
        notes.append(f"calibrated with coverage {confidence.coverage}, applied with {coverage}")
    if mirrored:
        notes.append("calibrated without mirror images, applied with them (--tta)")
    return tuple(notes)
