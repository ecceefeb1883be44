"""A folder or .zip of DICOM files becomes series: grouped by what their headers say, never by file names.

One examination of one patient, and MR. What cannot be used whole is refused here; which series is which sequence is
decided in :mod:`mindgap.data.dicom_sequence`, where its slices lie in :mod:`mindgap.data.dicom_stack`.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from mindgap.data.dicom_files import sort_out, unreadable
from mindgap.data.dicom_frames import frame_headers, has_frames
from mindgap.data.folders import closed_error, files_below, is_dicom, is_lost, refuse_lost
from mindgap.data.masks import comes_from_mask, is_own_probabilities
from mindgap.data.nifti import is_nifti
from mindgap.errors import InputError, SettingError
from mindgap.progress import Say, mute

_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"  # DICOMDIR, the table of contents of a disc
ABOUT_IMAGES = {"SEG", "SR", "PR", "KO", "RTSTRUCT", "REG", "DOC", "RWV", "ANN", "FID"}
"""Modalities of objects that accompany images without being any: they are passed over."""


@dataclass(frozen=True)
class Slice:
    """One image of a series, as far as its header tells.

    Attributes:
        path: The file.
        position_mm: Centre of the first voxel (LPS), or None where the header does not say.
        orientation: Direction of a row, then of a column (LPS), or None.
        spacing_mm: Distance of rows, then of columns, or None.
        size: Rows and columns.
        frames: Images in this file that nothing tells apart; more than one cannot be used.
        frame: Which frame of an enhanced (multi-frame) object it is, counted from 0; None for a file of one image.
    """

    path: Path
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    size: tuple[int, int]
    frames: int = 1
    frame: int | None = None


@dataclass(frozen=True)
class DicomSeries:
    """One series, as its first header describes it; times are those of the header, in ms.

    Attributes:
        uid: SeriesInstanceUID.
        number: SeriesNumber; None where the header has none.
        description: SeriesDescription.
        protocol: ProtocolName.
        sequence_name: SequenceName (or PulseSequenceName).
        scanning: ScanningSequence, such as SE, IR, GR, EP.
        image_type: ImageType, such as ORIGINAL, PRIMARY, M.
        contrast: ContrastBolusAgent, "" where none is named.
        echo_ms: EchoTime.
        echoes_ms: Every EchoTime among its images, the shortest first.
        repetition_ms: RepetitionTime.
        inversion_ms: InversionTime.
        diffusion: Whether a diffusion weighting (b above 0) is given.
        slices: Its images, in no order.
        frame_of_reference: FrameOfReferenceUID, "" where there is none.
        announced: ImagesInAcquisition; None where the header does not say.
    """

    uid: str
    number: int | None
    description: str
    protocol: str
    sequence_name: str
    scanning: tuple[str, ...]
    image_type: tuple[str, ...]
    contrast: str
    echo_ms: float | None
    repetition_ms: float | None
    inversion_ms: float | None
    diffusion: bool
    slices: tuple[Slice, ...]
    echoes_ms: tuple[float, ...] = ()
    frame_of_reference: str = ""
    announced: int | None = None

    @property
    def name(self) -> str:
        """What a person calls it: its number and description."""
        number = f"series {self.number}" if self.number is not None else f"series ...{self.uid[-12:]}"
        return f"{number} ({self.description})" if self.description else number


def need(package: str) -> Any:
    """Import a package that only DICOM needs.

    Raises:
        SettingError: It is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise SettingError(f"DICOM needs the package {package}: pip install 'mindgap[dicom]'") from error


def holds_dicom(path: Path) -> bool:
    """Whether a path is a .zip, or a folder that has a DICOM file and no NIfTI image at any depth."""
    if path.is_file():
        return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)
    # What was written among the DICOM files before does not make it a folder of NIfTI.
    if not path.is_dir():
        return False
    found = False
    for entry in files_below(path, []):
        if is_nifti(entry) and not (comes_from_mask(entry) or is_own_probabilities(entry)):
            return False
        found = found or is_dicom(entry)
    return found


