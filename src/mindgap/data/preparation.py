"""From a case in its own grid to arrays a network takes, and the way back.

Each sequence is prepared alone: its brain, its box and its intensity scale come from its own voxels, so that
leaving a sequence out changes nothing in the others.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case
from mindgap.data.prepared import (
    LOWEST_BRAIN,
    Box,
    Placement,
    Preparation,
    PreparedCase,
    Shape,
    join_boxes,
    paste_box,
    shift_box,
    slices_of,
    unshift_box,
)
from mindgap.data.resampling import resample_box
from mindgap.data.volume import check_head
from mindgap.errors import InputError
from mindgap.processor import cpu_count
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS
from mindgap.sequences import Sequence, make_subset
from mindgap.shapes import BACKGROUND, Float, Shaped

WORKING_ORIENTATION = "LPS"
"""Axes inside: those of BraTS, so that its volumes are not moved at all."""
LEAST_BRAIN_VOXELS = 8

_Number = TypeVar("_Number", bound=np.generic)


def prepare_case(case: Case, preparation: Preparation, *, brain_of: Case | None = None) -> PreparedCase:
    """Reorient, resample, normalise and crop the sequences a case has.

    Args:
        case: At least one sequence; the loaded ones are the ones used.
        preparation: How.
        brain_of: The same patient with sequences whose brains together stand for the brain of every sequence: crop
            and intensity scale then know of images that the case does not have. Only to repeat published numbers.

    Raises:
        InputError: The grid is not that of a head in mm, or a sequence has no brain voxels left.
    """
    reference = case.reference
    check_head(case.case_id, reference)
    permutation, flips = _axes_to(reference.affine, WORKING_ORIENTATION)
    native_spacing = np.array(reference.spacing_mm)[list(permutation)]
    native_shape = tuple(reference.array.shape[axis] for axis in permutation)
    working_shape = _working_shape(native_shape, native_spacing, preparation.spacing_mm)
    spacing = native_spacing * np.array(native_shape) / np.array(working_shape)
    sequences = make_subset(case.images)
    shared = None if brain_of is None else np.any([volume.array > 0 for volume in brain_of.images.values()], axis=0)

    def prepare_one(sequence: Sequence) -> tuple[NDArray[np.float32], Box]:
        own = case.images[sequence].array
        inside = own > 0 if shared is None else shared
        array, brain, box = _on_working_grid(
            _reorient(own, permutation, flips), _reorient(inside, permutation, flips), working_shape
        )
        if np.count_nonzero(brain) < LEAST_BRAIN_VOXELS:
            raise InputError(
                case=f"{case.case_id}: {sequence}",
                expected="an image of a brain (voxels above 0)",
                found="none at the working resolution",
                mend="give a skull-stripped image, or leave this sequence out",
            )
        return _normalise(array, brain, preparation), box

    with ThreadPoolExecutor(min(len(sequences), cpu_count())) as pool:  # numpy lets other threads on
        images, boxes = zip(*pool.map(prepare_one, sequences), strict=True)
    box = join_boxes(boxes)
    placement = Placement(_three(reference.array.shape), permutation, flips, working_shape, box)
    x_mm, y_mm, z_mm = spacing.tolist()
    return PreparedCase(
        case_id=case.case_id,
        image=np.stack([_widen(image, inner, box) for image, inner in zip(images, boxes, strict=True)]),
        sequences=sequences,
        boxes=tuple(shift_box(inner, box) for inner in boxes),
        target=None if case.target is None else target_on_grid(case.target, placement)[slices_of(box)],
        placement=placement,
        spacing_mm=(x_mm, y_mm, z_mm),
    )


def put_back(
    maps: Float[NDArray[np.float32], "R i j k"], placement: Placement
) -> Float[NDArray[np.float32], "R x y z"]:
    """Undo the preparation for probabilities on the crop: resample linearly to the native grid, reorient.

    Args:
        maps: Probabilities on the crop.
        placement: From :func:`prepare_case`.

    Returns:
        The maps on the grid of the files, 0 outside the crop.
    """
    oriented_shape = _three(placement.native_shape[axis] for axis in placement.permutation)
    box = placement.box
    if oriented_shape != placement.working_shape:
        maps, box = resample_box(maps, box, placement.working_shape, oriented_shape)
    return orient_back(paste_box(maps, box, oriented_shape), placement)


def orient_back(maps: Shaped[NDArray[_Number], "R i j k"], placement: Placement) -> Shaped[NDArray[_Number], "R x y z"]:
    """Maps whose axes are those of the working grid, with the axes of the files."""
    turned = np.flip(maps, tuple(axis + 1 for axis in range(3) if placement.flips[axis]))
    inverse = np.argsort(placement.permutation)
    native: NDArray[_Number] = np.ascontiguousarray(turned.transpose(0, *(int(axis) + 1 for axis in inverse)))
    return native


def target_on_grid(target: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Classes on the grid of the files as classes on the whole working grid."""
    return _resample_target(_reorient(target, placement.permutation, placement.flips), placement.working_shape)


