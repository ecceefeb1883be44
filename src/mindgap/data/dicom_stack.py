"""Where the slices of a DICOM series lie: in order along the normal, evenly, none twice and none missing.

This is checked before anything is converted: dcm2niix ends well on a series with a gap and writes a wrong geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.dicom import DicomSeries, Slice
from mindgap.errors import InputError

POSITION_TOLERANCE = 0.02
"""Largest deviation of a slice from its place, as a fraction of the slice distance: scanners round positions."""
_DIRECTION_TOLERANCE = 1e-4
_SAME_PLACE_MM = 1e-3
LEAST_SLICES = 2


@dataclass(frozen=True, eq=False)
class Stack:
    """A series as a volume.

    Attributes:
        series: What it was made from.
        files: One per slice, in the order of the third axis; the same one again for frames of an enhanced object.
        frames: Which frame of its file each slice is; None where a file is one image.
        shape: Columns, rows, slices.
        affine_lps: Voxel index (column, row, slice) to mm in DICOM's own axes, LPS+ (4 x 4).
    """

    series: DicomSeries
    files: tuple[Path, ...]
    frames: tuple[int | None, ...]
    shape: tuple[int, int, int]
    affine_lps: NDArray[np.float64]


def stack_of(series: DicomSeries) -> Stack:
    """Put the slices of a series in geometric order, and check that they make one even volume.

    Raises:
        InputError: A position, orientation or spacing is missing or differs; a slice is missing, or stands twice.
    """
    orientation, spacing = _check_alike(series)
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(row, column)
    positions = np.array([one.position_mm for one in series.slices], dtype=np.float64)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    _check_even(series, along[order])
    positions = positions[order]
    step = (positions[-1] - positions[0]) / (len(order) - 1)
    places = positions[0] + np.arange(len(order))[:, None] * step
    _check_straight(series, positions - places, step, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    rows, columns = series.slices[0].size
    files = tuple(series.slices[index].path for index in order)
    frames = tuple(series.slices[index].frame for index in order)
    return Stack(series, files, frames, (columns, rows, len(order)), affine)


def _check_alike(series: DicomSeries) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Orientation and pixel spacing, which all slices share."""
    first = series.slices[0]
    if any(one.frames > 1 for one in series.slices):
        raise _refuse(
            series,
            "one image per file, or frames with functional groups",
            "several images in one file, of which nothing says where each lies",
            "export it as classic or enhanced MR images, or convert it to NIfTI yourself",
        )
    if len(series.slices) < LEAST_SLICES:
        raise _refuse(series, f"at least {LEAST_SLICES} slices", "1", "export the whole series")
    for one in series.slices:
        if one.position_mm is None or one.orientation is None or one.spacing_mm is None or 0 in one.size:
            raise _refuse(
                series,
                "a position, orientation, pixel spacing and size in every header",
                f"{one.path.name} without",
                "export the original images of the scanner",
            )
    readings: dict[str, Callable[[Slice], tuple[float, ...] | None]] = {
        "image size": lambda one: one.size,
        "orientation": lambda one: one.orientation,
        "pixel spacing": lambda one: one.spacing_mm,
    }
    for name, read in readings.items():
        values = np.array([read(one) for one in series.slices], dtype=np.float64)
        if np.abs(values - values[0]).max() > _DIRECTION_TOLERANCE:
            raise _refuse(
                series,
                f"one {name} in all {len(values)} images",
                "several",
                "name another series: this one holds several stacks (a localizer?)",
            )
    orientation, spacing = first.orientation or (), first.spacing_mm or ()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > 1e-3 or min(spacing) <= 0:
        raise _refuse(
            series,
            "rows and columns at right angles, and pixels of positive size",
            f"orientation {orientation}, spacing {spacing} mm",
            "export the series again",
        )
    return orientation, spacing


def _check_even(series: DicomSeries, along_mm: NDArray[np.float64]) -> None:
    steps_mm = np.diff(along_mm)
    usual_mm = float(np.median(steps_mm))
    twice = int((steps_mm < _SAME_PLACE_MM).sum())
    if twice:
        raise _refuse(
            series,
            "one image at each position",
            f"{twice} positions taken twice among {len(along_mm)} images",
            "remove files that were copied twice; a series of several echoes or time points cannot be used",
        )
    uneven = np.flatnonzero(np.abs(steps_mm - usual_mm) > POSITION_TOLERANCE * usual_mm)
    if uneven.size:
        at = int(uneven[0])
        missing = int(np.rint(steps_mm[uneven] / usual_mm - 1).clip(0).sum())
        guess = f"about {missing} missing, " if missing else ""
        raise _refuse(
            series,
            f"slices {usual_mm:.3g} mm apart",
            f"{guess}{steps_mm[at]:.3g} mm between slices {at + 1} and {at + 2} of {len(along_mm)}",
            "export the whole series again",
        )


def _check_straight(
    series: DicomSeries, away_mm: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64]
) -> None:
    distance_mm = float(step @ normal)
    sheared = np.linalg.norm(step - distance_mm * normal) > POSITION_TOLERANCE * distance_mm
    if sheared or np.linalg.norm(away_mm, axis=1).max() > POSITION_TOLERANCE * distance_mm:
        raise _refuse(
            series,
            "slices stacked along their normal",
            "slices shifted sideways",
            "name another series, or resample this one to an even grid",
        )


def _refuse(series: DicomSeries, expected: str, found: str, mend: str) -> InputError:
    return InputError(case=series.name, expected=expected, found=found, mend=mend)