@contextmanager
def dicom_folder(path: Path) -> Iterator[Path]:
    """The folder itself, or that of an unpacked .zip, which is removed at the end.

    Raises:
        InputError: The archive is damaged, encrypted, too large for the disk, or would write outside its folder.
    """
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mindgap-dicom-") as name:
        folder = Path(name) / (path.stem or "case")  # messages and the case are named after the archive
        folder.mkdir()
        try:
            _unpack(path, folder)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, RuntimeError, EOFError, OSError) as error:
            raise InputError(
                case=path.name,
                expected="a whole .zip without a password",
                found=f"one that cannot be unpacked ({str(error) or type(error).__name__})",
                mend="export or copy it again, or unpack it and name the folder",
            ) from error
        yield folder


def read_series(folder: Path, say: Say = mute) -> tuple[DicomSeries, ...]:
    """Every MR series below a folder, sorted by number; only headers are read.

    Args:
        folder: Any nesting, any file names; files that are no DICOM are passed over.
        say: Takes a line about those of them whose names do not tell what they are.

    Raises:
        InputError: No DICOM, a file or folder that cannot be read, a link to nothing, a file that is empty or was cut
            short, images other than MR, or more than one patient or examination.
        SettingError: pydicom is not installed.
    """
    closed: list[Path] = []
    there = list(files_below(folder, closed))
    refuse_lost(folder.name, [path for path in there if is_lost(path)])
    if closed:
        raise closed_error(f"{folder.name}: {', '.join(str(path.relative_to(folder)) for path in closed)}")
    files = sort_out([path for path in there if path.is_file()], folder)
    headers = [(path, _read_header(path, folder)) for path in files.dicom]
    images = [(path, header) for path, header in headers if _is_image(header)]
    if not images:
        raise InputError(
            case=folder.name,
            expected="MR images in DICOM",
            found=f"{len(headers)} DICOM files without images" if headers else "no DICOM file",
            mend="name the folder (or .zip) with the series of one examination",
        )
    if files.unknown:
        names = [str(path.relative_to(folder)) for path in files.unknown]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        say(f"passed over, being no DICOM: {', '.join(names[:4])}{more}")
    _check_modality(folder, images)
    _check_patient(folder, [header for _, header in images])
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for path, header in images:
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            raise unreadable(path, folder, "it names no SeriesInstanceUID")
        groups.setdefault(uid, []).append((path, header))
    series = [_series(uid, members, folder) for uid, members in groups.items()]
    return tuple(sorted(series, key=lambda one: (one.number is None, one.number or 0, one.uid)))


def _unpack(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        for member in members:
            name = PurePosixPath(member.filename.replace("\\", "/"))
            link = stat.S_ISLNK(member.external_attr >> 16)
            if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]) or link:
                raise InputError(
                    case=path.name,
                    expected="files inside the archive's own folder",
                    found="a link" if link else f"the name {member.filename}",
                    mend="do not trust this archive; export it again",
                )
        needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                case=path.name,
                expected=f"at most {free / 2**30:.1f} GiB, the room in {folder.parent.parent}",
                found=f"{needed / 2**30:.1f} GiB unpacked",
                mend="make room, or set TMPDIR to a larger disk",
            )
        for member in members:
            archive.extract(member, folder)


def _read_header(path: Path, folder: Path) -> Any:
    pydicom = need("pydicom")
    with _reading(path, folder):
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        known = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    if not known:
        raise unreadable(path, folder, "it does not say what it is (no SOPClassUID)")
    return header


