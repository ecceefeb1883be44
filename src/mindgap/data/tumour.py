"""A glioma grown by a reaction-diffusion front, thresholded into oedema, core and necrosis (for phantoms)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindgap.data.anatomy import Anatomy, box_of, smooth_field
from mindgap.data.template import Field
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS

GROWTH_MM = 2.0
"""Voxel edge of the growth grid, whatever the spacing of the images: the same tumour at every spacing."""

_STEP = 0.15  # of time; explicit diffusion in 3-D is stable up to 1/6 for D = 1 voxel^2 per time
_GROWTH = 0.6  # rho / D, per voxel^2: the front is wide enough for the lattice not to show
_MOST_STEPS = 320
_NEVER = 1e6

Tissues = tuple[Field, Field, Field, Field, Field]
"""White, grey, CSF, where a front may go, distance to the ventricles in mm, all on the growth grid."""


@dataclass(frozen=True)
class TumourParameters:
    """Everything drawn about one tumour.

    Attributes:
        enhancing: Whether there is enhancing tumour (grade "HGG"), else "LGG".
        volume_ml: Whole tumour that is aimed at.
        core_fraction: Tumour core / whole tumour.
        necrosis_fraction: Necrosis / tumour core; not used without enhancing tumour.
        core_grey: Diffusivity of grey relative to white matter while the core grows.
        oedema_grey: The same while the oedema spreads: small, so that it runs in fingers between the gyri.
        roughness: Standard deviation of the logarithm of the diffusivity's texture.
        ring_roughness: Irregularity of the inner border of the enhancing ring, as a share of the growth time.
        purity: Tumour tissue in the core, on average; the rest is the brain it infiltrates.
        necrotic: Dead or cystic part of the non-enhancing core, on average.
        severity: Water content of the oedema at the core, and at its rim, 0-1.
        seed_place: In [0, 1), where it starts.
        mass_effect: Strength of the push, 0-0.5.
        field_seed: Seed of the random fields.
    """

    enhancing: bool
    volume_ml: float
    core_fraction: float
    necrosis_fraction: float
    core_grey: float
    oedema_grey: float
    roughness: float
    ring_roughness: float
    purity: float
    necrotic: float
    severity: tuple[float, float]
    seed_place: float
    mass_effect: float
    field_seed: int

    @property
    def push_radius_mm(self) -> float:
        """Radius of a ball of 1.5 times the core's volume."""
        return float(np.cbrt(1.5 * self.volume_ml * self.core_fraction * 1000 * 3 / (4 * np.pi)))


@dataclass(frozen=True)
class Tumour:
    """Soft fractions on the working box, and the classes they round to.

    Attributes:
        oedema: Fraction of the tissue that is oedematous, severity included.
        core: Fraction that is tumour tissue of the core; it takes the place of everything else.
        enhancing: Fraction of the core that takes up contrast agent.
        necrotic: Fraction of the rest of the core that is dead or cystic.
        target: Classes of :mod:`mindgap.regions`.
    """

    oedema: Field
    core: Field
    enhancing: Field
    necrotic: Field
    target: NDArray[np.uint8]


def draw_tumour(generator: np.random.Generator, *, enhancing: bool) -> TumourParameters:
    """Draw one tumour; sizes follow the real cases of BraTS (median 92 mL, 5th-95th percentile 24-220)."""
    inner = float(generator.uniform(0.75, 1.0))
    return TumourParameters(
        enhancing=enhancing,
        volume_ml=float(np.clip(generator.lognormal(np.log(84.0), 0.55), 14.0, 235.0)),
        core_fraction=float(generator.uniform(0.2, 0.6) if enhancing else generator.uniform(0.45, 0.8)),
        necrosis_fraction=float(generator.uniform(0.12, 0.65)),
        core_grey=float(generator.uniform(0.25, 0.6)),
        oedema_grey=float(generator.uniform(0.04, 0.15)),
        roughness=float(generator.uniform(0.5, 1.0)),
        ring_roughness=float(generator.uniform(0.1, 0.3)),
        purity=float(generator.uniform(0.8, 1.0) if enhancing else generator.uniform(0.55, 0.85)),
        necrotic=float(generator.uniform(0.5, 1.0) if enhancing else generator.uniform(0.0, 0.3)),
        severity=(inner, inner * float(generator.uniform(0.25, 0.75))),
        seed_place=float(generator.random()),
        mass_effect=float(generator.uniform(0.1, 0.45)),
        field_seed=int(generator.integers(2**31)),
    )


