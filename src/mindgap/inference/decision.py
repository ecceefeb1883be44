"""From probabilities to a mask: the most probable class, or thresholds that were found to reach the highest Dice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mindgap.batch import Float, Integer
from mindgap.errors import MindgapError
from mindgap.files import read_json, write_json
from mindgap.regions import CLASSES_OF_REGION, ED_CLASS, ET_CLASS, NCR_CLASS, REGIONS
from mindgap.sequences import Subset, format_subset

FORMAT = 1
DECISION = "decision.json"
"""In a model folder."""
LEVELS = 64
"""Thresholds that are tried: 0.5/64, 1.5/64, ..."""


@dataclass(frozen=True)
class Decision:
    """For each subset the probability from which on a voxel belongs to a region.

    The Dice that can be expected of a mask is highest when it takes every voxel whose probability is above about half
    of that Dice: where a sequence shows a region poorly the best mask is made at far less than one half, and the most
    probable class would leave it empty.

    Attributes:
        thresholds: Subset -> region -> threshold.
        cases: How many cases they were fitted on.

    Reference:
        Lipton et al., Optimal Thresholding of Classifiers to Maximize F1 Measure, ECML 2014.
        We differ: fitted per subset and region on held-out cases, since probabilities are not calibrated.
    """

    thresholds: Mapping[str, Mapping[str, float]]
    cases: int

    def classes(self, probabilities: Float[Tensor, "R i j k"], subset: Subset) -> Integer[Tensor, "i j k"] | None:
        """The class of each voxel (uint8); None for a subset nothing was fitted for.

        TC counts within WT and ET within TC, whose thresholds are the surer ones.
        """
        own = self.thresholds.get(format_subset(subset))
        if own is None:
            return None
        wt, tc, et = (p >= own[str(r)] for p, r in zip(probabilities, REGIONS, strict=True))
        classes = torch.zeros(wt.shape, dtype=torch.uint8, device=wt.device)
        classes[wt] = ED_CLASS
        classes[wt & tc] = NCR_CLASS
        classes[wt & tc & et] = ET_CLASS
        return classes


@dataclass
class Curves:
    """Dice of each case at every threshold, gathered case by case.

    Attributes:
        dice: Subset -> region -> case -> Dice at each of the :data:`LEVELS` thresholds.
    """

    dice: dict[str, dict[str, dict[str, NDArray[np.float64]]]] = field(default_factory=dict)

    def add(
        self, case: str, subset: Subset, probabilities: Float[Tensor, "R i j k"], target: NDArray[np.uint8]
    ) -> None:
        """Note a case that the network did not learn from.

        Args:
            case: Its name.
            subset: What the network looked at.
            probabilities: Of WT, TC and ET.
            target: Reference classes on the same grid.
        """
        levels = (probabilities * LEVELS + 0.5).clamp(0, LEVELS).to(torch.uint8).numpy()
        for level, region in zip(levels, REGIONS, strict=True):
            inside = np.isin(target, CLASSES_OF_REGION[region])
            # level l says: above threshold (l - 0.5) / LEVELS and not above the next
            hits = np.bincount(level[inside], minlength=LEVELS + 1)[1:]
            taken = np.bincount(level.ravel(), minlength=LEVELS + 1)[1:]
            hits, taken = (np.cumsum(counts[::-1])[::-1] for counts in (hits, taken))
            curve = 2 * hits / np.maximum(taken + inside.sum(), 1)
            self.dice.setdefault(format_subset(subset), {}).setdefault(str(region), {})[case] = curve

    def at(self, subset: str, region: str, case: str, decision: Decision) -> float:
        """Dice of a case at a threshold of :meth:`fit`."""
        level = round(decision.thresholds[subset][region] * LEVELS - 0.5)
        return float(self.dice[subset][region][case][level])

    def fit(self, *, without: frozenset[str] = frozenset()) -> Decision:
        """The threshold of highest mean Dice for each subset and region.

        Args:
            without: Cases that are to be judged with it.
        """
        thresholds: dict[str, dict[str, float]] = {}
        seen: set[str] = set()
        for subset, regions in self.dice.items():
            for region, cases in regions.items():
                kept = [curve for case, curve in cases.items() if case not in without]
                seen |= cases.keys() - without
                if kept:
                    best = int(np.argmax(_smooth(np.mean(kept, axis=0))))
                    thresholds.setdefault(subset, {})[region] = round((best + 0.5) / LEVELS, 5)
        return Decision({s: r for s, r in thresholds.items() if len(r) == len(REGIONS)}, len(seen))


def _smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A mean over five neighbours: of few cases a single peak says little."""
    return np.convolve(np.pad(curve, 2, mode="edge"), np.full(5, 0.2), mode="valid")


def read_decision(folder: Path, sha256: str) -> Decision | None:
    """What a model folder says of its masks; None for the most probable class.

    Raises:
        MindgapError: It speaks of other weights, or is of a newer format.
    """
    path = folder / DECISION
    if not path.is_file():
        return None
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise MindgapError(f"{path} has format {value.get('format')}; this version reads {FORMAT}. Update mindgap.")
    if value["weights_sha256"] != sha256:
        raise MindgapError(f"{path} speaks of other weights than those beside it: copy the whole folder again.")
    return Decision(value["thresholds"], value["cases"])


def write_decision(folder: Path, sha256: str, decision: Decision) -> None:
    """Write it beside the weights it was fitted with."""
    value = {"format": FORMAT, "weights_sha256": sha256, "cases": decision.cases, "thresholds": decision.thresholds}
    write_json(folder / DECISION, value)
