"""The MNI152 maps that nilearn's wheel carries: ready to be deformed (for phantoms), and to lay raw scans upon."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.registration import resample
from mindgap.data.volume import Volume

Field = NDArray[np.float32]

TEMPLATE_CENTRE_MNI_MM = (0.0, -17.0, 5.5)
"""Middle of the template's brain."""

ATLAS_SHAPE = (240, 240, 155)
"""1 mm, LPS: the grid of BraTS."""

FAR_MM = 40.0
"""Distances to the ventricles are clipped here."""


@dataclass(frozen=True)
class Template:
    """The MNI152 maps around the brain, 1 mm, axes RAS, smoothed for the spacing they will be sampled at.

    Attributes:
        grey: Probability of grey matter.
        white: Probability of white matter.
        brain: 1 inside the brain.
        residual: T1 intensity beyond what grey, white and CSF explain, in units of the grey-white difference.
        ventricle_mm: Distance to the lateral ventricles, at most 40.
        origin_mni_mm: MNI coordinates of voxel (0, 0, 0).
        seeds_mni_mm: Places where a glioma may start: supratentorial white matter off the midline (n x 3).
    """

    grey: Field
    white: Field
    brain: Field
    residual: Field
    ventricle_mm: Field
    origin_mni_mm: NDArray[np.float64]
    seeds_mni_mm: NDArray[np.float64]


@functools.cache
def load_template(spacing_mm: float) -> Template:
    """Read the maps from nilearn's wheel (no download) and low-pass them for a spacing.

    Reference:
        V. S. Fonov et al., "Unbiased nonlinear average age-appropriate brain templates from birth to
        adulthood", NeuroImage 47 (2009) S102: ICBM152 2009a symmetric.
    """
    from scipy.ndimage import gaussian_filter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn and its own imports warn about themselves
        from nilearn import datasets

        images = [
            datasets.load_mni152_template(resolution=1),
            datasets.load_mni152_gm_template(resolution=1),
            datasets.load_mni152_wm_template(resolution=1),
        ]
    affine = np.asarray(images[0].affine, dtype=np.float64)
    t1, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    brain = t1 > 0
    corner = [int(np.flatnonzero(brain.any(axis=axes))[0]) for axes in ((1, 2), (0, 2), (0, 1))]
    end = [int(np.flatnonzero(brain.any(axis=axes))[-1]) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    part = tuple(slice(max(0, low - 2), high + 2) for low, high in zip(corner, end, strict=True))
    t1, grey, white, brain = t1[part], grey[part] * brain[part], white[part] * brain[part], brain[part]
    origin = affine[:3, 3] + [piece.start for piece in part]
    csf = np.clip(brain - grey - white, 0, 1)
    # 0.88, 0.66 and 0.27 are the medians of the T1 map in pure white matter, grey matter and CSF.
    residual = np.where(brain, (t1 - 0.88 * white - 0.66 * grey - 0.27 * csf) / 0.22, 0).astype(np.float32)
    sigma = 0.35 * spacing_mm if spacing_mm > 1 else 0.0
    return Template(
        grey=gaussian_filter(grey, sigma),
        white=gaussian_filter(white, sigma),
        brain=gaussian_filter(brain.astype(np.float32), 2.0),  # wide: thresholds of it move the outline by mm
        residual=gaussian_filter(residual, max(sigma, 1.0)),
        ventricle_mm=_ventricle_distance_mm(csf, origin),
        origin_mni_mm=origin,
        seeds_mni_mm=_seed_places(white, origin),
    )


def atlas_affine() -> NDArray[np.float64]:
    """Affine of the atlas grid, with the template's brain in its middle."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = TEMPLATE_CENTRE_MNI_MM - affine[:3, :3] @ ((np.array(ATLAS_SHAPE) - 1) / 2)
    return affine


@functools.cache
def read_template() -> Volume:
    """The T1 map on its own grid (1 mm, RAS), 0 outside of the brain; not to be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nilearn import datasets

        image = datasets.load_mni152_template(resolution=1)
    return Volume(np.asarray(image.dataobj, np.float32), np.asarray(image.affine, np.float64), Path("MNI152"), None)


@functools.cache
def template_on_atlas() -> NDArray[np.bool_]:
    """The brain of the template on the atlas grid."""
    return resample("atlas", read_template(), np.eye(4), ATLAS_SHAPE, atlas_affine()) > 0


def sample_template(volume: Field, position: list[Field], template: Template) -> Field:
    """Interpolate one of the maps, linearly; 0 outside.

    Args:
        volume: A map of ``template``.
        position: MNI coordinates, three arrays.
        template: Where the map comes from.
    """
    from scipy.ndimage import map_coordinates

    index = [axis - np.float32(origin) for axis, origin in zip(position, template.origin_mni_mm, strict=True)]
    sampled = map_coordinates(volume, index, order=1, mode="constant", output=np.float32)
    return np.asarray(sampled, dtype=np.float32)


def _ventricle_distance_mm(csf: Field, origin: NDArray[np.float64]) -> Field:
    from scipy.ndimage import distance_transform_edt

    x, y, z = np.ogrid[tuple(slice(o, o + n) for o, n in zip(origin, csf.shape, strict=True))]
    # The box holds the lateral and third ventricles; in front, the insular fissure is cut off.
    inside = (abs(x) < 36) & (y > -52) & (y < 36) & (z > -8) & (z < 30) & ((abs(x) < 26) | (y < -25))
    coarse = ((csf > 0.5) & inside)[::2, ::2, ::2]
    distance = 2 * distance_transform_edt(~coarse)
    fine = distance.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(n) for n in csf.shape)]
    return np.asarray(np.clip(fine, 0, FAR_MM), dtype=np.float32)


def _seed_places(white: Field, origin: NDArray[np.float64]) -> NDArray[np.float64]:
    coarse = np.argwhere(white[::3, ::3, ::3] > 0.7) * 3 + origin
    x, y, z = abs(coarse[:, 0]), coarse[:, 1], coarse[:, 2]
    hemisphere = (z > 5) & (z < 58) & (x > 14) & (y > -85)
    temporal = (z <= 5) & (z > -25) & (x > 30) & (y > -35)
    frontal = (z <= 5) & (z > -12) & (x > 12) & (y > 30)
    return coarse[hemisphere | temporal | frontal]
