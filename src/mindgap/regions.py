"""Label conventions on disk, the classes networks see, and the nested regions WT, TC, ET.

On disk a label is an integer volume whose numbers depend on the data set; inside, a *target* is one of four
classes (0 background, 1 ET, 2 NCR, 3 ED - ProtoKD's order) and a region is a boolean volume with
ET within TC within WT.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import InputError, SettingError


class Region(str, Enum):
    """A nested tumour region: whole tumour, tumour core, enhancing tumour."""

    WT = "WT"
    TC = "TC"
    ET = "ET"

    def __str__(self) -> str:
        return self.value


REGIONS: tuple[Region, ...] = tuple(Region)

BACKGROUND_CLASS, ET_CLASS, NCR_CLASS, ED_CLASS = 0, 1, 2, 3
CLASS_COUNT = 4
Head = Literal["softmax", "sigmoid"]
"""How the scores of a network turn into probabilities (``mindgap.batch.Output``), which decides how masks are made."""
CLASSES_OF_REGION: dict[Region, tuple[int, ...]] = {
    Region.WT: (ET_CLASS, NCR_CLASS, ED_CLASS),
    Region.TC: (ET_CLASS, NCR_CLASS),
    Region.ET: (ET_CLASS,),
}


@dataclass(frozen=True)
class LabelConvention:
    """What the integers of a label file mean.

    Attributes:
        name: Name on the command line.
        tissues: Label value -> tissue name, written beside every mask.
        classes: Label value -> class; values that are legal but no tumour map to background.
        written: (ET, NCR, ED) values used when a mask is written in this convention.
    """

    name: str
    tissues: dict[int, str]
    classes: dict[int, int]
    written: tuple[int, int, int]


def _convention(
    name: str, *, et: int, ncr: int, ed: int, other: dict[int, tuple[str, int]] | None = None
) -> LabelConvention:
    tissues = {et: "enhancing tumour (ET)", ncr: "necrotic / non-enhancing core (NCR)", ed: "oedema (ED)"}
    classes = {0: BACKGROUND_CLASS, et: ET_CLASS, ncr: NCR_CLASS, ed: ED_CLASS}
    for value, (tissue, class_) in (other or {}).items():
        tissues[value], classes[value] = tissue, class_
    return LabelConvention(name, dict(sorted(tissues.items())), classes, (et, ncr, ed))


CONVENTIONS: dict[str, LabelConvention] = {
    convention.name: convention
    for convention in (
        _convention("brats2017", et=4, ncr=1, ed=2),  # 2017-2021
        _convention("brats2023", et=3, ncr=1, ed=2),
        _convention("brats2024-postop", et=3, ncr=1, ed=2, other={4: ("resection cavity", BACKGROUND_CLASS)}),
        _convention("brats-ped", et=1, ncr=2, ed=4, other={3: ("cystic component (CC)", NCR_CLASS)}),
        _convention("msd", et=3, ncr=2, ed=1),
        _convention("nnunet", et=3, ncr=2, ed=1),
    )
}


def find_convention(name: str) -> LabelConvention:
    """Look up a label convention.

    Raises:
        SettingError: The name is unknown.
    """
    if name not in CONVENTIONS:
        raise SettingError(f"label convention {name!r} is unknown: choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def target_from_label(label: NDArray[Any], convention: LabelConvention, case: str) -> NDArray[np.uint8]:
    """Turn a label volume of a data set into classes.

    Args:
        label: Integer-valued volume (i j k).
        convention: What its numbers mean.
        case: Name for the error message.

    Raises:
        InputError: A value is outside the convention, or not a whole number.
    """
    values = np.unique(label)
    strange = [value for value in values.tolist() if value not in convention.classes]
    if strange:
        raise InputError(
            case=case,
            expected=f"label values {sorted(convention.classes)} (convention {convention.name})",
            found=f"{', '.join(f'{value:g}' for value in strange[:8])}",
            mend=f"name the right convention with --labels ({', '.join(CONVENTIONS)}), or correct the file",
        )
    target = np.zeros(label.shape, dtype=np.uint8)
    for value in values.tolist():
        target[label == value] = convention.classes[int(value)]
    return target


def label_from_target(target: NDArray[np.uint8], convention: LabelConvention) -> NDArray[np.uint8]:
    """Turn classes into the numbers of a convention; undoes :func:`target_from_label`."""
    et, ncr, ed = convention.written
    return np.array([0, et, ncr, ed], dtype=np.uint8)[target]


def region_volumes_ml(target: NDArray[np.uint8], voxel_ml: float) -> dict[Region, float]:
    """Volume of each region, from classes.

    Args:
        target: Classes (i j k).
        voxel_ml: Of one voxel, |det| of the affine: edge lengths alone overstate a sheared grid.
    """
    counts = np.bincount(target.ravel(), minlength=CLASS_COUNT)
    return {region: int(counts[list(classes)].sum()) * voxel_ml for region, classes in CLASSES_OF_REGION.items()}


def region_mask(target: NDArray[np.uint8], region: Region) -> NDArray[np.bool_]:
    """The boolean volume of one region, from classes."""
    return np.isin(target, CLASSES_OF_REGION[region])
