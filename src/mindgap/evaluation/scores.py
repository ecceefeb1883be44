"""Scores as one tidy table: a row per model, case, subset and region."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import MindgapError
from mindgap.evaluation.lesions import without_small
from mindgap.evaluation.metrics import Mask, Spacing
from mindgap.evaluation.presets import ETPP, PRESETS, MetricPreset
from mindgap.files import write_text
from mindgap.regions import REGIONS, Region, region_mask

TABLE_REGIONS = (*map(str, REGIONS), ETPP)
"""Rows of a case; means over regions are over WT, TC and ET."""


@dataclass(frozen=True)
class Score:
    """How well one region of one case was found; what the columns mean stands in ``evaluation.presets``.

    Attributes:
        model: Who predicted ("threshold" is the best single threshold).
        case: Case id.
        subset: Sequences used, such as "T1+FLAIR".
        region: WT, TC, ET or ETpp.
        dice: 0 to 1.
        hd95_mm: NaN where undefined.
        reference_ml: Volume of the reference.
        predicted_ml: Volume of the prediction.
        hd95_pooled_mm: NaN where undefined or not computed.
        surface_dice: 0 to 1, NaN where not computed.
        lesionwise_dice: 0 to 1, NaN where not computed.
    """

    model: str
    case: str
    subset: str
    region: str
    dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float
    hd95_pooled_mm: float = math.nan
    surface_dice: float = math.nan
    lesionwise_dice: float = math.nan


WORDS = ("model", "case", "subset", "region")
COLUMNS = tuple(field.name for field in fields(Score))
OPTIONAL_COLUMNS = tuple(field.name for field in fields(Score) if field.default is not MISSING)
"""Columns that depend on the metrics asked for; files written before there were any lack them."""


def score_case(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    spacing_mm: Spacing,
    *,
    model: str,
    case: str,
    subset: str,
    metrics: MetricPreset = PRESETS["default"],
) -> list[Score]:
    """Score one prediction in all regions.

    Args:
        predicted: Classes.
        reference: Classes on the same grid.
        spacing_mm: Voxel edges.
        model: Name of the row.
        case: Name of the case.
        subset: Name of the subset.
        metrics: Which columns to compute.
    """
    masks = {region: region_mask(predicted, region) for region in REGIONS}
    return score_masks(masks, reference, spacing_mm, model=model, case=case, subset=subset, metrics=metrics)


def score_masks(
    predicted: Mapping[Region, Mask],
    reference: NDArray[np.uint8],
    spacing_mm: Spacing,
    *,
    model: str,
    case: str,
    subset: str,
    metrics: MetricPreset = PRESETS["default"],
) -> list[Score]:
    """As :func:`score_case`, for a prediction given as one mask per region (they need not be nested)."""
    voxel_ml = math.prod(spacing_mm) / 1000.0

    def row(region: str, a: Mask, b: Mask) -> Score:
        values = dict.fromkeys(("dice", "hd95_mm"), math.nan)
        values |= {d.name: d.measure(a, b, spacing_mm) for d in metrics.definitions}
        volumes = {"reference_ml": float(b.sum()) * voxel_ml, "predicted_ml": float(a.sum()) * voxel_ml}
        return Score(model=model, case=case, subset=subset, region=region, **values, **volumes)

    rows = [row(str(region), predicted[region], region_mask(reference, region)) for region in REGIONS]
    found = predicted[Region.ET]
    kept = without_small(found, spacing_mm)
    same = kept.any() == found.any()
    rows.append(replace(rows[-1], region=ETPP) if same else row(ETPP, kept, region_mask(reference, Region.ET)))
    return rows


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """Write scores.csv atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = asdict(score)
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, buffer.getvalue())


def read_scores(path: Path) -> list[Score]:
    """Read scores.csv; columns that older files lack are NaN.

    Raises:
        MindgapError: The file is missing or has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            names = tuple(reader.fieldnames or ())
            needed = len(COLUMNS) - len(OPTIONAL_COLUMNS)
            if names[:needed] != COLUMNS[:needed] or not set(names[needed:]) <= set(OPTIONAL_COLUMNS):
                raise MindgapError(f"{path} has columns {list(names)}, expected {list(COLUMNS)}.")
            return [_from_row(row) for row in reader]
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


def _from_row(row: Mapping[str, str]) -> Score:
    values: dict[str, Any] = {n: cell if n in WORDS else float(cell or "nan") for n, cell in row.items()}
    return Score(**values)
