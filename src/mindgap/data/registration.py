"""Rigid registration of two images of one head, and what tells whether it worked.

Transforms are 4 x 4 matrices in RAS mm that take a place in the fixed image to the same place in the moving one, so
that ``resample`` pulls and the inverse brings results back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.volume import MOST_SHEAR, Volume, shear_of
from mindgap.errors import InputError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SEED = 20
_WORKING_MM = (4.0, 2.0)
_SAMPLED = (0.25, 0.06)  # share of voxels on each level
_STEPS = 200  # 60 left rotations 3 to 9 degrees off
_BINS = 32
_TURNS_DEG = (-40.0, 0.0, 40.0)  # about each axis: 27 poses are looked at
_NEARLY = 0.9  # as similar as the end so far, before any descent: 1.0 to 1.3 where that end was 35 to 50 degrees off
_RIM_VOXELS = 3  # of background around a brain, so that its outline counts
_LEAST_GAIN = 1e-3  # of mutual information; below, the images lay right before


@dataclass(frozen=True, eq=False)
class Registration:
    """How a moving image was laid upon a fixed one.

    Attributes:
        matrix: Place in the fixed image to place in the moving image (4 x 4, RAS mm).
        before: Mattes mutual information as the headers lay the images; 0 where they do not meet.
        after: The same after registration, never less.
    """

    matrix: NDArray[np.float64]
    before: float
    after: float

    @property
    def is_as_found(self) -> bool:
        """Whether no end was better than the headers' own geometry, which was kept."""
        return bool(np.array_equal(self.matrix, np.eye(4)))

    @property
    def rotation_deg(self) -> float:
        """Angle of the rotation."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))


def register(case: str, fixed: Volume, moving: Volume, *, stripped: bool = False) -> Registration:
    """Lay a moving image upon a fixed one, rigidly, by Mattes mutual information on two levels.

    Starts are the headers' own geometry, the centres of mass, and the best of some large turns where that already
    looks as good as what the others led to. The best end wins, and the identity is kept where no end is better.
    Sampling has a fixed seed and one thread, so that a result repeats bit for bit.

    Args:
        case: Name for messages.
        fixed: The image that stays.
        moving: The image that is laid upon it.
        stripped: The fixed image is 0 outside of the brain; only the brain and a rim are then compared.

    Raises:
        InputError: A grid is sheared.

    Reference:
        D. Mattes et al., "PET-CT image registration in the chest using free-form deformations", IEEE TMI 22 (2003).
    """
    import SimpleITK as sitk

    pair = to_itk(case, fixed), to_itk(case, moving)
    identity = sitk.Euler3DTransform()
    centred = sitk.CenteredTransformInitializer(
        *pair, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    identity.SetCenter(centred.GetCenter())
    with _one_thread():
        return _register(pair, identity, centred, stripped=stripped)


def _register(pair: tuple[Any, Any], identity: Any, centred: Any, *, stripped: bool) -> Registration:
    import SimpleITK as sitk

    coarse, fine = (_level(pair, mm, stripped=stripped) for mm in _WORKING_MM)
    before = _similarity(fine, identity)
    centred = sitk.Euler3DTransform(centred)
    ends = [_optimise(coarse, start, _SAMPLED[0]) for start in (identity, centred)]
    end = _optimise(fine, _look_around(coarse, centred, _best(coarse, ends)), _SAMPLED[1])
    after = _similarity(fine, end)
    if after < before + _LEAST_GAIN:
        return Registration(np.eye(4), before, before)
    return Registration(_matrix_of(end), before, after)


def _look_around(level: _Level, centred: Any, end: Any) -> Any:
    """The end of a descent, or a better one from the best of some large turns about the centres of mass.

    Where a head is turned by 40 degrees and more, a descent may end beside it, since outlines of brains meet there too.
    """
    import SimpleITK as sitk

    turns = []
    for degrees in product(_TURNS_DEG, repeat=3):
        turns.append(sitk.Euler3DTransform(centred))
        turns[-1].SetRotation(*np.deg2rad(degrees).tolist())
    turned = _best(level, turns)
    if _similarity(level, turned) < _NEARLY * _similarity(level, end):
        return end
    return _best(level, [end, _optimise(level, turned, _SAMPLED[0])])


def _best(level: _Level, transforms: list[Any]) -> Any:
    return max(transforms, key=lambda transform: _similarity(level, transform))


def resample(
    case: str,
    volume: Volume,
    matrix: NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    *,
    cubic: bool = False,
) -> NDArray[np.float32]:
    """Pull an image onto another grid; 0 outside of it.

    Args:
        case: Name for messages.
        volume: The image.
        matrix: Place on the new grid to place in the image (RAS mm).
        shape: Shape of the new grid.
        affine: Affine of the new grid (RAS mm).
        cubic: By cubic B-splines, which blur less and may overshoot; else linearly.
    """
    import SimpleITK as sitk

    kind = sitk.sitkBSpline3 if cubic else sitk.sitkLinear
    grid = to_itk(case, Volume(np.zeros(shape, np.float32), affine, volume.path, None))
    pulled = sitk.Resample(to_itk(case, volume), grid, _transform_of(matrix), kind, 0.0)
    return np.ascontiguousarray(sitk.GetArrayFromImage(pulled).transpose(2, 1, 0), dtype=np.float32)


def to_itk(case: str, volume: Volume) -> Any:
    """A volume as a SimpleITK image (LPS mm).

    Raises:
        InputError: The grid is sheared, which SimpleITK cannot hold.
    """
    import SimpleITK as sitk

    affine = _LPS @ volume.affine
    if shear_of(affine) > MOST_SHEAR:
        raise InputError(
            case=f"{case}: {volume.path.name}",
            expected="axes at right angles",
            found="a sheared grid",
            mend="convert the scan again, with its gantry tilt corrected",
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    left, _, right = np.linalg.svd(affine[:3, :3] / np.array(volume.spacing_mm))
    image.SetDirection((left @ right).ravel().tolist())
    return image


@dataclass(frozen=True)
class _Level:
    """Both images at a resolution, and where they are compared (None: everywhere)."""

    fixed: Any
    moving: Any
    inside: Any


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of threads differ in their last bits; a metric has no setting of its own for their number."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _level(pair: tuple[Any, Any], spacing_mm: float, *, stripped: bool) -> _Level:
    import SimpleITK as sitk

    fixed, moving = (_shrink(image, spacing_mm) for image in pair)
    return _Level(fixed, moving, sitk.BinaryDilate(fixed > 0, [_RIM_VOXELS] * 3) if stripped else None)


def _shrink(image: Any, spacing_mm: float) -> Any:
    import SimpleITK as sitk

    factors = [max(1, int(spacing_mm / mm + 0.5)) for mm in image.GetSpacing()]
    return sitk.BinShrink(image, factors)


def _optimise(level: _Level, start: Any, sampled: float) -> Any:
    """Where the descent from a start ends; the start itself where the images leave each other."""
    import SimpleITK as sitk

    end = sitk.Euler3DTransform(start)
    method = _method(level, sampled)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=_STEPS, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(end, inPlace=True)
    try:
        method.Execute(level.fixed, level.moving)
    except RuntimeError:
        return start
    return end


def _similarity(level: _Level, transform: Any) -> float:
    method = _method(level, 0.25)
    method.SetInitialTransform(transform)
    try:
        return -float(method.MetricEvaluate(level.fixed, level.moving))
    except RuntimeError:  # no overlap
        return 0.0


def _method(level: _Level, sampled: float) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(sampled, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    if level.inside is not None:
        method.SetMetricFixedMask(level.inside)
    return method


def _matrix_of(transform: Any) -> NDArray[np.float64]:
    """RAS matrix of a rigid SimpleITK transform."""
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    centre = np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre + transform.GetTranslation() - rotation @ centre
    return np.asarray(_LPS @ matrix @ _LPS, dtype=np.float64)


def _transform_of(matrix: NDArray[np.float64]) -> Any:
    """SimpleITK transform of a RAS matrix."""
    import SimpleITK as sitk

    lps = _LPS @ matrix @ _LPS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform
