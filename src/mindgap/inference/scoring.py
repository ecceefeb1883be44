"""Cases through a predictor into scores, by rules that say what is known and where masks are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case, CaseFiles
from mindgap.data.masks import write_label
from mindgap.data.preparation import put_back, target_on_grid
from mindgap.data.prepared import PreparedCase, paste
from mindgap.errors import InputError, MemoryShort
from mindgap.evaluation.metrics import Mask, Spacing
from mindgap.evaluation.rules import DEFAULT_RULES, Rules
from mindgap.evaluation.scores import Score, score_case, score_masks
from mindgap.evaluation.summary import BASELINE
from mindgap.evaluation.threshold import Fitted, choose_sequences, predict_threshold
from mindgap.inference.opened import OpenedCase
from mindgap.inference.predictor import Predictor
from mindgap.progress import Progress, silent
from mindgap.regions import LabelConvention, Region
from mindgap.sequences import Sequence as MriSequence
from mindgap.sequences import Subset, format_subset, make_subset
from mindgap.shapes import Float


@dataclass(frozen=True)
class Scoring:
    """What came out of a cohort.

    Attributes:
        scores: A row per model, case, subset and region.
        failed: Cases of which something could not be scored, with the reason.
        lacking: Cases that do not have all sequences of a subset, with the names of these subsets.
        spacings_mm: Voxel edges of the grids that were compared.
    """

    scores: list[Score] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    spacings_mm: set[Spacing] = field(default_factory=set)


def score_cohort(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    convention: LabelConvention,
    *,
    model: str,
    subsets: Sequence[Subset] | None = None,
    rules: Rules = DEFAULT_RULES,
    thresholds: Fitted | None = None,
    predictions: Path | None = None,
    progress: Progress = silent,
) -> Scoring:
    """Segment and score every case on every subset it has, against its reference; list what could not be scored.

    Args:
        predictor: A trained network.
        cases: Who to score.
        convention: Of the labels.
        model: Name of the network's rows.
        subsets: What the network is to look at; all it takes when None.
        rules: Metrics, grid and protocol.
        thresholds: A fitted baseline, scored beside the network on the same sequences.
        predictions: Folder for the masks on the files' grid, ``<subset>/<case>.nii.gz``; None writes none.
        progress: Called after each subset of each case.

    Raises:
        SettingError: The network does not take one of the subsets.
    """
    chosen = predictor.subsets if subsets is None else tuple(make_subset(subset) for subset in subsets)
    for subset in chosen:
        predictor.check(subset)
    scoring = Scoring()
    for number, files in enumerate(cases):
        opened = OpenedCase(files, convention, predictor.preparation, rules)
        baseline = None if thresholds is None else _Baseline(thresholds)
        reasons: dict[str, list[str]] = {}
        for done, subset in enumerate(chosen, start=number * len(chosen) + 1):
            name = format_subset(subset)
            if not set(subset) <= set(files.sequences):
                scoring.lacking.setdefault(files.case_id, []).append(name)
                progress(done, len(cases) * len(chosen), files.case_id)
                continue
            try:
                view = _View(opened.case(subset), opened.prepared(subset), rules, model, name)
                scoring.scores.extend(_score_network(predictor, view, convention, predictions))
                if baseline is not None and baseline.knows(subset):
                    scoring.scores.extend(baseline.score(view, subset))
                scoring.spacings_mm.add(view.spacing_mm)
            except (InputError, MemoryShort) as error:
                reasons.setdefault(str(error), []).append(name)
            progress(done, len(cases) * len(chosen), files.case_id)
        if reasons:
            several = len(chosen) > 1
            said = (f"{text} (for {', '.join(names)})" if several else text for text, names in reasons.items())
            scoring.failed[files.case_id] = "\n".join(said)
    return scoring


@dataclass(frozen=True)
class _View:
    """One subset of one case, and the grid its masks are compared on."""

    case: Case
    prepared: PreparedCase
    rules: Rules
    model: str
    subset: str

    def on_grid(self, maps: Float[NDArray[np.float32], "R i j k"]) -> Float[NDArray[np.float32], "R x y z"]:
        """Maps on the crop, brought to the grid of the scores."""
        return (put_back if self.rules.grid == "native" else paste)(maps, self.prepared.placement)

    @property
    def reference(self) -> NDArray[np.uint8]:
        """Classes on the grid of the scores."""
        assert self.case.target is not None
        native = self.rules.grid == "native"
        return self.case.target if native else target_on_grid(self.case.target, self.prepared.placement)

    @property
    def spacing_mm(self) -> Spacing:
        """Voxel edges of the grid of the scores."""
        return self.case.reference.spacing_mm if self.rules.grid == "native" else self.prepared.spacing_mm


def _score_network(
    predictor: Predictor, view: _View, convention: LabelConvention, predictions: Path | None
) -> list[Score]:
    maps, _ = predictor.maps(view.case.case_id, view.prepared)
    predicted = predictor.classes(view.on_grid(maps))
    if predictions is not None:
        native = predicted
        if view.rules.grid != "native":
            native = predictor.classes(put_back(maps, view.prepared.placement))
        path = predictions / view.subset / f"{view.case.case_id}.nii.gz"
        write_label(path, native, like=view.case.reference, convention=convention)
    return score_case(
        predicted,
        view.reference,
        view.spacing_mm,
        model=view.model,
        case=view.case.case_id,
        subset=view.subset,
        metrics=view.rules.metrics,
    )


class _Baseline:
    """The threshold baseline of one case: subsets whose best sequences are the same have the same masks and scores."""

    def __init__(self, thresholds: Fitted) -> None:
        self.thresholds = thresholds
        self._known: dict[tuple[MriSequence, ...], list[Score]] = {}

    def knows(self, subset: Subset) -> bool:
        """Whether a threshold was fitted for one of the sequences."""
        return all(any(sequence in known for sequence in subset) for known in self.thresholds.values())

    def score(self, view: _View, subset: Subset) -> list[Score]:
        best = tuple(choose_sequences(self.thresholds, subset, case=view.case.case_id).values())
        if best not in self._known:
            self._known[best] = score_masks(
                self._masks(view, subset),
                view.reference,
                view.spacing_mm,
                model=BASELINE,
                case=view.case.case_id,
                subset=view.subset,
                metrics=view.rules.metrics,
            )
        return [replace(row, subset=view.subset) for row in self._known[best]]

    def _masks(self, view: _View, subset: Subset) -> dict[Region, Mask]:
        """By the same preparation and the same way back as the network's."""
        found = predict_threshold(view.prepared, self.thresholds, subset)
        maps = np.stack([mask.astype(np.float32) for mask in found.values()])
        return dict(zip(found, view.on_grid(maps) >= 0.5, strict=True))
