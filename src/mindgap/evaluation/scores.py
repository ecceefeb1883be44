"""Scores as one tidy table: a row per model, case, subset and region."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import MindgapError
from mindgap.evaluation.metrics import Mask, Spacing, dice, hd95_mm
from mindgap.files import write_text
from mindgap.regions import REGIONS, Region, region_mask


@dataclass(frozen=True)
class Score:
    """How well one region of one case was found.

    Attributes:
        model: Who predicted ("threshold" is the best single threshold).
        case: Case id.
        subset: Sequences used, such as "T1+FLAIR".
        region: WT, TC or ET.
        dice: 0 to 1, definition "Dice v1".
        hd95_mm: Definition "HD95 v1", NaN where undefined.
        reference_ml: Volume of the reference.
        predicted_ml: Volume of the prediction.
    """

    model: str
    case: str
    subset: str
    region: str
    dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float


def score_case(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    spacing_mm: Spacing,
    *,
    model: str,
    case: str,
    subset: str,
) -> list[Score]:
    """Score one prediction in all regions.

    Args:
        predicted: Classes.
        reference: Classes on the same grid.
        spacing_mm: Voxel edges.
        model: Name of the row.
        case: Name of the case.
        subset: Name of the subset.
    """
    masks = {region: region_mask(predicted, region) for region in REGIONS}
    return score_masks(masks, reference, spacing_mm, model=model, case=case, subset=subset)


def score_masks(
    predicted: Mapping[Region, Mask],
    reference: NDArray[np.uint8],
    spacing_mm: Spacing,
    *,
    model: str,
    case: str,
    subset: str,
) -> list[Score]:
    """As :func:`score_case`, for a prediction given as one mask per region (they need not be nested)."""
    voxel_ml = math.prod(spacing_mm) / 1000.0
    rows = []
    for region in REGIONS:
        a, b = predicted[region], region_mask(reference, region)
        rows.append(
            Score(
                model=model,
                case=case,
                subset=subset,
                region=str(region),
                dice=dice(a, b),
                hd95_mm=hd95_mm(a, b, spacing_mm),
                reference_ml=float(b.sum()) * voxel_ml,
                predicted_ml=float(a.sum()) * voxel_ml,
            )
        )
    return rows


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores.csv atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = asdict(score)
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, buffer.getvalue())


def read_scores(path: Path) -> list[Score]:
    """Read scores.csv.

    Raises:
        MindgapError: The file is missing or has other columns.
    """
    names = [field.name for field in fields(Score)]
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            if reader.fieldnames != names:
                raise MindgapError(f"{path} has columns {reader.fieldnames}, expected {names}.")
            return [
                Score(
                    row["model"],
                    row["case"],
                    row["subset"],
                    row["region"],
                    *(float(row[name]) for name in names[4:]),
                )
                for row in reader
            ]
    except FileNotFoundError as error:
        raise MindgapError(f"{path} does not exist: run `mindgap evaluate` first.") from error


def values_of(
    scores: Sequence[Score], *, model: str, subset: str, region: str, column: str = "dice"
) -> dict[str, float]:
    """One column of one row of a table: case -> value."""
    return {
        score.case: float(getattr(score, column))
        for score in scores
        if (score.model, score.subset, score.region) == (model, subset, region)
    }