def _on_working_grid(
    array: NDArray[np.float32], inside: NDArray[np.bool_], shape: Shape
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Box]:
    """An image and its brain on the working grid, cropped to the box of the brain; without brain, the empty box."""
    box = _bounding_box(inside)
    # files lie in memory the other way round, in which all that follows takes twice as long
    image, brain = np.ascontiguousarray(array[slices_of(box)]), np.ascontiguousarray(inside[slices_of(box)])
    if array.shape == shape or not image.size:
        return image, brain, box
    image, brain, near = _resample_image(image, brain, box, _three(array.shape), shape)
    inner = _bounding_box(brain)
    return image[slices_of(inner)], brain[slices_of(inner)], unshift_box(inner, near)


def _widen(image: NDArray[np.float32], inner: Box, outer: Box) -> NDArray[np.float32]:
    """An image on a box in a larger box, background around it."""
    if inner == outer:
        return image
    whole = np.full([stop - start for start, stop in outer], BACKGROUND, np.float32)
    whole[slices_of(shift_box(inner, outer))] = image
    return whole


def _normalise(image: NDArray[np.float32], brain: NDArray[np.bool_], preparation: Preparation) -> NDArray[np.float32]:
    inside = image[brain]
    if preparation.normalisation == "percentile":
        low, high = np.percentile(inside, preparation.percentiles).tolist()
        scaled: NDArray[np.float32] = image - np.float32(low)
        scaled *= np.float32(2.0 / max(high - low, 1e-6))
        scaled -= 1
    else:
        scaled = image - np.float32(inside.mean())
        scaled /= np.float32(5.0 * max(float(inside.std()), 1e-6))
    scaled.clip(LOWEST_BRAIN, 1.0, out=scaled)
    np.putmask(scaled, ~brain, np.float32(BACKGROUND))
    return scaled


def _resample_image(
    image: NDArray[np.float32], brain: NDArray[np.bool_], box: Box, shape: Shape, wanted: Shape
) -> tuple[NDArray[np.float32], NDArray[np.bool_], Box]:
    """Resample an image and its brain mask; partial voxels at the border keep the brightness of the brain.

    Args:
        image: In the box of the brain.
        brain: The mask there.
        box: Where that is.
        shape: Of the grid.
        wanted: Of the grid to come to.

    Returns:
        The image and the mask where there may be brain, and the box where that is.
    """
    (image, share), near = resample_box(np.stack([image * brain, brain.astype(np.float32)]), box, shape, wanted)
    brain = share >= 0.5
    image /= share.clip(0.5)
    np.putmask(image, ~brain, np.float32(0))
    return image, brain, near


def _resample_target(target: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """Resample classes by the largest interpolated membership."""
    if target.shape == shape:
        return np.ascontiguousarray(target)
    box, values = _bounding_box(target > 0), (ET_CLASS, NCR_CLASS, ED_CLASS)
    there = target[slices_of(box)]
    members = np.stack([(there == value).astype(np.float32) for value in values])
    found, near = resample_box(members, box, _three(target.shape), shape)
    classes = np.concatenate([1 - found.sum(0, keepdims=True), found]).argmax(0)  # values are 1, 2, 3 in order
    result: NDArray[np.uint8] = paste_box(classes[None].astype(np.uint8), near, shape)[0]
    return result


def _working_shape(
    shape: tuple[int, ...], spacing: NDArray[np.float64], wanted_mm: float | None
) -> tuple[int, int, int]:
    """Shape of the grid that covers the same box at about the wanted spacing; unchanged within 1 %."""
    if wanted_mm is None:
        return _three(shape)
    sizes = [
        n if abs(mm / wanted_mm - 1) < 0.01 else max(1, round(n * mm / wanted_mm))
        for n, mm in zip(shape, spacing.tolist(), strict=True)
    ]
    return _three(sizes)


def _axes_to(affine: NDArray[np.float64], codes: str) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How file axes become working axes: permutation and reversals (no interpolation)."""
    import nibabel as nib

    transform = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    permutation = [int(np.flatnonzero(transform[:, 0] == axis)[0]) for axis in range(3)]
    flips = [bool(transform[source, 1] < 0) for source in permutation]
    return (permutation[0], permutation[1], permutation[2]), (flips[0], flips[1], flips[2])


def _reorient(array: NDArray[Any], permutation: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> NDArray[Any]:
    moved: NDArray[Any] = array.transpose(permutation)
    oriented: NDArray[Any] = moved[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return oriented


def _bounding_box(mask: NDArray[np.bool_]) -> Box:
    def ends(line: NDArray[np.bool_]) -> tuple[int, int]:
        found = np.flatnonzero(line)
        return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)

    plane = np.asarray(mask.any(2))
    return ends(np.asarray(plane.any(1))), ends(np.asarray(plane.any(0))), ends(np.asarray(mask.any((0, 1))))


def _three(values: Any) -> tuple[int, int, int]:
    a, b, c = (int(value) for value in values)
    return a, b, c