def grow_tumour(parameters: TumourParameters, anatomy: Anatomy) -> Tumour:
    """Let the core grow, let the oedema spread from it, and cut the arrival times at the volumes aimed at.

    The front obeys the Fisher-Kolmogorov equation du/dt = div(D grad u) + rho u (1 - u), D and rho large in
    white matter, small in grey, nil in ventricles and across the falx. It moves at about 2 sqrt(D rho), so
    thresholds of the time at which it arrives are borders, irregular where the diffusivity is.

    Reference:
        K. R. Swanson, E. C. Alvord, J. D. Murray, "A quantitative model for differential motility of gliomas
        in grey and white matter", Cell Proliferation 33 (2000) 317-329: five times faster in white matter.
        We differ: two fronts (core, then oedema), and the ratio is drawn per case.
    """
    tissue = _on_growth_grid(anatomy)
    core_time, core_end = _grow_core(parameters, tissue, _start_of(anatomy, tissue[0].shape))
    inside = (core_time < core_end).astype(np.float32)
    oedema_time, oedema_end = _spread_oedema(parameters, tissue, inside)
    # The middle dies first; noise makes the ring thick here, thin or open there.
    death = core_time / core_end + parameters.ring_roughness * _texture(parameters, 2, inside.shape, 6.0)
    death = np.where(inside > 0, death, _NEVER).astype(np.float32)
    dead_end = _time_of_volume(death, parameters.volume_ml * parameters.core_fraction * parameters.necrosis_fraction)
    fields: tuple[Field, ...] = (
        np.clip((core_end - core_time) / 1.2, -9, 9),
        np.clip((oedema_end - oedema_time) / 2.0, -9, 9),
        np.clip((dead_end - death) / 0.06, -9, 9),
        np.clip(oedema_time / oedema_end, 0, 1),
    )
    return _cut(parameters, anatomy, [_to_box(volume, anatomy.spacing_mm) for volume in fields])


def _texture(parameters: TumourParameters, number: int, shape: tuple[int, ...], length_mm: float) -> Field:
    return smooth_field(parameters.field_seed + number, shape, spacing_mm=GROWTH_MM, length_mm=length_mm)


def _start_of(anatomy: Anatomy, shape: tuple[int, ...]) -> Field:
    from_centre = np.array(anatomy.seed) - (np.array(anatomy.white.shape) - 1) / 2
    middle = np.rint(from_centre * anatomy.spacing_mm / GROWTH_MM + (np.array(shape) - 1) / 2).astype(int)
    start = np.zeros(shape, dtype=np.float32)
    start[tuple(slice(n - 1, n + 2) for n in middle)] = 1
    return start


def _grow_core(parameters: TumourParameters, tissue: Tissues, start: Field) -> tuple[Field, float]:
    white, grey, csf, open_, ventricle_mm = tissue
    texture = 0.8 * _texture(parameters, 0, start.shape, 9.0) + 0.5 * _texture(parameters, 1, start.shape, 16.0)
    rough = np.clip(np.exp(parameters.roughness * texture), 0.1, 3) / 1.5
    # Sulci in the way are overgrown, but not the ventricles.
    speed = (white + parameters.core_grey * grey + 0.12 * csf * (ventricle_mm > 4)) * open_ * rough
    volume_ml = parameters.volume_ml * parameters.core_fraction
    time = _arrival_time(speed, start, volume_ml=volume_ml)
    return time, _time_of_volume(time, volume_ml)


def _spread_oedema(parameters: TumourParameters, tissue: Tissues, core: Field) -> tuple[Field, float]:
    white, grey, csf, open_, _ = tissue
    rough = np.clip(np.exp(parameters.roughness * _texture(parameters, 3, core.shape, 10.0)), 0.3, 2) / 2
    speed = (white + parameters.oedema_grey * grey) * (1 - csf) ** 2 * open_ * rough
    # The core's own tissue must not wall the front in.
    time = _arrival_time(np.maximum(speed, 0.3 * core), core, volume_ml=parameters.volume_ml)
    time[core > 0] = 0
    return time, _time_of_volume(time, parameters.volume_ml)


def _on_growth_grid(anatomy: Anatomy) -> Tissues:
    white, grey, csf, brain, midline, ventricle = (
        _to_growth(volume, anatomy.spacing_mm)
        for volume in (
            anatomy.white,
            anatomy.grey,
            anatomy.csf,
            anatomy.brain.astype(np.float32),
            anatomy.midline_mm,
            anatomy.ventricle_mm,
        )
    )
    # The falx parts the hemispheres; the corpus callosum (white matter on the midline) is the way across.
    open_ = ((brain > 0.5) & ((midline > 1.8) | (white > 0.6))).astype(np.float32)
    return white, grey, csf, open_, ventricle


