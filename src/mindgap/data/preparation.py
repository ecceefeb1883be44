"""From a case in its own grid to arrays a network takes, and the way back; from a cohort to a store.

Each sequence is prepared alone: its brain, its box and its intensity scale come from its own voxels, so that
leaving a sequence out changes nothing in the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from collections.abc import Sequence as ManyOf
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mindgap.batch import BACKGROUND, Shaped
from mindgap.data.case import Case, CaseFiles
from mindgap.data.cohort import Cohort
from mindgap.data.folders import visible
from mindgap.data.joining import convention_of, join, refuse_twins
from mindgap.data.nifti import check_head
from mindgap.data.prepared import (
    LOWEST_BRAIN,
    Box,
    CodeKind,
    Placement,
    Preparation,
    PreparedCase,
    join_boxes,
    paste,
    shift_box,
    slices_of,
)
from mindgap.data.splits import Split
from mindgap.data.store import FORMAT as STORE_FORMAT
from mindgap.data.store import Store, StoredCase, read_entry, write_case, write_index
from mindgap.errors import InputError, SettingError
from mindgap.files import remove_leftovers
from mindgap.processor import cpu_count
from mindgap.regions import CLASS_COUNT, LabelConvention
from mindgap.sequences import Sequence, make_subset

WORKING_ORIENTATION = "LPS"
"""Axes inside: those of BraTS, so that its volumes are not moved at all."""
LEAST_BRAIN_VOXELS = 8


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

    def prepare_one(sequence: Sequence) -> tuple[Tensor, Box]:
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

    with ThreadPoolExecutor(min(len(sequences), cpu_count())) as pool:  # numpy and torch let other threads on
        images, boxes = zip(*pool.map(prepare_one, sequences), strict=True)
    box = join_boxes(boxes)
    placement = Placement(_three(reference.array.shape), permutation, flips, working_shape, box)
    x_mm, y_mm, z_mm = spacing.tolist()
    return PreparedCase(
        case_id=case.case_id,
        image=torch.stack([_widen(image, inner, box) for image, inner in zip(images, boxes, strict=True)]),
        sequences=sequences,
        boxes=tuple(shift_box(inner, box) for inner in boxes),
        target=None if case.target is None else target_on_grid(case.target, placement)[slices_of(box)],
        placement=placement,
        spacing_mm=(x_mm, y_mm, z_mm),
    )


def put_back(maps: Shaped[Tensor, "R i j k"], placement: Placement, *, fill: float = 0.0) -> Shaped[Tensor, "R x y z"]:
    """Undo the preparation for maps on the crop: paste, resample linearly to the native grid, reorient.

    Args:
        maps: Probabilities on the crop; classes too, where the native grid is the working one.
        placement: From :func:`prepare_case`.
        fill: Value outside the crop.

    Returns:
        The maps on the grid of the files.
    """
    oriented_shape = tuple(placement.native_shape[axis] for axis in placement.permutation)
    whole = paste(maps, placement, fill=fill)
    if oriented_shape != placement.working_shape:
        whole = F.interpolate(whole[None], size=oriented_shape, mode="trilinear", align_corners=False)[0]
    reversed_axes = [axis + 1 for axis in range(3) if placement.flips[axis]]
    if reversed_axes:
        whole = whole.flip(reversed_axes)
    inverse = np.argsort(placement.permutation)
    return whole.permute(0, *(int(axis) + 1 for axis in inverse)).contiguous()


def target_on_grid(target: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """Classes on the grid of the files as classes on the whole working grid."""
    return _resample_target(_reorient(target, placement.permutation, placement.flips), placement.working_shape)


def _on_working_grid(
    array: NDArray[np.float32], inside: NDArray[np.bool_], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Box]:
    """An image and its brain on the working grid, cropped to the box of the brain; without brain, the empty box."""
    if array.shape != shape:
        image, brain = _resample_image(torch.from_numpy(array.copy()), torch.from_numpy(inside.copy()), shape)
        box = _bounding_box(brain.numpy())
        return image[slices_of(box)], brain[slices_of(box)], box
    box = _bounding_box(inside)
    return torch.from_numpy(array[slices_of(box)].copy()), torch.from_numpy(inside[slices_of(box)].copy()), box


def _widen(image: Tensor, inner: Box, outer: Box) -> Tensor:
    """An image on a box in a larger box, background around it."""
    if inner == outer:
        return image
    whole = torch.full([stop - start for start, stop in outer], BACKGROUND)
    whole[slices_of(shift_box(inner, outer))] = image
    return whole


def _normalise(image: Tensor, brain: Tensor, preparation: Preparation) -> Tensor:
    inside = image[brain].numpy()
    if preparation.normalisation == "percentile":
        low, high = np.percentile(inside, preparation.percentiles).tolist()
        scaled = (image - low) * (2.0 / max(high - low, 1e-6)) - 1.0
    else:
        scaled = (image - float(inside.mean())) / (5.0 * max(float(inside.std()), 1e-6))
    return torch.where(brain, scaled.clamp(LOWEST_BRAIN, 1.0), torch.tensor(BACKGROUND))


def _resample_image(array: Tensor, inside: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Resample an image and its brain mask; partial voxels at the border keep the brightness of the brain."""
    stacked = torch.stack([array * inside, inside.float()])[None]
    image, share = F.interpolate(stacked, size=shape, mode="trilinear", align_corners=False)[0]
    brain = share >= 0.5
    return torch.where(brain, image / share.clamp_min(0.5), torch.zeros_like(image)), brain


