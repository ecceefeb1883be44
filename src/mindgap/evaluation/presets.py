"""What the columns of a table mean, by name and version, and which of them are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mindgap.errors import SettingError
from mindgap.evaluation.lesions import (
    LEAST_ET_MM3,
    LEAST_LESION_MM3,
    LESION_REACH_MM,
    lesionwise_dice,
)
from mindgap.evaluation.metrics import TOLERANCE_MM, Mask, Spacing, dice, hd95_mm, hd95_pooled_mm, surface_dice

ETPP = "ETpp"
"""The row beside ET in which small predictions count as none."""
ETPP_TEXT = (
    f"ETpp v1: ET, from which a prediction below {LEAST_ET_MM3:g} mm^3 is removed (from ET only, the variant of RFNet)."
)
_AGREE = "Empty: both 1, one 0."
_UNDEFINED = (
    "Empty: not a number if either mask is, and left out of means (the BraTS servers count 373.13 or 374 mm there, so "
    "these means are not theirs)."
)


@dataclass(frozen=True)
class MetricDefinition:
    """What a column of a table means; printed beside every table.

    Attributes:
        name: The column.
        title: Its name in words, for a heading.
        version: Raised when the same masks would give another number.
        rule: The formula in words, with its tolerances and the unit of its lengths.
        empty: What counts where a mask is empty.
        measure: Predicted, reference and spacing in mm -> value.
    """

    name: str
    title: str
    version: int
    rule: str
    empty: str
    measure: Callable[[Mask, Mask, Spacing], float] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The whole definition in one line."""
        return f"{self.title} v{self.version}: {self.rule} {self.empty}"


DEFINITIONS: dict[str, MetricDefinition] = {
    d.name: d
    for d in (
        MetricDefinition(
            "dice", "Dice", 1, "2|A and B| / (|A| + |B|), in voxels.", _AGREE, lambda a, b, spacing_mm: dice(a, b)
        ),
        MetricDefinition(
            "hd95_mm",
            "HD95",
            1,
            "the larger of the two directed 95th percentiles of surface distances (voxel edges, MONAI), in mm by the "
            "spacing of the grid.",
            _UNDEFINED,
            hd95_mm,
        ),
        MetricDefinition(
            "hd95_pooled_mm",
            "HD95 pooled",
            1,
            "the 95th percentile of the surface distances of both directions together (medpy's convention), in mm by "
            "the spacing of the grid.",
            _UNDEFINED,
            hd95_pooled_mm,
        ),
        MetricDefinition(
            "surface_dice",
            "surface Dice",
            1,
            f"share of the surface voxels of both masks within {TOLERANCE_MM:g} mm of the other surface (MONAI), by "
            "the spacing of the grid.",
            _AGREE,
            surface_dice,
        ),
        MetricDefinition(
            "lesionwise_dice",
            "lesion-wise Dice",
            1,
            f"mean over lesions (parts of the reference, grown by {LESION_REACH_MM:g} mm, that hang together) and "
            f"false components, which count 0 (BraTS 2023, glioma); lesions of {LEAST_LESION_MM3:g} mm^3 or less are "
            "left out.",
            "Empty: 1 with nothing to find and nothing found.",
            lesionwise_dice,
        ),
    )
}


@dataclass(frozen=True)
class MetricPreset:
    """A named choice of columns.

    Attributes:
        name: Name on the command line.
        columns: Names in :data:`DEFINITIONS`; Dice is always one.
    """

    name: str
    columns: tuple[str, ...]

    @property
    def definitions(self) -> tuple[MetricDefinition, ...]:
        """What its columns mean."""
        return tuple(DEFINITIONS[column] for column in self.columns)


PRESETS: dict[str, MetricPreset] = {
    preset.name: preset
    for preset in (
        MetricPreset("default", ("dice", "hd95_mm", "surface_dice", "lesionwise_dice")),
        MetricPreset("hd95", ("dice", "hd95_mm")),
        MetricPreset("lesions", ("dice", "hd95_mm", "lesionwise_dice")),
        MetricPreset("all", tuple(DEFINITIONS)),
    )
}


def find_preset(name: str) -> MetricPreset:
    """Look up a preset.

    Raises:
        SettingError: The name is unknown.
    """
    if name not in PRESETS:
        raise SettingError(f"the metrics {name!r} are unknown: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