def _to_growth(volume: Field, spacing_mm: float) -> Field:
    return _resample(volume, spacing_mm, GROWTH_MM, outside=0.0)


def _to_box(volume: Field, spacing_mm: float) -> Field:
    return _resample(volume, GROWTH_MM, spacing_mm, outside=-9.0)


def _resample(volume: Field, from_mm: float, to_mm: float, *, outside: float) -> Field:
    """Linear interpolation between working boxes, which have their centre in common."""
    from scipy.ndimage import affine_transform

    if from_mm == to_mm:
        return volume
    ratio = to_mm / from_mm
    shape = box_of(to_mm)[2]
    shift = (np.array(volume.shape) - 1) / 2 - ratio * (np.array(shape) - 1) / 2
    result = affine_transform(
        volume, np.full(3, ratio), shift, shape, output=np.float32, order=1, mode="constant", cval=outside
    )
    return np.asarray(result, dtype=np.float32)


def _arrival_time(speed: Field, start: Field, *, volume_ml: float) -> Field:
    """Steps until the front of du/dt = div(D grad u) + 0.6 D u (1 - u) arrives, from the integral of 1 - u.

    For a sharp front that integral is the arrival time itself, and it is smooth below the voxel.

    Args:
        speed: D, at most 1 (voxel^2 per time); the front moves at about 2 sqrt(0.6) D.
        start: u at time 0.
        volume_ml: Growth ends when the front encloses a quarter more.
    """
    density, time = start.copy(), np.zeros_like(start)
    diffusivity = np.minimum(speed, 1) * np.float32(_STEP)
    enough = 1.25 * volume_ml * 1000 / GROWTH_MM**3
    first = np.argwhere(start > 0)
    low, high = first.min(axis=0) - 2, first.max(axis=0) + 3
    for step in range(_MOST_STEPS):
        # The front moves less than a voxel per step, so only a growing box has to be computed.
        low, high = np.maximum(low - 1, 0), np.minimum(high + 1, start.shape)
        part = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        _step(density[part], diffusivity[part])
        time[part] += 1 - density[part]
        if step % 10 == 9 and np.count_nonzero(density[part] > 0.5) > enough:
            break
    time[density < 0.2] = _NEVER
    return time


def _step(u: Field, diffusivity: Field) -> None:
    change = np.float32(_GROWTH) * diffusivity * u * (1 - u)
    for axis in range(3):
        ahead: list[slice] = [slice(None)] * 3
        behind: list[slice] = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        one, other = tuple(ahead), tuple(behind)
        # The smaller diffusivity of two neighbours rules: walls are tight.
        flux = np.minimum(diffusivity[one], diffusivity[other]) * (u[one] - u[other])
        change[other] += flux
        change[one] -= flux
    u += change


def _time_of_volume(time: Field, volume_ml: float) -> float:
    """The time that encloses a volume, or the latest that the front reached when it did not get so far."""
    count = max(8, round(volume_ml * 1000 / GROWTH_MM**3))
    end = float(np.partition(time.ravel(), count)[count])
    return end if end < _NEVER else float(time[time < _NEVER].max())


def _cut(parameters: TumourParameters, anatomy: Anatomy, fields: list[Field]) -> Tumour:
    core_level, oedema_level, death_level, depth = fields

    def soft(level: Field) -> Field:
        return np.asarray(1 / (1 + np.exp(-level)), dtype=np.float32)

    core = soft(core_level) * anatomy.brain
    whole = np.maximum(soft(oedema_level) * anatomy.brain, core)
    dead = soft(death_level)

    def field(number: int, length_mm: float) -> Field:
        seed = parameters.field_seed + number
        return smooth_field(seed, core.shape, spacing_mm=anatomy.spacing_mm, length_mm=length_mm)

    inner, outer = parameters.severity
    severity = np.clip(
        (inner + (outer - inner) * np.clip(depth, 0, 1)) * (1 + 0.25 * field(9, 9.0) + 0.1 * field(10, 4.0)),
        0.1,
        1,
    )
    enhancing = (1 - dead) if parameters.enhancing else np.zeros_like(core)
    target = np.zeros(core.shape, dtype=np.uint8)
    target[whole > 0.5] = ED_CLASS
    target[core > 0.5] = NCR_CLASS
    target[(core > 0.5) & (enhancing > 0.5)] = ET_CLASS
    return Tumour(
        oedema=whole * severity,
        core=core * np.clip(parameters.purity + 0.12 * field(11, 6.0) + 0.06 * field(12, 3.0), 0.3, 1),
        enhancing=enhancing,
        necrotic=np.clip(parameters.necrotic + 0.3 * field(13, 7.0), 0, 1),
        target=target,
    )
