"""NIfTI: the one door by which images come in (masks go out by `masks.py`)."""

from __future__ import annotations

import io
import math
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from mindgap.data.volume import Volume, spacing_of
from mindgap.errors import InputError
from mindgap.files import write_aside

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_KINDS = {
    size.to_bytes(4, order): kind
    for size, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image))
    for order in ("little", "big")
}
"""By the first four bytes of a file: the size of its header, in its byte order."""
_ISAL_ERROR: Any = igzip_lib.IsalError
READ_ERRORS = (
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    _ISAL_ERROR,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    nib.wrapstruct.WrapStructError,
)
_HERE = threading.local()
nib.imageglobals.logger.addFilter(lambda record: not getattr(_HERE, "opening", False))


def is_nifti(path: Path) -> bool:
    """Whether a file name is that of a NIfTI file, in whichever case (hidden files are not)."""
    return path.name.lower().endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def stem_of(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    for suffix in NIFTI_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def read_volume(path: Path, *, case: str, channel: int | None = None) -> Volume:
    """Read one 3-D image.

    Args:
        path: A .nii or .nii.gz file.
        case: Name for error messages.
        channel: Index on the fourth axis of a 4-D file (MSD); None where 3-D is due.

    Raises:
        InputError: The file is missing, truncated, no NIfTI, not 3-D, or its geometry is impossible.
    """
    return volume_from_image(_open(path, case), path, case=case, channel=channel)


def volume_from_image(image: Any, path: Path, *, case: str, channel: int | None = None) -> Volume:
    """Take over an image that nibabel holds.

    Args:
        image: A nibabel image.
        path: Where it came from, or a name for it.
        case: Name for error messages.
        channel: As in :func:`read_volume`.

    Raises:
        InputError: As in :func:`read_volume`, but for the file.
    """
    if channel is None and len(image.shape) == 4 and image.shape[3] == 1:
        channel = 0
    _check_shape(image.shape, channel, f"{case}: {path.name}")
    if image.affine is None:
        raise InputError(
            case=f"{case}: {path.name}",
            expected="an affine (voxel index to scanner mm)",
            found="none",
            mend="give the affine of the scan: nibabel.Nifti1Image(array, affine)",
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    edges = spacing_of(affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * np.prod(edges):
        raise InputError(
            case=f"{case}: {path.name}",
            expected="voxels of positive size",
            found=f"affine with voxel edges {edges} mm",
            mend="repair the header (sform/qform and pixdim) or convert the DICOM series again",
        )
    try:
        data = np.asanyarray(image.dataobj if channel is None else image.dataobj[..., channel])
        array = _numbers(data, f"{case}: {path.name}")
    except MemoryError as error:
        raise _too_large(path, case, image.shape) from error
    except READ_ERRORS as error:
        raise _unreadable(path, case, error) from error
    return Volume(array, affine, path, image.header.copy())


def _numbers(data: NDArray[Any], case: str) -> NDArray[np.float32]:
    if data.dtype.fields is not None or np.iscomplexobj(data):
        raise InputError(
            case=case,
            expected="one number per voxel",
            found=f"voxels of type {data.dtype}",
            mend="convert the colour or complex image to grey values",
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which a case refuses by name
        return np.asarray(data, dtype=np.float32)


def _check_shape(shape: tuple[int, ...], channel: int | None, case: str) -> None:
    if len(shape) != (3 if channel is None else 4):
        raise InputError(
            case=case,
            expected="a 3-D image" if channel is None else "a 4-D image",
            found=f"shape {shape}",
            mend="give one 3-D file per sequence (4-D: an MSD tree, or FILE#CHANNEL in a manifest)",
        )
    if min(shape[:3]) < 2:
        raise InputError(
            case=case,
            expected="a 3-D image of more than one slice",
            found=f"shape {shape}",
            mend="stack the slices of the series into one file (dcm2niix does that)",
        )
    if channel is not None and not 0 <= channel < shape[3]:
        raise InputError(
            case=case,
            expected=f"a channel {channel} on the fourth axis",
            found=f"{shape[3]} channels, counted from 0",
            mend="correct the channel, or give the file that holds all four sequences",
        )


def write_volume(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an image atomically; the affine goes into sform and qform (scanner coordinates, mm)."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with write_aside(path) as aside:
        nib.save(image, aside)


@contextmanager
def unheard() -> Iterator[None]:
    """What nibabel would say of a header in its own words: what matters of it is an error of ours, in one line."""
    _HERE.opening = True
    try:
        yield
    finally:
        _HERE.opening = False


def _open(path: Path, case: str) -> Any:
    if not path.is_file():
        raise InputError(case=case, expected=f"a file at {path}", found="none", mend="correct the path")
    try:
        with unheard():
            image: Any = _load(path)
            edges = _stored_edges(image, path)
            _check_length(image)
    except MemoryError as error:
        raise _too_large(path, case, ()) from error
    except READ_ERRORS as error:
        raise _unreadable(path, case, error) from error
    if 0 in edges:
        raise InputError(
            case=f"{case}: {path.name}",
            expected="voxels of positive size",
            found=f"voxel edges {edges} in the header, and no sform",
            mend="repair the header (sform/qform and pixdim) or convert the DICOM series again",
        )
    return image


def _stored_edges(image: Any, path: Path) -> tuple[float, ...]:
    """Voxel edges as the file has them where they decide its geometry: nibabel takes 1 for a 0 without a word."""
    if not isinstance(image, nib.Nifti1Pair) or image.header["sform_code"] > 0:
        return ()
    place = image.file_map["header"] if "header" in image.file_map else image.file_map["image"]
    with nib.openers.ImageOpener(str(place.filename or path), "rb") as handle:
        header = type(image).header_class.from_fileobj(handle, check=False)
    return tuple(header["pixdim"][1 : 1 + min(3, header["dim"][0])].tolist())


def _check_length(image: Any) -> None:
    """Hold the shape in a header against the bytes behind it, before memory is asked for so many voxels.

    Raises:
        EOFError: They are fewer.
    """
    place = image.file_map.get("image") if isinstance(image, nib.Nifti1Pair) else None
    proxy = image.dataobj
    if place is None or not nib.is_proxy(proxy):
        return
    if place.fileobj is not None:
        length = place.fileobj.seek(0, io.SEEK_END)
    elif (name := str(place.filename)).lower().endswith((".nii", ".img")):
        length = Path(name).stat().st_size
    else:  # compressed in a way that only nibabel reads
        return
    due = proxy.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if length < due:
        raise EOFError(f"{length:,} bytes, and {due:,} are due by its header, whose shape is {image.shape}")


def _load(path: Path) -> Any:
    """Inflate the whole file at once with ISA-L, which takes half the time; other formats in .gz go nibabel's way.

    nibabel looks for the lower-case name of ``a.Nii``, so that its bytes are read here.
    """
    if path.suffix.lower() == ".gz":
        content = igzip.decompress(path.read_bytes())
    elif path.suffix != ".nii" and path.suffix.lower() == ".nii":
        content = path.read_bytes()
    else:
        return nib.load(path, mmap=False)  # a mapped file that is written meanwhile ends the process
    kind = _KINDS.get(content[:4])
    return nib.load(path, mmap=False) if kind is None else kind.from_bytes(content)


def _too_large(path: Path, case: str, shape: tuple[int, ...]) -> InputError:
    return InputError(
        case=f"{case}: {path.name}",
        expected="an image that fits into memory",
        found=f"shape {shape}, which does not" if shape else "one that does not, unpacked",
        mend="look at its header, crop or resample the image, or use a machine with more memory",
    )


def _unreadable(path: Path, case: str, error: Exception) -> InputError:
    if isinstance(error, PermissionError):
        return InputError(
            case=f"{case}: {path.name}",
            expected="a file that may be read",
            found="permission denied",
            mend="ask for the right to read it, or leave this sequence out",
        )
    return InputError(
        case=f"{case}: {path.name}",
        expected="a whole NIfTI file",
        found=f"one that cannot be read ({type(error).__name__}: {str(error) or 'truncated'})",
        mend="copy or convert the file again; it is probably truncated",
    )
