"""Cases through a predictor into scores, on the cases' own grids against their own labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mindgap.data.case import Case, CaseFiles
from mindgap.data.nifti import write_label
from mindgap.data.preparation import prepare_case, put_back
from mindgap.errors import InputError
from mindgap.evaluation.metrics import Mask
from mindgap.evaluation.scores import Score, score_case, score_masks
from mindgap.evaluation.summary import BASELINE
from mindgap.evaluation.threshold import Fitted, predict_threshold
from mindgap.inference.predictor import Predictor
from mindgap.regions import LabelConvention, Region
from mindgap.sequences import format_subset


@dataclass(frozen=True)
class Scoring:
    """What came out of a cohort.

    Attributes:
        scores: A row per model, case, subset and region.
        failed: Cases that could not be scored, with the reason.
    """

    scores: list[Score]
    failed: dict[str, str]


def score_cohort(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    convention: LabelConvention,
    *,
    model: str,
    thresholds: Fitted | None = None,
    predictions: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, case: None,
) -> Scoring:
    """Segment and score every case that has the network's sequences and a reference; list the others.

    Only the files of those sequences, and the label, are opened.

    Args:
        predictor: A trained network.
        cases: Who to score.
        convention: Of the labels.
        model: Name of the network's rows.
        thresholds: A fitted baseline, scored beside the network on the same sequences.
        predictions: Folder for the masks, ``<subset>/<case>.nii.gz``; None writes none.
        progress: Called after each case.
    """
    subset = format_subset(predictor.card.sequences)
    scores: list[Score] = []
    failed: dict[str, str] = {}
    for done, files in enumerate(cases, start=1):
        try:
            predictor.serve(files.case_id, files.sequences)
            case, reference = _load(files, predictor, convention)
            segmentation = predictor.segment(case)
            spacing = case.reference.spacing_mm
            scores += score_case(
                segmentation.target, reference, spacing, model=model, case=files.case_id, subset=subset
            )
            if thresholds is not None:
                masks = threshold_masks(case, predictor, thresholds)
                scores += score_masks(masks, reference, spacing, model=BASELINE, case=files.case_id, subset=subset)
            if predictions is not None:
                path = predictions / subset / f"{files.case_id}.nii.gz"
                write_label(path, segmentation.target, like=segmentation.like, convention=convention)
        except InputError as error:
            failed[files.case_id] = str(error)
        progress(done, len(cases), files.case_id)
    return Scoring(scores, failed)


def threshold_masks(case: Case, predictor: Predictor, thresholds: Fitted) -> dict[Region, Mask]:
    """The baseline's masks on the case's own grid, by the same preparation and the same way back."""
    prepared = prepare_case(case, predictor.preparation)
    found = predict_threshold(prepared, thresholds, predictor.card.sequences)
    maps = torch.from_numpy(np.stack([mask.astype(np.float32) for mask in found.values()]))
    native = put_back(maps, prepared.placement).numpy() >= 0.5
    return dict(zip(found, native, strict=True))


def _load(files: CaseFiles, predictor: Predictor, convention: LabelConvention) -> tuple[Case, NDArray[np.uint8]]:
    case = files.load(predictor.card.sequences, convention=convention)
    if case.target is None:
        raise InputError(
            case=files.case_id,
            expected="a reference segmentation to score against",
            found="none",
            mend="add a file named *seg*, or use `mindgap segment`, which needs none",
        )
    return case, case.target
