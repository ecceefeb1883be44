"""What can be said of how far a mask is to be trusted; :mod:`mindgap.inference.confidence` says it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mindgap.evaluation.conformal import VolumeInterval
from mindgap.inference.familiarity import Strangeness
from mindgap.regions import Region

NO_TUMOUR = "no tumour was found"
"""Why a mask that is empty is to be looked at."""


@dataclass(frozen=True)
class Estimate:
    """What can be said of one mask.

    Attributes:
        subset: What the network looked at.
        n: Calibration cases on this subset.
        temperature: Applied to the probabilities.
        dice: Region -> expected Dice, NaN where it cannot be told.
        volumes: Region -> interval of the reference's volume, None where n is too small for the level, or where the
            mask holds a part of the region.
        level: Of the intervals.
        strangeness: Distance from known cases; None where too few are known.
        review: Why a human should look at the mask; empty where nothing speaks for it.
        notes: What limits the estimate.
    """

    subset: str
    n: int
    temperature: float
    dice: Mapping[Region, float]
    volumes: Mapping[Region, VolumeInterval | None]
    level: float
    strangeness: Strangeness | None
    review: tuple[str, ...]
    notes: tuple[str, ...]

    def of_mask(
        self,
        volumes_ml: Mapping[Region, float],
        intervals: Mapping[Region, VolumeInterval | None],
        cut: Collection[Region] = (),
    ) -> Estimate:
        """What can be said when the mask was brought to another grid: nothing of the Dice of what is empty there.

        Args:
            volumes_ml: Of the mask on that grid.
            intervals: What these volumes lead to expect.
            cut: Regions of which that grid holds a part: calibration knows whole ones, so that they get no interval.
        """
        gone = not any(volumes_ml.values()) and NO_TUMOUR not in self.review
        dice = {r: v if volumes_ml[r] > 0 else math.nan for r, v in self.dice.items()}
        volumes = {region: None if region in cut else interval for region, interval in intervals.items()}
        note = f"no volume interval of {', '.join(map(str, cut))}: the grid of the mask holds a part of it"
        return replace(
            self,
            dice=dice,
            volumes=volumes,
            review=(NO_TUMOUR, *self.review) if gone else self.review,
            notes=(*self.notes, note) if cut else self.notes,
        )

    def to_plain(self) -> dict[str, Any]:
        """For the manifest of a mask."""
        return {
            "calibration_cases": self.n,
            "temperature": round(self.temperature, 4),
            "expected_dice": {str(r): round(v, 4) if math.isfinite(v) else None for r, v in self.dice.items()},
            "interval_level": self.level,
            "volume_intervals_ml": {
                str(r): None if v is None else [round(v.low_ml, 3), round(v.high_ml, 3)]
                for r, v in self.volumes.items()
            },
            "strangeness": None if self.strangeness is None else asdict(self.strangeness),
            "review": list(self.review),
            "notes": list(self.notes),
        }
