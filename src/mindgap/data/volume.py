"""An image in memory: voxels, affine, and whether its grid can be that of a head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mindgap.errors import InputError

_OTHER_UNITS = {1: "metres", 3: "micrometres"}
"""Spatial codes of xyzt_units; 2 is mm, 0 unknown."""
_LARGEST_SIDE_MM = 1000.0
MOST_APART_MM = 1.0
"""Corners by sform and by qform: beyond this the header tells two stories."""
MOST_SHEAR = 1e-3
"""Cosine between two axes of a grid: beyond this (0.06 degrees) they are not at right angles."""
_SMALL_SIDE_MM, _FINE_EDGE_MM = 50.0, 0.5
"""A longest side below the first, in voxels below the second: 24 "mm" in 240 voxels are a head in cm, not a crop."""

LEAST_SAME_BRAIN = 0.95
"""Dice of the brains of two sequences on one grid. Of 38 BraTS cases 37 have 0.983 or more, and one 0.80, whose FLAIR
ends short of the front. Of 703 pairs of their patients 699 have less; a shift by 5 voxels leaves 0.949 at most, a flip
from front to back 0.77."""
_LOOKED_AT = 32
"""Voxels along the shortest side that tell the Dice to 0.001."""


@dataclass(frozen=True)
class Volume:
    """One image in memory, in the grid it was stored in.

    Attributes:
        array: Voxels (i j k), float32, scale factors applied.
        affine: Voxel index to scanner mm (4 x 4, RAS+).
        path: Where it came from.
        header: The stored header; a mask written "like" this volume keeps its sform, qform and units.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    path: Path
    header: Any = field(repr=False, compare=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel in mm."""
        return spacing_of(self.affine)


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Edge lengths of a voxel in mm, from its affine."""
    i, j, k = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return i, j, k


def orientation_of(affine: NDArray[np.float64]) -> str:
    """Orientation codes of the three axes, such as "LPS"."""
    return "".join(code or "?" for code in nib.aff2axcodes(affine))


def volume_of_voxel_ml(affine: NDArray[np.float64]) -> float:
    """Volume of one voxel in mL, |det| of the affine (right for oblique and sheared grids too)."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000.0


def shear_of(affine: NDArray[np.float64]) -> float:
    """How far the axes of a grid are from right angles: the largest cosine between two of them."""
    axes = affine[:3, :3] / np.array(spacing_of(affine))
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def check_head(case: str, volume: Volume) -> None:
    """Refuse an image whose grid is not that of a head in mm: other units, or a size that only other units explain.

    Args:
        case: Name for the message.
        volume: An image of a patient, as it was read; crops and coarse phantoms pass.

    Raises:
        InputError: The header declares metres or micrometres, a side is longer than 1,000 mm, or fine voxels (below
            0.5 mm) make no side of 50 mm.
    """
    name = f"{case}: {volume.path.name}"
    code = int(volume.header["xyzt_units"]) & 7 if isinstance(volume.header, nib.Nifti1Header) else 0
    if code in _OTHER_UNITS:
        raise InputError(
            case=name,
            expected="a grid in mm",
            found=f"one in {_OTHER_UNITS[code]} (xyzt_units of the header)",
            mend="convert the scan again, in mm; where the numbers are mm and only the units are wrong, nibabel mends "
            'them: image.header.set_xyzt_units("mm")',
        )
    edges = volume.spacing_mm
    sides = [n * mm for n, mm in zip(volume.array.shape, edges, strict=True)]
    longest = max(sides)
    if longest <= _LARGEST_SIDE_MM and (longest >= _SMALL_SIDE_MM or edges[sides.index(longest)] >= _FINE_EDGE_MM):
        return
    spacing, size = (" x ".join(f"{mm:.3g}" for mm in values) for values in (edges, sides))
    raise InputError(
        case=name,
        expected=f"a grid of the size of a head, no side longer than {_LARGEST_SIDE_MM:,.0f} mm",
        found=f"voxels of {spacing} mm, {size} mm in all",
        mend="repair the header, whose numbers may be in cm, metres or micrometres (sform, qform and pixdim are in "
        "mm), or convert the DICOM series again",
    )


def doubt_about_grid(volume: Volume) -> str:
    """What makes it doubtful where a volume lies in space, or what shape it has; "" where its header tells, in one way.

    A sheared grid is taken: where shear is small it does little, and volumes are right.
    """
    return "; ".join(doubt for doubt in (_doubt_about_place(volume), _doubt_about_angles(volume)) if doubt)


def _doubt_about_angles(volume: Volume) -> str:
    shear = shear_of(volume.affine)
    if shear <= MOST_SHEAR:
        return ""
    return (
        f"the grid of {volume.path.name} is sheared by {np.degrees(np.arcsin(min(shear, 1.0))):.1f} degrees (gantry "
        "tilt?), and a network sees the head so: convert the scan again, with the tilt corrected"
    )


def _doubt_about_place(volume: Volume) -> str:
    header = volume.header
    if not isinstance(header, nib.Nifti1Header):
        return ""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        return f"the header of {volume.path.name} does not tell its orientation (no sform, no qform): a guess was taken"
    if sform is None or qform is None:
        return ""
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in volume.array.shape))])
    apart_mm = float(np.linalg.norm((corners @ (sform - qform).T)[:, :3], axis=1).max())
    if apart_mm <= MOST_APART_MM:
        return ""
    return f"sform and qform of {volume.path.name} lie up to {apart_mm:.3g} mm apart: the sform was taken"


def doubt_about_brains(images: Mapping[str, Volume]) -> str:
    """What makes it doubtful that skull-stripped images on one grid are of one head; "" where nothing does.

    Their voxels above 0 have to be the same brain. Every few voxels are looked at.

    Args:
        images: Name -> image; all of one shape.
    """
    if not images:
        return ""
    step = max(1, min(next(iter(images.values())).array.shape) // _LOOKED_AT)
    brains = {name: volume.array[::step, ::step, ::step] > 0 for name, volume in images.items()}
    sizes = {name: int(np.count_nonzero(brain)) for name, brain in brains.items()}
    found = {
        (one, other): 2 * np.count_nonzero(brains[one] & brains[other]) / max(sizes[one] + sizes[other], 1)
        for one, other in combinations(brains, 2)
    }
    least = min(found, key=lambda pair: found[pair], default=None)
    if least is None or found[least] >= LEAST_SAME_BRAIN:
        return ""
    one, other = (f"{name} ({images[name].path.name})" for name in least)
    return (
        f"the brains of {one} and {other} overlap by Dice {found[least]:.2f} only: they may be of different patients, "
        "shifted or turned, stripped differently, or one may end short of the brain"
    )
