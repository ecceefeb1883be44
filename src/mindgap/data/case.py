"""One patient: on disk with any non-empty set of sequences, in memory with impossible data refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mindgap.data.nifti import read_volume
from mindgap.data.volume import Volume, volume_of_voxel_ml
from mindgap.errors import InputError
from mindgap.processor import cpu_count
from mindgap.regions import CLASS_COUNT, LabelConvention, target_from_label
from mindgap.sequences import SEQUENCES, Sequence, Subset, format_subset, make_subset

_T = TypeVar("_T")

AFFINE_TOLERANCE_MM = 1e-3
"""Largest difference of two affines' entries (nnU-Net's 1e-8 refuses files that differ by rounding)."""
LEAST_BRAIN_FRACTION = 1e-3
MOST_BRAIN_ML = 2500.0
"""Above 0; the brains of 38 BraTS cases have 1.1 to 1.6 L, the largest known hardly 2."""
MOST_NEGATIVE_FRACTION = 1e-2
LARGEST_LABEL = 5
"""Whole numbers up to this and nothing else are labels, not an image."""


@dataclass(frozen=True)
class Source:
    """Where one image lies.

    Attributes:
        path: A NIfTI file.
        channel: Index on the fourth axis of a 4-D file (MSD); None for a 3-D file.
    """

    path: Path
    channel: int | None = None

    def __str__(self) -> str:
        return self.path.name if self.channel is None else f"{self.path.name}#{self.channel}"


@dataclass(frozen=True)
class Origin:
    """The DICOM series that an image was converted from; the converted file is a passing one.

    Attributes:
        file: Folder or archive it lies in.
        name: What a person calls it.
        uid: SeriesInstanceUID.
        number: SeriesNumber; None where there is none.
        description: SeriesDescription.
        images: How many it has.
        sha256: Of its files, one after the other in the order of their paths.
        others: Names of the series that were left out.
    """

    file: Path
    name: str
    uid: str
    number: int | None
    description: str
    images: int
    sha256: str
    others: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """For the manifest of a mask."""
        about = {"name": self.name, "uid": self.uid, "number": self.number, "description": self.description}
        return {
            "file": str(self.file),
            "sha256": self.sha256,
            "series": {**about, "images": self.images},
            "other_series": list(self.others),
        }


@dataclass(frozen=True)
class CaseFiles:
    """One patient on disk; nothing has been opened yet.

    Attributes:
        case_id: Name of the patient or examination.
        images: The sequences there are, at least one; put in canonical order.
        label: The reference segmentation, where there is one.
        left_alone: Names of NIfTI files of its folder that name neither a sequence nor a label.
        origins: The DICOM series of each image that was converted from one.
        doubts: What came up when these files were found or made, for a reader of the mask.

    Raises:
        InputError: No sequence, one image named twice, or a name that could lie outside the folder of results.
    """

    case_id: str
    images: Mapping[Sequence, Source]
    label: Source | None = None
    left_alone: tuple[str, ...] = ()
    origins: Mapping[Sequence, Origin] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if Path(self.case_id).name != self.case_id or self.case_id in ("", ".", "..") or "\\" in self.case_id:
            raise InputError(
                case=self.case_id,
                expected="a case name that can name a file",
                found=f"{self.case_id!r}",
                mend="rename the case, without / or \\",
            )
        ordered = _in_order(self.case_id, self.images)
        object.__setattr__(self, "images", ordered)
        named = {str(sequence): source for sequence, source in ordered.items()}
        if self.label is not None:
            named["the label"] = self.label
        seen: dict[Source, str] = {}
        for name, source in named.items():
            # A link to a file is that file.
            place = Source(source.path.resolve(), source.channel)
            if place in seen:
                raise InputError(
                    case=self.case_id,
                    expected="a file of its own for each sequence",
                    found=f"{source} named for {seen[place]} and for {name}",
                    mend="name the right file, or leave the absent sequence out",
                )
            seen[place] = name

    @property
    def sequences(self) -> Subset:
        """The sequences on disk, in canonical order."""
        return tuple(self.images)

    def load(
        self,
        subset: Subset | None = None,
        *,
        convention: LabelConvention | None = None,
        force: bool = False,
    ) -> Case:
        """Open the files of a subset, and only these: an absent sequence has no influence on anything.

        Args:
            subset: What to open; all there is when None.
            convention: What the numbers of the label mean; without it the label is not opened.
            force: Accept affines that disagree; the grid of the first sequence then stands for all.

        Returns:
            The checked case; its target is None where no label was asked for or none exists.

        Raises:
            InputError: A sequence is not there, a file is unreadable, or the data are impossible (see
                :class:`Case`).
            SettingError: The subset is empty.
        """
        wanted = self.sequences if subset is None else make_subset(subset)
        absent = [sequence for sequence in wanted if sequence not in self.images]
        if absent:
            raise InputError(
                case=self.case_id,
                expected=f"the sequences {format_subset(wanted)}",
                found=f"{format_subset(self.sequences)} ({format_subset(absent)} absent)",
                mend=f"ask for {format_subset(self.sequences)} or fewer, or add the missing files",
            )
        sources = {sequence: self.images[sequence] for sequence in wanted}
        with ThreadPoolExecutor(min(len(sources), cpu_count())) as pool:  # inflating lets other threads on
            volumes = pool.map(lambda s: read_volume(s.path, case=self.case_id, channel=s.channel), sources.values())
            images = dict(zip(sources, volumes, strict=True))
        target = None
        if convention is not None and self.label is not None:
            label = read_volume(self.label.path, case=self.case_id, channel=self.label.channel)
            _check_grid(self.case_id, label, images[wanted[0]], force=force)
            target = target_from_label(label.array, convention, f"{self.case_id}: {self.label.path.name}")
        return Case(self.case_id, images, target, force=force)


@dataclass(frozen=True, eq=False)
class Case:
    """The same patient in memory, checked at birth.

    Background is 0 and brain is what lies above (the convention of BraTS), so crop and normalisation can
    rely on it. Few negative voxels (interpolation) are let through, an image full of them is not.

    Attributes:
        case_id: Name of the patient or examination.
        images: At least one volume, all on one grid; put in canonical order.
        target: Classes of :mod:`mindgap.regions` (i j k) on the same grid, or None.
        force: Accept affines that disagree, and more than a brain above 0; shapes have to agree all the same.

    Raises:
        InputError: No image; shapes or affines disagree; an image has NaN or infinite voxels, is constant,
            mostly empty, larger than a brain, a label map, or has many negative voxels; the target does not fit.
    """

    case_id: str
    images: Mapping[Sequence, Volume]
    target: NDArray[np.uint8] | None = None
    force: InitVar[bool] = False

    def __post_init__(self, force: bool) -> None:
        object.__setattr__(self, "images", _in_order(self.case_id, self.images))
        for volume in list(self.images.values())[1:]:
            _check_grid(self.case_id, volume, self.reference, force=force)
        for sequence, volume in self.images.items():
            check_stripped(f"{self.case_id}: {sequence} ({volume.path.name})", volume, force=force)
        if self.target is not None:
            _check_target(self.case_id, self.target, self.reference)

    @property
    def reference(self) -> Volume:
        """The first image in canonical order; masks go home in its grid."""
        return next(iter(self.images.values()))

    @property
    def sequences(self) -> Subset:
        """The sequences in memory, in canonical order."""
        return tuple(self.images)

    def only(self, subset: Subset) -> Case:
        """The case with some of its sequences and no target; what was checked at birth is not checked again."""
        if subset == self.sequences and self.target is None:
            return self
        part = object.__new__(Case)
        for name, value in (
            ("case_id", self.case_id),
            ("images", {s: self.images[s] for s in subset}),
            ("target", None),
        ):
            object.__setattr__(part, name, value)
        return part


def _in_order(case_id: str, images: Mapping[Sequence, _T]) -> dict[Sequence, _T]:
    if not images:
        raise InputError(
            case=case_id,
            expected="at least one of T1, T2, T1ce, FLAIR",
            found="no image",
            mend="name at least one sequence",
        )
    return {sequence: images[sequence] for sequence in SEQUENCES if sequence in images}


def _check_grid(case_id: str, volume: Volume, reference: Volume, *, force: bool) -> None:
    mend = "take raw scans with `mindgap segment --raw`, or register and resample all files of the case to one grid"
    if volume.array.shape != reference.array.shape:
        raise InputError(
            case=f"{case_id}: {volume.path.name}",
            expected=f"shape {reference.array.shape} as in {reference.path.name}",
            found=f"{volume.array.shape}",
            mend=mend,
        )
    difference_mm = float(np.abs(volume.affine - reference.affine).max())
    if difference_mm > AFFINE_TOLERANCE_MM and not force:
        corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in volume.array.shape))])
        shifts_mm = np.linalg.norm((corners @ (volume.affine - reference.affine).T)[:, :3], axis=1)
        raise InputError(
            case=f"{case_id}: {volume.path.name}",
            expected=f"the affine of {reference.path.name} within {AFFINE_TOLERANCE_MM:g} mm",
            found=f"one that differs by {difference_mm:.3g} mm (corners by up to {shifts_mm.max():.3g} mm)",
            mend=f"{mend}; when only the header is wrong, --force takes the grid of {reference.path.name}",
        )


def check_stripped(case: str, volume: Volume, *, force: bool) -> None:
    """Refuse what no skull-stripped MRI looks like.

    Args:
        case: Whose volume, for messages.
        volume: It.
        force: Let more than a brain through.

    Raises:
        InputError: Voxels are not finite or all the same, mostly empty, more than a brain, negative or labels.
    """
    array, voxel_ml = volume.array, volume_of_voxel_ml(volume.affine)
    no_head = array.size * voxel_ml > 1e6  # a cubic metre: units are wrong, which is said elsewhere
    largest = math.inf if force or no_head else MOST_BRAIN_ML / voxel_ml
    # minimum and maximum carry NaN and infinity along, so two passes do
    with np.errstate(invalid="ignore"):
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    strip = "give skull-stripped images with background 0"
    if not np.isfinite([low, high]).all():
        count = array.size - int(np.isfinite(array).sum())
        expected, found = "finite voxels", f"{count} that are NaN or infinite"
        mend = "replace them (background is 0) or convert the image again"
    elif low == high:
        expected, found = "an image", "only zeros" if low == 0 else f"the same value {low:g} in every voxel"
        mend = "give the right file, or leave this sequence out: it may be absent, but not blank"
    elif low < 0 and (fraction := float((array < 0).mean())) > MOST_NEGATIVE_FRACTION:
        expected, found = "background 0 and brain above it", f"{fraction:.1%} negative voxels"
        mend = f"{strip}; normalisation is done here, so z-scored images are not needed"
    elif (brain := np.count_nonzero(array > 0)) < LEAST_BRAIN_FRACTION * array.size:
        expected = f"a brain (voxels above 0) of at least {LEAST_BRAIN_FRACTION:.1%} of the volume"
        found, mend = f"{brain / array.size:.3%}", strip
    elif brain > largest:
        litres = brain / largest * MOST_BRAIN_ML / 1000
        expected = f"a brain on background 0, of at most {MOST_BRAIN_ML / 1000:g} L"
        found = f"{litres:.1f} L above 0, as in a head with its skull or with noise around it"
        mend = f"{strip}, or take raw scans with --raw and --hd-bet or --brain-mask; --force takes it as it is"
    else:
        refuse_labels(case, array)
        return
    raise InputError(case=case, expected=expected, found=found, mend=mend)


def refuse_labels(case: str, array: NDArray[np.float32]) -> None:
    """Refuse few whole numbers, which a label map or a mask holds and no image.

    Raises:
        InputError: There is nothing else.
    """
    if array.min() >= 0 and array.max() <= LARGEST_LABEL and np.array_equal(array, np.rint(array)):
        raise InputError(
            case=case,
            expected="grey values",
            found=f"nothing but whole numbers from 0 to {array.max():g}, as in a label map or a mask",
            mend="give the image itself; a segmentation is named *seg*",
        )


def _check_target(case_id: str, target: NDArray[np.uint8], reference: Volume) -> None:
    if target.shape != reference.array.shape:
        raise InputError(
            case=f"{case_id}: target",
            expected=f"shape {reference.array.shape} as in {reference.path.name}",
            found=f"{target.shape}",
            mend="resample the label to the grid of the images",
        )
    if target.max(initial=0) >= CLASS_COUNT:
        raise InputError(
            case=f"{case_id}: target",
            expected=f"classes 0 to {CLASS_COUNT - 1}",
            found=f"{target.max()}",
            mend="turn label values into classes with target_from_label",
        )
