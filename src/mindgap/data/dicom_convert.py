"""One DICOM series becomes one NIfTI file, by dcm2niix, and what came out is held against the headers."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Origin
from mindgap.data.dicom import DicomSeries, need
from mindgap.data.dicom_frames import frame_headers
from mindgap.data.dicom_stack import Stack, stack_of
from mindgap.data.folders import visible
from mindgap.data.nifti import read_volume
from mindgap.data.volume import Volume
from mindgap.errors import InputError
from mindgap.files import sha256_of

_KEPT = (
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
"""What a converter needs of a classic image; private entries and the maker's name, which bid it do special things, stay
out."""
VOXEL_TOLERANCE = 1e-3
"""Largest deviation, in voxels, from a grid of whole numbers (dcm2niix agrees with the headers to 3e-5 mm)."""


def convert_series(series: DicomSeries, out: Path) -> Stack:
    """Convert one series.

    Args:
        series: Chosen by the user or by its headers.
        out: The NIfTI file to make, ending in .nii.gz; its folder exists.

    Returns:
        The slices in geometric order and their grid, for the way back to DICOM.

    Raises:
        InputError: Slices are missing or twice, pixels are missing, or dcm2niix makes anything but one image of
            these slices on this grid.
        SettingError: A package is not installed.
    """
    stack = stack_of(series)
    _check_pixels(stack)
    source, made = out.parent / f"{out.name}.series", out.parent / f"{out.name}.made"
    source.mkdir()
    made.mkdir()
    try:
        _lay_out(stack, source)
        said = _run_dcm2niix(source, made)
        images = sorted(made.glob("*.nii.gz"))
        if len(images) != 1 or "_Eq_" in images[0].name:
            names = ", ".join(path.name for path in images) or f"none; dcm2niix said: {said}"
            raise _strange(series, "one image", f"{len(images)} ({names})")
        images[0].replace(out)
    finally:
        shutil.rmtree(source)
        shutil.rmtree(made)
    _check_grid(stack, read_volume(out, case=series.name))
    return stack


def origin_of(place: Path, series: DicomSeries, others: Sequence[str]) -> Origin:
    """What stands for a converted file in a manifest: the series it was made from.

    Args:
        place: Folder or archive of the examination.
        series: The series, whose files are there.
        others: Names of the series that were left out.
    """
    return Origin(
        file=visible(place),
        name=series.name,
        uid=series.uid,
        number=series.number,
        description=series.description,
        images=len(series.slices),
        sha256=sha256_of(*sorted({one.path for one in series.slices})),
        others=tuple(others),
    )


def moves_to_dicom(affine_ras: NDArray[np.float64], stack: Stack, case: str) -> NDArray[np.int64]:
    """The voxels' way home: index (i j k) of a NIfTI grid to (column, row, slice), a signed permutation (4 x 4).

    Converters flip rows and may permute axes, so no order is taken for granted:
    M = inv(diag(-1, -1, 1, 1) A_dicom) A_nifti.

    Raises:
        InputError: The grids are not the same voxels, to within 1e-3.
    """
    move = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ stack.affine_lps) @ affine_ras
    whole = np.rint(move)
    corner = whole[:3, :3]
    permutes = (np.abs(corner).sum(0) == 1).all() and (np.abs(corner).sum(1) == 1).all()
    if not permutes or np.abs(move - whole).max() > VOXEL_TOLERANCE:
        away = float(np.abs(move - whole).max())
        raise InputError(
            case=case,
            expected=f"the voxels of {stack.series.name} within {VOXEL_TOLERANCE:g} of a voxel",
            found=f"another grid (off by {away:.3g})" if away > VOXEL_TOLERANCE else "another grid",
            mend="segment the converted series on its own grid; where conversion itself failed, the positions in the "
            "headers are rounded or uneven: export the original images of the scanner",
        )
    return whole.astype(np.int64)


def _lay_out(stack: Stack, folder: Path) -> None:
    """The images of a stack as classic files, in its order.

    Raises:
        InputError: The pixels of a frame are missing.
    """
    frames: dict[Path, dict[int, int]] = {}
    for index, (path, frame) in enumerate(zip(stack.files, stack.frames, strict=True)):
        if frame is None:
            shutil.copyfile(path, _place(folder, index))
        else:
            frames.setdefault(path, {})[frame] = index
    for path, places in frames.items():
        try:
            _write_frames(path, places, folder)
        except (ValueError, IndexError, AttributeError, KeyError) as error:
            raise InputError(
                case=f"{stack.series.name}: {path.name}",
                expected="a whole enhanced DICOM object, with pixels for each of its frames",
                found=f"one that cannot be taken apart ({type(error).__name__}: {error})",
                mend="export or copy the file again, or export the series as classic MR images",
            ) from error


def _place(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.dcm"


def _write_frames(path: Path, places: Mapping[int, int], folder: Path) -> None:
    """Write some frames of an enhanced object as classic images; compressed pixels stay compressed.

    Args:
        path: The object.
        places: Frame, counted from 0 -> its place in the stack, which numbers the image.
        folder: Where the images go.
    """
    pydicom = need("pydicom")
    image = pydicom.dcmread(path, force=True)
    syntax = image.file_meta.TransferSyntaxUID
    headers, pixels = list(frame_headers(image)), _pixels(image)
    for frame, index in places.items():
        classic, header = pydicom.Dataset(), headers[frame]
        for keyword in _KEPT:
            value = header.get(keyword, image.get(keyword))
            if value is not None:
                setattr(classic, keyword, value)
        classic.SOPClassUID = pydicom.uid.MRImageStorage
        classic.SOPInstanceUID = pydicom.uid.generate_uid()
        classic.Modality, classic.InstanceNumber = "MR", index + 1
        classic.file_meta = pydicom.dataset.FileMetaDataset()
        classic.file_meta.TransferSyntaxUID = syntax
        classic.PixelData = pixels[frame]
        classic["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
        pydicom.dcmwrite(_place(folder, index), classic, enforce_file_format=True)


def _pixels(image: Any) -> list[bytes]:
    """The bytes of every frame, encapsulated where they are compressed."""
    count = int(image.get("NumberOfFrames", 1) or 1)
    if image.file_meta.TransferSyntaxUID.is_compressed:
        encaps = need("pydicom.encaps")
        return [encaps.encapsulate([one]) for one in encaps.generate_frames(image.PixelData, number_of_frames=count)]
    size = int(image.Rows) * int(image.Columns) * int(image.get("SamplesPerPixel", 1)) * int(image.BitsAllocated) // 8
    return [image.PixelData[start : start + size] for start in range(0, count * size, size)]


def _run_dcm2niix(source: Path, made: Path) -> str:
    program = need("dcm2niix").bin
    words = [program, "-b", "y", "-ba", "y", "-z", "y", "-f", "image", "-o", made, source]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace", check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1] if lines else f"nothing (exit code {done.returncode})"


def _check_pixels(stack: Stack) -> None:
    """Uncompressed pixels have to be all there: a file cut short still has a good header."""
    pydicom = need("pydicom")
    for path in dict.fromkeys(stack.files):
        try:
            with warnings.catch_warnings():  # what pydicom would say of damage is an error of ours, in one line
                warnings.simplefilter("ignore")
                image = pydicom.dcmread(path, force=True)
                data = image.get("PixelData")
            syntax = image.file_meta.get("TransferSyntaxUID")
            compressed = syntax is not None and syntax.is_compressed
            count = int(image.get("NumberOfFrames", 1) or 1)
            area = int(image.get("Rows", 0)) * int(image.get("Columns", 0))  # all is lost with compressed pixels
            due = count * area * int(image.get("BitsAllocated", 16)) // 8
            whole = data is not None and (compressed or len(data) >= due)
            found = "pixels that end too early"
        except Exception as error:  # pydicom raises a dozen kinds on damaged bytes
            whole, found = False, f"one that cannot be read ({type(error).__name__}: {error})"
        if not whole:
            raise InputError(
                case=f"{stack.series.name}: {path.name}",
                expected="a whole DICOM image",
                found=found,
                mend="export or copy the file again",
            )


def _check_grid(stack: Stack, volume: Volume) -> None:
    move = np.abs(moves_to_dicom(volume.affine, stack, stack.series.name))
    shape = tuple((move[:3, :3] @ np.array(volume.array.shape)).tolist())
    if shape != stack.shape:
        raise _strange(stack.series, f"columns, rows, slices {stack.shape}", f"{shape}")


def _strange(series: DicomSeries, expected: str, found: str) -> InputError:
    return InputError(
        case=series.name,
        expected=f"{expected} from dcm2niix",
        found=found,
        mend="convert the series yourself and name the NIfTI file, or name another series",
    )
