"""From tissue to image: relaxation at 3 T, signal equations, shading, noise, thick slices (for phantoms)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from mindgap.data.anatomy import Anatomy, smooth_field
from mindgap.data.template import Field
from mindgap.data.tumour import Tumour
from mindgap.sequences import SEQUENCES, Sequence


class Tissue(str, Enum):
    """What a voxel can be made of."""

    WHITE = "white matter"
    GREY = "grey matter"
    CSF = "cerebrospinal fluid"
    HYPERINTENSITY = "white-matter hyperintensity"
    VESSEL = "vessel"
    OEDEMA = "oedema"
    ENHANCING = "enhancing tumour"
    NECROSIS = "necrosis"
    NON_ENHANCING = "non-enhancing tumour"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Relaxation:
    """Attributes: t1_ms, t2_ms (relaxation times), proton_density (relative to water)."""

    t1_ms: float
    t2_ms: float
    proton_density: float


RELAXATION: dict[Tissue, tuple[Relaxation, float]] = {
    Tissue.WHITE: (Relaxation(838.0, 77.0, 0.70), 0.04),
    Tissue.GREY: (Relaxation(1331.0, 99.0, 0.82), 0.04),
    Tissue.CSF: (Relaxation(4160.0, 1700.0, 1.00), 0.04),
    Tissue.HYPERINTENSITY: (Relaxation(1250.0, 140.0, 0.80), 0.10),
    Tissue.VESSEL: (Relaxation(1650.0, 120.0, 0.45), 0.10),
    Tissue.OEDEMA: (Relaxation(1500.0, 155.0, 0.84), 0.08),
    Tissue.ENHANCING: (Relaxation(1500.0, 120.0, 0.84), 0.10),
    Tissue.NECROSIS: (Relaxation(2300.0, 280.0, 0.93), 0.15),
    Tissue.NON_ENHANCING: (Relaxation(1700.0, 170.0, 0.86), 0.12),
}
"""Mean at 3 T, and the relative standard deviation between cases of T1 and T2.

Reference:
    White and grey matter: J. P. Wansapura et al., "NMR relaxation times in the human brain at 3.0 tesla",
    J Magn Reson Imaging 9 (1999) 531-538 (white 832 and 80 ms, grey 1331 and 110 ms). G. J. Stanisz et al.,
    "T1, T2 relaxation and magnetization transfer in tissue at 3T", Magn Reson Med 54 (2005) 507-512, found T1
    of 1084 and 1820 ms, T2 of 69 and 99 ms; our T2 lie between the two. Blood T1: H. Lu et al., Magn Reson
    Med 52 (2004) 679-682 (1.6 s; Stanisz 1.9 s). CSF T1: C. Lin et al., Proc ISMRM 9 (2001) 1391 (4.16 s).
    Water content of white and grey matter: K. P. Whittall et al., Magn Reson Med 37 (1997) 34-43 (0.7, 0.8).

    We differ: hyperintensity, oedema, tumour and necrosis are chosen, longer than their host tissue by what
    makes them look as they do. So are the proton density of vessels, which stands for signal lost by flow,
    and the T2 of CSF, below that of still water for the same reason.