def _resample_target(target: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Resample classes by the largest interpolated membership."""
    if target.shape == shape:
        return np.ascontiguousarray(target)
    tensor = torch.from_numpy(np.ascontiguousarray(target))
    members = torch.stack([(tensor == value).float() for value in range(CLASS_COUNT)])
    resampled = F.interpolate(members[None], size=shape, mode="trilinear", align_corners=False)[0]
    result: NDArray[np.uint8] = resampled.argmax(0).to(torch.uint8).numpy()
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


def prepare_cohort(
    cohort: Cohort,
    folder: Path,
    preparation: Preparation,
    split: Split,
    *,
    also: Iterable[Cohort] = (),
    codes: CodeKind = "uint8",
    workers: int = 2,
    progress: Callable[[int, int, str], None] = lambda done, total, case: None,
) -> Store:
    """Prepare every case of a cohort into a store; a bad case is listed and the rest goes on.

    Cases that were prepared from the same files in the same way are kept as they are.

    Args:
        cohort: What was discovered; its label convention has to be known.
        folder: Where the store is written.
        preparation: How.
        split: Which case of it belongs to which part.
        also: Other cohorts, such as phantoms, whose cases join those that train.
        codes: How intensities are stored.
        workers: Cases prepared at the same time.
        progress: Called after every case with (done, total, case).

    Raises:
        SettingError: A label convention is not known, no case could be prepared, or cohorts share a name of a case.
        InputError: A case that joins is of a patient who may not train, or a case lies in two parts under two names.
    """
    also = tuple(also)
    conventions = [convention_of(one) for one in (cohort, *also)]
    split, joined = join(split, cohort, also)
    remove_leftovers(folder / "cases")
    jobs = [
        (files, convention) for one, convention in zip((cohort, *also), conventions, strict=True) for files in one.cases
    ]
    make = partial(_prepare_one, folder=folder, preparation=preparation, codes=codes)
    stored, bad = _prepare_all(jobs, make, workers, progress)
    failed = {case_id: reason for one in (cohort, *also) for case_id, reason in one.rejected.items()} | bad
    if not stored:
        reasons = "\n".join(f"  {reason}" for reason in list(failed.values())[:5])
        raise SettingError(f"no case of {cohort.root} could be prepared:\n{reasons}")
    refuse_twins(split, joined, stored)
    store = Store(
        folder=folder,
        preparation=preparation,
        cases={case_id: stored[case_id] for case_id in sorted(stored)},
        failed=dict(sorted(failed.items())),
        split={
            "name": split.name,
            "sha256": split.sha256,
            "train": list(split.train),
            "validation": list(split.validation),
            "test": list(split.test),
            "unassigned": list(split.unassigned(sorted(stored))),
            "joined": [one.to_plain() for one in joined],
        },
        source=str(visible(cohort.root)),
        convention=conventions[0].name,
    )
    write_index(store)
    return store


def _prepare_all(
    jobs: ManyOf[tuple[CaseFiles, LabelConvention]],
    make: Callable[[CaseFiles, LabelConvention], StoredCase],
    workers: int,
    progress: Callable[[int, int, str], None],
) -> tuple[dict[str, StoredCase], dict[str, str]]:
    """Make every case, some at the same time: what was made, and what could not be, with the reason."""
    stored: dict[str, StoredCase] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        running = {pool.submit(make, *job): job[0].case_id for job in jobs}
        for done, job in enumerate(as_completed(running), start=1):
            case_id = running[job]
            try:
                stored[case_id] = job.result()
            except InputError as error:
                failed[case_id] = str(error)
            except OSError as error:  # of one of its files, such as one that went away; a full disk is no OSError here
                failed[case_id] = f"{case_id}: {error}"
            progress(done, len(running), case_id)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C, or a full disk: what has begun ends, the rest does not begin
    return stored, failed


def _prepare_one(
    files: CaseFiles, convention: LabelConvention, *, folder: Path, preparation: Preparation, codes: CodeKind
) -> StoredCase:
    fingerprint = _fingerprint(files, preparation, convention, codes)
    entry = read_entry(folder, files.case_id, fingerprint)
    if entry is not None:
        return entry
    if files.label is None:
        raise InputError(
            case=files.case_id,
            expected="a reference segmentation to learn from",
            found="none",
            mend="add a file named *seg*, name it in a .csv manifest (BIDS), or leave the case out",
        )
    prepared = prepare_case(files.load(convention=convention), preparation)
    return write_case(folder, prepared, fingerprint=fingerprint, codes=codes)


def _fingerprint(files: CaseFiles, preparation: Preparation, convention: LabelConvention, codes: CodeKind) -> str:
    """Hash of what a prepared case depends on: its files (path, size, time), the settings, the format."""
    sources = [*files.images.items(), ("label", files.label)]
    seen = [
        [
            str(key),
            str(source.path.resolve()),
            source.channel,
            source.path.stat().st_size,
            source.path.stat().st_mtime_ns,
        ]
        for key, source in sources
        if source is not None
    ]
    text = json.dumps([STORE_FORMAT, seen, asdict(preparation), convention.name, codes])
    return hashlib.sha256(text.encode()).hexdigest()
