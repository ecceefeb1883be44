"""What a prepared case is: the settings, brain boxes, and the way back to its own grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import SettingError
from mindgap.sequences import Subset
from mindgap.shapes import BACKGROUND, Float, Shaped

_Number = TypeVar("_Number", bound=np.generic)

LOWEST_BRAIN = BACKGROUND + 1 / 127.5
"""Smallest value of a prepared brain voxel: one step of the 8-bit store above the background."""

Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Start and end (exclusive) on each axis."""


@dataclass(frozen=True)
class Preparation:
    """How cases are prepared; part of every model card.

    Attributes:
        spacing_mm: Voxel edge the network works at; None keeps the grid of the case.
        normalisation: "percentile" clips brain intensities to ``percentiles`` and maps them linearly to [-1, 1];
            "zscore" subtracts mean and divides by standard deviation of brain voxels, clips at 5 and divides
            by 5.
        percentiles: Lower and upper, in percent.

    Reference:
        "Image intensities are normalised to [-1,1]" (Liu et al., 2024, section IV); the method is not stated.
        We differ from ProtoKD's z-score: it maps the background to -mean/sd, another value in every image; here the
        background is always -1, so that brain and background can be told apart.
    """

    spacing_mm: float | None = None
    normalisation: Literal["percentile", "zscore"] = "percentile"
    percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and not 0.3 <= self.spacing_mm <= 10:
            raise SettingError(f"spacing_mm is {self.spacing_mm}: choose 0.3 to 10 mm, or none to keep the grid.")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise SettingError(f"percentiles are {self.percentiles}: choose 0 <= low < high <= 100.")

    @classmethod
    def from_plain(cls, value: Mapping[str, Any]) -> Preparation:
        """Undo ``dataclasses.asdict`` after a trip through JSON."""
        low, high = value["percentiles"]
        return cls(value["spacing_mm"], value["normalisation"], (float(low), float(high)))


@dataclass(frozen=True)
class Placement:
    """Where a prepared crop came from: everything needed to put a map back into the grid of the case.

    Attributes:
        native_shape: Shape of the files.
        permutation: Axis of the file that became working axis 0, 1, 2.
        flips: Which working axes were reversed.
        working_shape: Whole grid after reorientation and resampling.
        box: The crop within it.
    """

    native_shape: Shape
    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    working_shape: Shape
    box: Box


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for a network.

    Attributes:
        case_id: Its name.
        image: (J i j k) in [-1, 1], cropped to ``placement.box``; columns are ``sequences``.
        sequences: The present sequences.
        boxes: The brain box of each sequence, within the crop.
        target: Classes on the working grid (i j k), cropped; None without reference.
        placement: The way back.
        spacing_mm: Voxel edges of the crop.
    """

    case_id: str
    image: Float[NDArray[np.float32], "J i j k"]
    sequences: Subset
    boxes: tuple[Box, ...]
    target: NDArray[np.uint8] | None
    placement: Placement
    spacing_mm: tuple[float, float, float]


def join_boxes(boxes: list[Box] | tuple[Box, ...]) -> Box:
    """The smallest box around boxes."""
    starts = np.min([[start for start, _ in box] for box in boxes], axis=0)
    ends = np.max([[end for _, end in box] for box in boxes], axis=0)
    a, b, c = ((int(start), int(end)) for start, end in zip(starts, ends, strict=True))
    return a, b, c


def join_prepared(parts: Iterable[PreparedCase]) -> PreparedCase:
    """Sequences of one case that were prepared one by one, as if they had been prepared together.

    Preparing a sequence depends on no other, so that one preparation of each serves every subset of them; a test
    holds this against preparing the subset itself.

    Args:
        parts: One sequence each, of one case on one grid, in canonical order. Targets are left out.
    """
    given = list(parts)
    first = given[0]
    whole = join_boxes([part.placement.box for part in given])
    image = np.full((len(given), *(end - start for start, end in whole)), BACKGROUND, np.float32)
    boxes: list[Box] = []
    for row, part in zip(image, given, strict=True):
        place = shift_box(part.placement.box, whole)
        row[slices_of(place)] = part.image[0]
        boxes.append(place)
    return PreparedCase(
        case_id=first.case_id,
        image=image,
        sequences=tuple(part.sequences[0] for part in given),
        boxes=tuple(boxes),
        target=None,
        placement=replace(first.placement, box=whole),
        spacing_mm=first.spacing_mm,
    )


def paste(maps: Shaped[NDArray[_Number], "R i j k"], placement: Placement) -> Shaped[NDArray[_Number], "R x y z"]:
    """Maps on the crop as maps on the whole working grid, 0 around it."""
    return paste_box(maps, placement.box, placement.working_shape)


def paste_box(maps: Shaped[NDArray[_Number], "R i j k"], box: Box, shape: Shape) -> Shaped[NDArray[_Number], "R x y z"]:
    """Maps on a box as maps on the grid it lies in, 0 around it."""
    whole = np.zeros((len(maps), *shape), maps.dtype)
    a, b, c = slices_of(box)
    whole[:, a, b, c] = maps
    return whole


def shift_box(box: Box, outer: Box) -> Box:
    """A box counted from the start of another."""
    a, b, c = ((start - begin, end - begin) for (start, end), (begin, _) in zip(box, outer, strict=True))
    return a, b, c


def unshift_box(box: Box, outer: Box) -> Box:
    """A box that was counted from the start of another, counted from where that one is."""
    a, b, c = ((start + begin, end + begin) for (start, end), (begin, _) in zip(box, outer, strict=True))
    return a, b, c


def slices_of(box: Box) -> tuple[slice, slice, slice]:
    """What cuts a box out of an array."""
    a, b, c = (slice(start, end) for start, end in box)
    return a, b, c