"""

RELAXIVITY_PER_MM_S = 4.5
"""r1 of a gadolinium chelate at 3 T, in 1/(mmol/L s); 3.5 to 5 for the macrocyclic agents in plasma."""


@dataclass(frozen=True)
class ScanParameters:
    """How one sequence was acquired.

    Attributes:
        tr_ms: Repetition time.
        te_ms: Echo time.
        ti_ms: Inversion time; 0 without inversion.
        noise: Standard deviation of the real and imaginary noise, relative to white matter.
        shading: Standard deviation of the logarithm of the coil profile.
        slice_mm: Slice thickness; 0 where it is that of the grid.
        gain: Numbers in the file per signal of white matter.
        field_seed: Seed of the coil profile and of the noise.
    """

    tr_ms: float
    te_ms: float
    ti_ms: float
    noise: float
    shading: float
    slice_mm: float
    gain: float
    field_seed: int


@dataclass(frozen=True)
class PhysicsParameters:
    """Everything drawn about tissue and scanner.

    Attributes:
        relaxation: Per tissue, this case's values.
        contrast_mm: Contrast agent in enhancing tumour, mmol/L, on average.
        scans: Per sequence.
    """

    relaxation: dict[Tissue, Relaxation]
    contrast_mm: float
    scans: dict[Sequence, ScanParameters]


def null_time_ms(t1_ms: float, tr_ms: float) -> float:
    """The inversion time at which a tissue has no signal: TI = T1 ln 2 - T1 ln(1 + exp(-TR / T1)).

    Example:
        >>> round(null_time_ms(4160.0, 9000.0))
        2431
    """
    return float(t1_ms * np.log(2) - t1_ms * np.log1p(np.exp(-tr_ms / t1_ms)))


def signal(tissue: Relaxation, scan: ScanParameters, *, contrast_mm: float = 0.0) -> float:
    """The spin-echo signal equation, with or without inversion.

    S = PD (1 - exp(-TR/T1)) exp(-TE/T2), or with inversion
    S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2). Contrast agent shortens T1: 1/T1' = 1/T1 + r1 C.

    Args:
        tissue: Relaxation times without contrast agent.
        scan: TR, TE, TI.
        contrast_mm: C in mmol/L.
    """
    t1_ms = 1 / (1 / tissue.t1_ms + RELAXIVITY_PER_MM_S * contrast_mm / 1000)
    inverted = 2 * np.exp(-scan.ti_ms / t1_ms) if scan.ti_ms > 0 else 1.0
    recovery = np.exp(-scan.tr_ms / t1_ms)
    longitudinal = 1 - inverted + recovery if scan.ti_ms > 0 else 1 - recovery
    return float(tissue.proton_density * abs(longitudinal) * np.exp(-scan.te_ms / tissue.t2_ms))


def draw_physics(generator: np.random.Generator) -> PhysicsParameters:
    """Draw tissue and scanner; TR, TE and slices span what clinical protocols use."""
    relaxation = {}
    for tissue, (mean, spread) in RELAXATION.items():
        t1, t2 = np.exp(generator.normal(0.0, spread, 2))
        relaxation[tissue] = Relaxation(
            float(mean.t1_ms * t1),
            float(mean.t2_ms * t2),
            float(mean.proton_density * generator.normal(1.0, 0.015)),
        )
    thick = generator.random() < 0.35
    scans = {
        sequence: _draw_scan(generator, sequence, relaxation[Tissue.CSF].t1_ms, thick=thick) for sequence in SEQUENCES
    }
    return PhysicsParameters(relaxation, float(generator.uniform(0.12, 0.36)), scans)


def _draw_scan(generator: np.random.Generator, sequence: Sequence, csf_t1_ms: float, *, thick: bool) -> ScanParameters:
    tr_ms, te_ms = {
        Sequence.T1: ((450.0, 750.0), (8.0, 14.0)),
        Sequence.T1CE: ((450.0, 750.0), (8.0, 14.0)),
        Sequence.T2: ((3500.0, 6500.0), (80.0, 110.0)),
        Sequence.FLAIR: ((8000.0, 11000.0), (90.0, 130.0)),
    }[sequence]
    tr = float(generator.uniform(*tr_ms))
    off_null = float(generator.uniform(0.97, 1.03))
    return ScanParameters(
        tr_ms=tr,
        te_ms=float(generator.uniform(*te_ms)),
        ti_ms=off_null * null_time_ms(csf_t1_ms, tr) if sequence is Sequence.FLAIR else 0.0,
        noise=float(generator.uniform(0.015, 0.045)),
        shading=float(generator.uniform(0.03, 0.10)),
        slice_mm=float(generator.uniform(3.0, 6.0)) if thick and generator.random() < 0.7 else 0.0,
        gain=float(generator.uniform(150.0, 700.0)),
        field_seed=int(generator.integers(2**31)),
    )


def fractions(anatomy: Anatomy, tumour: Tumour) -> dict[Tissue, Field]:
    """How much of each tissue is in each voxel; sums to 1 in the brain."""
    outside = (1 - tumour.core) * (1 - anatomy.vessel)
    # Oedema is water in tissue: sulci and ventricles that it surrounds stay what they are.
    healthy = outside * (1 - tumour.oedema)
    lesion = anatomy.white * anatomy.hyperintensity
    rest = tumour.core * (1 - tumour.enhancing)
    return {
        Tissue.WHITE: healthy * (anatomy.white - lesion),
        Tissue.GREY: healthy * anatomy.grey,
        Tissue.CSF: outside * anatomy.csf,
        Tissue.HYPERINTENSITY: healthy * lesion,
        Tissue.VESSEL: (1 - tumour.core) * anatomy.vessel,
        Tissue.OEDEMA: outside * tumour.oedema * (1 - anatomy.csf),
        Tissue.ENHANCING: tumour.core * tumour.enhancing,
        Tissue.NECROSIS: rest * tumour.necrotic,
        Tissue.NON_ENHANCING: rest * (1 - tumour.necrotic),
    }


def acquire(
    parameters: PhysicsParameters,
    sequence: Sequence,
    parts: dict[Tissue, Field],
    anatomy: Anatomy,
    uptake: Field,
) -> Field:
    """One image: signals mixed by fraction, shaded by the coil, sliced, with Rician noise, skull-stripped.

    Args:
        parameters: From :func:`draw_physics`.
        sequence: Which image.
        parts: From :func:`fractions`.
        anatomy: For the brain mask and the spacing.
        uptake: Contrast agent relative to its average, about 1.

    Returns:
        Whole numbers, as in the released files; 0 outside the brain, at least 1 inside.
    """
    scan = parameters.scans[sequence]
    image = np.zeros(anatomy.brain.shape, dtype=np.float32)
    for tissue, part in parts.items():
        image += np.float32(signal(parameters.relaxation[tissue], scan)) * part
    if sequence is Sequence.T1CE:
        image += (
            _enhancement(parameters, scan, Tissue.ENHANCING, parameters.contrast_mm) * uptake * parts[Tissue.ENHANCING]
        )
        # Blood carries several times what leaks into the tumour.
        image += _enhancement(parameters, scan, Tissue.VESSEL, 1.5) * parts[Tissue.VESSEL]
    scale = scan.gain / signal(parameters.relaxation[Tissue.WHITE], scan)
    profile = smooth_field(scan.field_seed, image.shape, spacing_mm=anatomy.spacing_mm, length_mm=70.0)
    image *= np.float32(scale) * np.exp(np.float32(scan.shading) * profile)
    image = _scan_slices(image, scan, anatomy.spacing_mm)
    return np.where(anatomy.brain, np.maximum(np.rint(image), 1), 0).astype(np.float32)


def _enhancement(parameters: PhysicsParameters, scan: ScanParameters, tissue: Tissue, contrast_mm: float) -> float:
    relaxation = parameters.relaxation[tissue]
    return signal(relaxation, scan, contrast_mm=contrast_mm) - signal(relaxation, scan)


def _scan_slices(image: Field, scan: ScanParameters, spacing_mm: float) -> Field:
    """Average over thick slices, add Rician noise (magnitude of a complex signal), interpolate back."""
    generator = np.random.default_rng(scan.field_seed)
    size = image.shape[2]
    thickness = scan.slice_mm / spacing_mm
    if thickness > 1:
        count = int(np.ceil(size / thickness))
        centre = (np.arange(count) + 0.5) * thickness - 0.5
        away = np.abs(np.arange(size)[None, :] - centre[:, None])
        average = np.clip(thickness / 2 + 0.5 - away, 0, 1).astype(np.float32)  # of slices cut by an edge, a part
        image = image @ (average / average.sum(axis=1, keepdims=True)).T
    noise = generator.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(scan.noise * scan.gain)
    image = np.hypot(image + noise[0], noise[1])
    if thickness > 1:
        back = np.clip(1 - away / thickness, 0, 1).astype(np.float32)
        image = image @ (back / back.sum(axis=0, keepdims=True))
    return image
