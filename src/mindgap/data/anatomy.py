"""Somebody's brain: the MNI152 maps, deformed, as tissue fractions on a BraTS-like grid (for phantoms)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindgap.data.template import TEMPLATE_CENTRE_MNI_MM, Field, load_template, sample_template

GRID_MM = (240.0, 240.0, 155.0)
"""Edges of the BraTS grid in mm."""

_BOX_MM = (160.0, 204.0, 155.0)  # the centred part of the grid that a brain can fill


@dataclass(frozen=True)
class AnatomyParameters:
    """Everything drawn about one anatomy.

    Attributes:
        scale: Size along left-right, back-front, bottom-top, relative to MNI152 (a large brain: 1.9 L).
        rotation_deg: Rotation about the same three axes.
        flip: Mirror left and right.
        warp_mm: Standard deviation of the displacement, by control-point distance in mm (40, 20, 10).
        atrophy: Natural logarithm of the weight of CSF; positive in old brains.
        hyperintensity: Load of age-related white-matter hyperintensities, 0 = none.
        field_seed: Seed of the random fields.
    """

    scale: tuple[float, float, float]
    rotation_deg: tuple[float, float, float]
    flip: bool
    warp_mm: tuple[float, float, float]
    atrophy: float
    hyperintensity: float
    field_seed: int


@dataclass(frozen=True)
class Anatomy:
    """Soft tissue fractions on the working box (part of the grid); they add up to 1 inside the brain.

    Attributes:
        white: Fraction of white matter.
        grey: Fraction of grey matter.
        csf: Fraction of cerebrospinal fluid.
        hyperintensity: Fraction of the white matter that is an age-related lesion.
        vessel: Fraction that is a blood vessel (in CSF spaces).
        brain: What skull-stripping leaves.
        midline_mm: Distance from the deformed mid-sagittal plane.
        ventricle_mm: Distance to the lateral ventricles, at most 40.
        seed: Working-box index nearest to where the tumour starts.
        spacing_mm: Voxel edge.
    """

    white: Field
    grey: Field
    csf: Field
    hyperintensity: Field
    vessel: Field
    brain: NDArray[np.bool_]
    midline_mm: Field
    ventricle_mm: Field
    seed: tuple[int, int, int]
    spacing_mm: float


def draw_anatomy(generator: np.random.Generator) -> AnatomyParameters:
    """Draw one anatomy; ranges are chosen so that brains measure 1.2 to 1.8 L, as in BraTS."""
    size = generator.normal(0.93, 0.025)
    aged = generator.random() < 0.6  # patients with glioma are mostly over 50
    scale = size * generator.normal(1.0, 0.015, 3)
    rotation_deg = generator.normal(0.0, 4.0, 3)
    return AnatomyParameters(
        scale=(float(scale[0]), float(scale[1]), float(scale[2])),
        rotation_deg=(float(rotation_deg[0]), float(rotation_deg[1]), float(rotation_deg[2])),
        flip=bool(generator.random() < 0.5),
        warp_mm=(
            float(generator.uniform(1.5, 3.0)),
            float(generator.uniform(0.6, 1.2)),
            float(generator.uniform(0.4, 0.8)),
        ),
        atrophy=float(generator.normal(0.4 if aged else -0.2, 0.3)),
        hyperintensity=float(generator.uniform(0.3, 1.0)) if aged else 0.0,
        field_seed=int(generator.integers(2**31)),
    )


def box_of(spacing_mm: float) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    """Shape of the whole grid, and start and shape of the working box inside it, in voxels."""
    grid = [int(np.ceil(edge / spacing_mm)) for edge in GRID_MM]
    box = [min(n, int(np.ceil(edge / spacing_mm))) for n, edge in zip(grid, _BOX_MM, strict=True)]
    start = [(n - m) // 2 for n, m in zip(grid, box, strict=True)]
    return (grid[0], grid[1], grid[2]), (start[0], start[1], start[2]), (box[0], box[1], box[2])


def smooth_field(seed: int, shape: tuple[int, ...], *, spacing_mm: float, length_mm: float) -> Field:
    """A random field: independent normal control points under uniform cubic B-splines.

    The control points stand ``length_mm`` apart whatever the voxel size, so a case keeps its shape when it is
    made at another spacing. Three small matrix products make it, which is much cheaper than blurring noise.

    Returns:
        Field of mean 0 and standard deviation about 1 (0.94 to 1.06).
    """
    generator = np.random.default_rng(seed)
    count = [int(np.ceil(edge / length_mm)) + 4 for edge in GRID_MM]
    field = generator.standard_normal(count, dtype=np.float32)
    for axis, size in enumerate(shape):
        basis = _spline_basis(size, count[axis], spacing_mm / length_mm)
        field = np.moveaxis(np.tensordot(basis, field, axes=(1, axis)), 0, axis)
    # The squares of the weights along one axis add up to 0.46-0.50, hence to 0.48^3 for three.
    return np.ascontiguousarray(field / np.float32(0.48**1.5))


def _spline_basis(size: int, count: int, step: float) -> Field:
    # Voxels are placed from the centre of the grid, which all spacings share.
    position = (np.arange(size) - (size - 1) / 2) * step + (count - 1) / 2
    distance = np.abs(position[:, None] - np.arange(count)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.asarray(np.where(distance < 1, near, far), dtype=np.float32)


def make_anatomy(
    parameters: AnatomyParameters,
    *,
    spacing_mm: float,
    seed_place: float,
    mass_effect: float,
    radius_mm: float,
) -> Anatomy:
    """Deform the template: affine, flip, smooth displacement, and the push of a growing core.

    The push draws tissue from nearer the tumour's start s, p' = s + (p - s)(1 - a exp(-|p - s|^2 / 2 R^2)),
    so what lay at a distance is found further out. The brain's outline does not move: the skull is in the
    way, and the sulci are squeezed instead.

    Args:
        parameters: From :func:`draw_anatomy`.
        spacing_mm: Voxel edge of the result.
        seed_place: In [0, 1), which of the possible starting places.
        mass_effect: a, 0 for none.
        radius_mm: R.
    """
    template = load_template(spacing_mm)
    _, _, shape = box_of(spacing_mm)
    place = template.seeds_mni_mm[int(seed_place * len(template.seeds_mni_mm))]
    position = _template_positions(parameters, shape, spacing_mm)
    offset = [axis - np.float32(middle) for axis, middle in zip(position, place, strict=True)]
    square = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2
    seed = np.unravel_index(int(np.argmin(square)), shape)
    # Skull-stripping is generous here and tight there.
    rim = smooth_field(parameters.field_seed + 9, shape, spacing_mm=spacing_mm, length_mm=18.0)
    brain = sample_template(template.brain, position, template) > np.clip(0.65 + 0.12 * rim, 0.4, 0.9)
    pull = mass_effect * np.exp(square * np.float32(-0.5 / radius_mm**2))
    pushed = [axis - difference * pull for axis, difference in zip(position, offset, strict=True)]
    maps = (template.grey, template.white, template.residual, template.ventricle_mm)
    grey, white, residual, ventricle_mm = (sample_template(volume, pushed, template) for volume in maps)
    return _finish(
        parameters,
        (grey, white, residual),
        brain,
        np.abs(pushed[0]),
        ventricle_mm,
        seed=(int(seed[0]), int(seed[1]), int(seed[2])),
        spacing_mm=spacing_mm,
    )


def _template_positions(parameters: AnatomyParameters, shape: tuple[int, int, int], spacing_mm: float) -> list[Field]:
    from scipy.spatial.transform import Rotation

    # The grid's axes run to L, P, S; the template's to R, A, S: the first two change sign.
    sign = np.array([1.0 if parameters.flip else -1.0, -1.0, 1.0])
    rotation = Rotation.from_euler("xyz", parameters.rotation_deg, degrees=True).as_matrix()
    matrix = rotation @ np.diag(sign / np.array(parameters.scale))
    axes = [((np.arange(n) - (n - 1) / 2) * spacing_mm).astype(np.float32) for n in shape]
    i, j, k = np.meshgrid(*axes, indexing="ij", sparse=True)
    position = []
    for row in range(3):
        mapped = sum((np.float32(matrix[row, column]) * axis for column, axis in enumerate((i, j, k))), np.float32(0))
        for level, length_mm in enumerate((40.0, 20.0, 10.0)):
            field = smooth_field(
                parameters.field_seed + 3 * level + row, shape, spacing_mm=spacing_mm, length_mm=length_mm
            )
            mapped = mapped + np.float32(parameters.warp_mm[level]) * field
        position.append(np.asarray(mapped + np.float32(TEMPLATE_CENTRE_MNI_MM[row]), dtype=np.float32))
    return position


def _finish(
    parameters: AnatomyParameters,
    maps: tuple[Field, Field, Field],
    brain: NDArray[np.bool_],
    midline_mm: Field,
    ventricle_mm: Field,
    *,
    seed: tuple[int, int, int],
    spacing_mm: float,
) -> Anatomy:
    grey, white, residual = maps

    def field(number: int, length_mm: float) -> Field:
        return smooth_field(parameters.field_seed + 20 + number, grey.shape, spacing_mm=spacing_mm, length_mm=length_mm)

    # Deep nuclei are brighter on T1 than cortex: what T1 has beyond the tissue maps moves grey to white.
    shift = np.clip(np.clip(residual, -0.6, 0.6) + 0.05 * field(0, 12.0), -white, grey)
    grey, white = grey - shift, white + shift
    csf = np.clip(1 - grey - white, 0, 1) * np.exp(parameters.atrophy + 0.4 * field(1, 25.0))
    # An average over 152 people has blurred fractions; a power above 1 undoes some of it.
    white, grey, csf = (
        np.power(part + np.float32(1e-4), np.float32(1.5))
        for part in (
            white * np.exp(0.35 * field(2, 7.0) + 0.25 * field(8, 4.0)),
            grey,
            csf * np.exp(0.5 * field(9, 5.0)),
        )
    )
    share = brain / (white + grey + csf)
    white, grey, csf = white * share, grey * share, csf * share
    near = np.exp(-((ventricle_mm / 7.0) ** 2))
    lesion = field(3, 8.0) + 0.5 * field(4, 4.0) + 2.0 * near - (3.4 - 1.1 * parameters.hyperintensity)
    hyperintensity = np.float32(parameters.hyperintensity > 0) / (1 + np.exp(-4 * lesion))
    # Two random fields vanish together along curves: these are the vessels. The midline has its sinus.
    curve = np.exp(-(field(5, 14.0) ** 2 + field(6, 14.0) ** 2) / (2 * 0.24**2))
    sinus = 0.9 * np.exp(-((midline_mm / 2.0) ** 2)) * (0.5 + 0.5 * np.tanh(field(7, 20.0)))
    vessel = np.clip(curve + sinus, 0, 1) * np.clip(1.6 * csf + 0.1 * grey, 0, 1) * (ventricle_mm > 6)
    return Anatomy(
        white=white,
        grey=grey,
        csf=csf,
        hyperintensity=hyperintensity.astype(np.float32),
        vessel=vessel.astype(np.float32),
        brain=brain,
        midline_mm=midline_mm,
        ventricle_mm=ventricle_mm,
        seed=seed,
        spacing_mm=spacing_mm,
    )
