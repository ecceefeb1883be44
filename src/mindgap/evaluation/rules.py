"""How a network is scored: which columns, which grid, and what may be known of sequences it does not see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from mindgap.evaluation.metrics import Spacing
from mindgap.evaluation.presets import ETPP_TEXT, PRESETS, MetricPreset

Protocol = Literal["strict", "leaky"]
Grid = Literal["native", "model"]

_PROTOCOLS: dict[Protocol, str] = {
    "strict": "only the files of the sequences seen are opened; brain, crop and intensity scale are each one's own.",
    "leaky": "crop and intensity scale come from the brain of all four files, as published; complete cases only.",
}
_GRIDS: dict[Grid, str] = {
    "native": "the files' own, against their labels as they are",
    "model": "the network's, against labels resampled to it",
}


@dataclass(frozen=True)
class Rules:
    """The rules of an evaluation; printed with its table and kept in evaluation.json.

    Attributes:
        metrics: Which columns are computed.
        protocol: "strict" treats an absent sequence as if it never existed; "leaky" lets all four decide on the brain.
        grid: Where masks are compared: the case's own grid, or the network's.
        protokd_crop: Blank images and labels outside the fixed crop of ProtoKD, whose tables leave that tumour out.
    """

    metrics: MetricPreset = PRESETS["default"]
    protocol: Protocol = "strict"
    grid: Grid = "native"
    protokd_crop: bool = False

    def describe(self, spacings_mm: Collection[Spacing] = ()) -> list[str]:
        """One line per rule, then one per column.

        Args:
            spacings_mm: Voxel edges of the grids that were compared.
        """
        edges = sorted({" x ".join(f"{mm:.3g}" for mm in spacing) for spacing in spacings_mm})
        said = f" ({edges[0]} mm)" if len(edges) == 1 else f" ({len(edges)} spacings)" if edges else ""
        lines = [
            f"grid {self.grid}: {_GRIDS[self.grid]}{said}.",
            f"protocol {self.protocol}: {_PROTOCOLS[self.protocol]}",
        ]
        if self.protokd_crop:
            lines.append("ProtoKD crop: images and labels outside [24:216, 24:216, 5:145] count as background.")
        lines.append(f"metrics {self.metrics.name}:")
        return [*lines, *(definition.text for definition in self.metrics.definitions), ETPP_TEXT]

    def to_plain(self) -> dict[str, Any]:
        """For JSON: the rules, and each column with its version."""
        return {
            "metrics": self.metrics.name,
            "columns": {d.name: d.version for d in self.metrics.definitions},
            "protocol": self.protocol,
            "grid": self.grid,
            "protokd_crop": self.protokd_crop,
        }


DEFAULT_RULES = Rules()
"""Native grid, strict protocol, default metrics."""
