"""A mask goes home to the scanner's archive: DICOM SEG on the very images it was found in."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.dicom import need
from mindgap.data.dicom_convert import moves_to_dicom
from mindgap.data.dicom_stack import Stack
from mindgap.errors import InputError
from mindgap.files import write_aside
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS

MODEL_NAME = "mindgap"
_CATEGORY = ("49755003", "SCT", "Morphologically Abnormal Structure")
SEGMENTS: tuple[tuple[str, int, tuple[str, str, str]], ...] = (
    ("NCR", NCR_CLASS, ("6574001", "SCT", "Necrosis")),
    ("ED", ED_CLASS, ("79654002", "SCT", "Edema")),
    ("ET", ET_CLASS, ("C113842", "NCIt", "Enhancing Lesion")),
)
"""Label, class and code of each segment, in their order; disjoint, since nested regions follow from them.

The codes are those of the DICOM context group for brain lesions (CID 7168); it takes "Necrosis" for non-enhancing
core too, and for enhancing tumour SNOMED CT has none, so that group takes NCIt's.
"""
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientSex", "PatientBirthDate"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


def write_seg(path: Path, target: NDArray[np.uint8], affine: NDArray[np.float64], stack: Stack) -> None:
    """Write a mask as DICOM SEG (BINARY) that refers to the series it was found in, atomically.

    A mask without any tumour is written with all its frames, every one empty: it says that nothing was found.

    Args:
        path: The file.
        target: Classes (i j k) on the NIfTI grid of the converted series.
        affine: Of that grid (4 x 4, RAS+).
        stack: The series, in geometric order.

    Raises:
        InputError: The mask is on another grid, or the source lacks what a SEG has to repeat.
        SettingError: A package is not installed.
    """
    pydicom, highdicom = need("pydicom"), need("highdicom")
    frames = to_frames(target, affine, stack)
    # The order of the images decides which frame belongs to which: it has to be that of the frames.
    files = list(dict.fromkeys(stack.files))
    if any(frame is not None for frame in stack.frames):
        if len(files) > 1 or None in stack.frames:
            raise _refuse_parts(stack, len(files))
        frames = frames[np.argsort(np.array(stack.frames, dtype=np.int64))]
    images = [_source(pydicom.dcmread(file, force=True), stack) for file in files]
    segment_number = np.zeros(max(class_ for _, class_, _ in SEGMENTS) + 1, dtype=np.uint8)
    for number, (_, class_, _) in enumerate(SEGMENTS, start=1):
        segment_number[class_] = number
    try:
        made = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=segment_number[frames],
            segmentation_type="BINARY",
            segment_descriptions=_describe(highdicom),
            series_instance_uid=highdicom.UID(),
            series_number=100 + (stack.series.number or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MODEL_NAME,
            manufacturer_model_name=MODEL_NAME,
            software_versions=version("mindgap"),
            device_serial_number="0",
            content_label="TUMOUR",
            content_description="Brain tumour, found automatically, research use only",
            series_description="mindgap brain tumour (research use only)",
            omit_empty_frames=bool(frames.any()),
        )
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            case=stack.series.name,
            expected="headers that a DICOM SEG can refer to",
            found=f"{type(error).__name__}: {error}",
            mend="export the original series of the scanner, or leave the DICOM SEG out: the NIfTI mask is written",
        ) from error
    with write_aside(path) as aside:
        made.save_as(aside)


def _refuse_parts(stack: Stack, count: int) -> InputError:
    return InputError(
        case=stack.series.name,
        expected="an enhanced series in one file, for a DICOM SEG",
        found=f"one in {count} files",
        mend="leave the DICOM SEG out: the NIfTI mask is written",
    )


def to_frames(target: NDArray[np.uint8], affine: NDArray[np.float64], stack: Stack) -> NDArray[np.uint8]:
    """Move a mask from its NIfTI grid to the images of a series (slices, rows, columns).

    Raises:
        InputError: The mask is on another grid.
    """
    move = moves_to_dicom(affine, stack, f"mask for {stack.series.name}")
    axes = np.abs(move[:3, :3]).argmax(axis=1)  # of the mask, for column, row, slice
    moved = target.transpose(axes)
    backwards = tuple(axis for axis in range(3) if move[axis, axes[axis]] < 0)
    starts = [stack.shape[axis] - 1 if axis in backwards else 0 for axis in range(3)]
    if moved.shape != stack.shape or move[:3, 3].tolist() != starts:
        raise InputError(
            case=f"mask for {stack.series.name}",
            expected=f"all voxels of the series: {stack.shape} columns, rows, slices",
            found=f"{moved.shape}, starting at {move[:3, 3].tolist()}",
            mend="segment the converted series itself, neither cropped nor padded",
        )
    return np.ascontiguousarray(np.flip(moved, backwards).transpose(2, 1, 0))


def is_own_seg(path: Path) -> bool:
    """Whether a file is a DICOM SEG that :func:`write_seg` wrote, which may be written again."""
    try:
        header = need("pydicom").dcmread(path, stop_before_pixels=True)
        return bool(header.get("Modality") == "SEG" and header.get("ManufacturerModelName") == MODEL_NAME)
    except Exception:  # whatever it is, it is not ours
        return False


def _source(image: Any, stack: Stack) -> Any:
    """An image with empty entries where the standard lets them be empty, but anonymisers took them out."""
    for key in _MAY_BE_EMPTY:
        if key not in image:
            setattr(image, key, "")
    if not image.get("SliceThickness"):
        image.SliceThickness = f"{np.linalg.norm(stack.affine_lps[:3, 2]):.6g}"
    return image


def _describe(highdicom: Any) -> list[Any]:
    code = highdicom.sr.CodedConcept
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MODEL_NAME, version=version("mindgap"), family=code("123110", "DCM", "Artificial Intelligence")
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=code(*_CATEGORY),
            segmented_property_type=code(*type_),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, (label, _, type_) in enumerate(SEGMENTS, start=1)
    ]