@contextmanager
def _reading(path: Path, folder: Path) -> Iterator[None]:
    """Damaged bytes and impossible values, for which pydicom has a dozen errors and warnings, become one error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise unreadable(path, folder, f"{type(error).__name__}: {error}") from error


def _is_image(header: Any) -> bool:
    kind = header.get("SOPClassUID") or getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    return kind != _DIRECTORY_CLASS and str(header.get("Modality", "")) not in ABOUT_IMAGES


def _check_modality(folder: Path, images: list[tuple[Path, Any]]) -> None:
    others = sorted({str(header.get("Modality", "")) or "none" for _, header in images} - {"MR"})
    if others:
        path = next(path for path, header in images if header.get("Modality", "") != "MR")
        raise InputError(
            case=folder.name,
            expected="MR images only",
            found=f"modality {', '.join(others)} ({path.relative_to(folder)})",
            mend="name a folder with the MR series alone",
        )


def _check_patient(folder: Path, headers: list[Any]) -> None:
    """By count alone: no name, no number of a patient goes to a screen or a log."""
    for key, what in (("PatientID", "patient"), ("StudyInstanceUID", "examination")):
        count = len({str(header.get(key, "") or "") for header in headers})
        if count > 1:
            raise InputError(
                case=folder.name,
                expected=f"one {what}",
                found=f"{count} (by {key})",
                mend=f"name the folder of one {what}; `mindgap convert` takes a folder of many folders",
            )


def _series(uid: str, members: list[tuple[Path, Any]], folder: Path) -> DicomSeries:
    slices, diffusion, first, echoes = [], False, None, set[float]()
    for path, header in members:
        with _reading(path, folder):
            several = has_frames(header)
            for frame, one in enumerate(frame_headers(header) if several else [header]):
                slices.append(_slice(path, one, frame if several else None))
                diffusion = diffusion or (_number(one, "DiffusionBValue") or 0.0) > 0
                echoes |= {round(echo, 2) for echo in [_number(one, "EchoTime")] if echo}
                first = one if first is None else first
    path, header = members[0][0], first
    with _reading(path, folder):
        number, announced = _number(header, "SeriesNumber"), _number(header, "ImagesInAcquisition")
        return DicomSeries(
            uid=uid,
            number=None if number is None else int(number),
            description=_text(header, "SeriesDescription"),
            protocol=_text(header, "ProtocolName"),
            sequence_name=_text(header, "SequenceName") or _text(header, "PulseSequenceName"),
            scanning=_words(header, "ScanningSequence"),
            image_type=_words(header, "ImageType"),
            contrast=_text(header, "ContrastBolusAgent"),
            echo_ms=_number(header, "EchoTime"),
            repetition_ms=_number(header, "RepetitionTime"),
            inversion_ms=_number(header, "InversionTime"),
            diffusion=diffusion,
            slices=tuple(slices),
            echoes_ms=tuple(sorted(echoes)),
            frame_of_reference=_text(header, "FrameOfReferenceUID"),
            announced=None if announced is None else int(announced),
        )


def _slice(path: Path, header: Any, frame: int | None) -> Slice:
    return Slice(
        path=path,
        position_mm=_numbers(header, "ImagePositionPatient", 3),
        orientation=_numbers(header, "ImageOrientationPatient", 6),
        spacing_mm=_numbers(header, "PixelSpacing", 2),
        size=(int(header.get("Rows", 0) or 0), int(header.get("Columns", 0) or 0)),
        frames=int(header.get("NumberOfFrames", 1) or 1),
        frame=frame,
    )


def _text(header: Any, key: str) -> str:
    return " ".join(str(header.get(key, "") or "").split())


def _words(header: Any, key: str) -> tuple[str, ...]:
    value = header.get(key) or ()
    return (value,) if isinstance(value, str) else tuple(str(word) for word in value)


def _number(header: Any, key: str) -> float | None:
    value = header.get(key)
    return None if value is None or value == "" else float(value)


def _numbers(header: Any, key: str, count: int) -> tuple[float, ...] | None:
    value = header.get(key)
    return None if value is None or len(value) != count else tuple(float(number) for number in value)
