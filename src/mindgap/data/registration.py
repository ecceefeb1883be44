"""Rigid registration of two images of one head, and what tells whether it worked.

Transforms are 4 x 4 matrices in RAS mm that take a place in the fixed image to the same place in the moving one, so
that ``resample`` pulls and the inverse brings results back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.nifti import Volume
from mindgap.errors import InputError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SEED = 20
_WORKING_MM = (4.0, 2.0)
_SAMPLED = (0.25, 0.06)  # share of voxels on each level, about 40,000 of a head
_BINS = 32
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
    def rotation_deg(self) -> float:
        """Angle of the rotation."""
        return float(np.degrees(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))


def register(case: str, fixed: Volume, moving: Volume) -> Registration:
    """Lay a moving image upon a fixed one, rigidly, by Mattes mutual information on two levels.

    Starts are the headers' own geometry and the centres of mass; the best end wins, and the identity is kept where no
    end is better. Sampling has a fixed seed and one thread, so that a result repeats bit for bit.

    Args:
        case: Name for messages.
        fixed: The image that stays.
        moving: The image that is laid upon it.

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
    coarse, fine = (tuple(_shrink(image, mm) for image in pair) for mm in _WORKING_MM)
    before = _similarity(fine, identity)
    starts = [_optimise(coarse, start, _SAMPLED[0]) for start in (identity, sitk.Euler3DTransform(centred))]
    end = _optimise(fine, max(starts, key=lambda start: _similarity(coarse, start)), _SAMPLED[1])
    after = _similarity(fine, end)
    if after < before + _LEAST_GAIN:
        return Registration(np.eye(4), before, before)
    return Registration(_matrix_of(end), before, after)


def resample(
    case: str,
    volume: Volume,
    matrix: NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Pull an image onto another grid, linearly; 0 outside of it.

    Args:
        case: Name for messages.
        volume: The image.
        matrix: Place on the new grid to place in the image (RAS mm).
        shape: Shape of the new grid.
        affine: Affine of the new grid (RAS mm).
    """
    import SimpleITK as sitk

    grid = to_itk(case, Volume(np.zeros(shape, np.float32), affine, volume.path, None))
    pulled = sitk.Resample(to_itk(case, volume), grid, _transform_of(matrix), sitk.sitkLinear, 0.0)
    return np.ascontiguousarray(sitk.GetArrayFromImage(pulled).transpose(2, 1, 0), dtype=np.float32)


def to_itk(case: str, volume: Volume) -> Any:
    """A volume as a SimpleITK image (LPS mm).

    Raises:
        InputError: The grid is sheared, which SimpleITK cannot hold.
    """
    import SimpleITK as sitk

    affine = _LPS @ volume.affine
    direction = affine[:3, :3] / np.array(volume.spacing_mm)
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        raise InputError(
            case=f"{case}: {volume.path.name}",
            expected="axes at right angles",
            found="a sheared grid",
            mend="convert the scan again, with its gantry tilt corrected",
        )
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    left, _, right = np.linalg.svd(direction)
    image.SetDirection((left @ right).ravel().tolist())
    return image


def _shrink(image: Any, spacing_mm: float) -> Any:
    import SimpleITK as sitk

    factors = [max(1, int(spacing_mm / mm + 0.5)) for mm in image.GetSpacing()]
    return sitk.BinShrink(image, factors)


def _optimise(pair: tuple[Any, ...], start: Any, sampled: float) -> Any:
    """Where the descent from a start ends; the start itself where the images leave each other."""
    import SimpleITK as sitk

    end = sitk.Euler3DTransform(start)
    method = _method(sampled)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-2, numberOfIterations=60, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(end, inPlace=True)
    try:
        method.Execute(*pair)
    except RuntimeError:
        return start
    return end


def _similarity(pair: tuple[Any, ...], transform: Any) -> float:
    method = _method(0.25)
    method.SetInitialTransform(transform)
    try:
        return -float(method.MetricEvaluate(*pair))
    except RuntimeError:  # no overlap
        return 0.0


def _method(sampled: float) -> Any:
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(sampled, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
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
