"""What lies in the folders of a data set, by name alone: images, labels, links to nothing, folders closed to us."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from mindgap.data.nifti import is_nifti, stem_of
from mindgap.errors import InputError
from mindgap.runfiles import holds_masks
from mindgap.sequences import Sequence, read_filenames

MAX_DEPTH = 3
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
DICOM_HEAD = 132
"""Bytes before the first element of a DICOM file: 128 of nothing, and the mark."""
_MARK = b"DICM"


def visible(path: Path) -> Path:
    """A path from the root on, without ``.`` and ``..``, that follows no link: links may be there for pseudonyms.

    The folder a shell stands in is called as the shell calls it (``$PWD``), which remembers links, too.
    """
    here = Path(os.environ.get("PWD", ""))
    stands_there = here.is_absolute() and here.is_dir() and here.samefile(Path())
    return Path(os.path.normpath((here if stands_there else Path.cwd()) / path))


def nifti_files(folder: Path) -> list[Path]:
    """NIfTI files directly in a folder; hidden ones, such as the "._x" of macOS, do not count."""
    return sorted(path for path in folder.iterdir() if is_nifti(path) and path.is_file()) if folder.is_dir() else []


def lost_links(folder: Path) -> list[Path]:
    """Links in a folder that are named as NIfTI and point nowhere, such as files of DataLad that were not fetched."""
    return sorted(path for path in folder.iterdir() if is_nifti(path) and is_lost(path)) if folder.is_dir() else []


def sort_files(case_id: str, files: list[Path], *, label: bool) -> tuple[dict[Sequence | None, list[Path]], list[Path]]:
    """Images by sequence (None: T1 or T1ce, its name leaves open) and labels; files that are neither are left out."""
    labels = [path for path in files if is_label(path, case_id)]
    names = read_filenames([stem_of(path) for path in files if path not in labels], case_id)
    images: dict[Sequence | None, list[Path]] = {}
    for path in files:
        if path not in labels and stem_of(path) in names:
            images.setdefault(names[stem_of(path)].sequence, []).append(path)
    exact = [path for path in labels if stem_of(path).lower() in {f"{case_id}{mark}seg".lower() for mark in "_-"}]
    return images, (exact or labels) if label else []


def is_label(path: Path, case_id: str) -> bool:
    """Whether a file is a label by its name: by a word of its own ("_seg", "_Segm"), or the end of its last one.

    "GBMSEG-042_t1" is an image. The name of the case does not count, or every file of "seg_01" would be a label.
    """
    words = re.findall(r"[^_\-. ]+", stem_of(path).lower().removeprefix(case_id.lower()))
    ends = bool(words) and re.fullmatch(r".*seg(?:m\w*)?\d*", words[-1]) is not None
    return ends or any(re.fullmatch(r"seg(?:s|m\w*|label\w*)?\d*", word) for word in words)


def is_lost(path: Path) -> bool:
    """Whether a path is a link that points nowhere."""
    return path.is_symlink() and not path.exists()


def refuse_lost(case_id: str, links: Iterable[Path]) -> None:
    """Refuse a case with links that point nowhere: they would count as absent sequences without a word.

    Raises:
        InputError: There is one.
    """
    names = ", ".join(path.name for path in links)
    if names:
        raise InputError(
            case=case_id,
            expected="a file behind every link",
            found=f"{names} (a link to nothing)",
            mend="fetch it, for example with `datalad get`, or remove the link",
        )


def refuse_unclear(case_id: str, images: Iterable[Path]) -> None:
    """Refuse a case with names that may stand for T1 and T1ce, or for two sequences: a wrong guess goes unnoticed.

    Raises:
        InputError: There is one.
    """
    names = ", ".join(path.name for path in images)
    if names:
        raise InputError(
            case=case_id,
            expected="a name that tells its sequence",
            found=f"{names} (may be either)",
            mend="let it end in _t1, _t1ce, _t2 or _flair and name no other (in BIDS, contrast is ce-NAME), or list "
            "the files in a manifest",
        )


def closed_error(case_id: str) -> InputError:
    """What is said of a folder that may not be read."""
    return InputError(
        case=case_id,
        expected="a folder that may be read",
        found="permission denied",
        mend="ask for the right to read it, or leave it out",
    )


def reason_of(error: InputError) -> str:
    """Why a case is rejected, in a clause."""
    return f"{error.found} where {error.expected} is due; {error.mend}"


def subfolders(folder: Path, closed: set[Path], pattern: str = "*") -> list[Path]:
    """Folders in a folder that are not hidden, in order; what may not be read is added to ``closed``."""
    try:
        entries = sorted(path for path in folder.iterdir() if fnmatchcase(path.name, pattern))
    except PermissionError:
        closed.add(folder)
        return []
    if not os.access(folder, os.X_OK):  # may be listed, but not entered
        closed.add(folder)
        return []
    found = []
    for entry in entries:
        try:
            if entry.is_dir() and not entry.name.startswith("."):
                found.append(entry)
        except PermissionError:  # where a link leads; that of an image is refused with its case
            if not is_nifti(entry):
                closed.add(entry)
    return found


def overlooked(root: Path, seen: Iterable[Path]) -> dict[str, str]:
    """What lies directly in a folder of cases, looks like a patient and gave none, with what to do about it.

    Args:
        root: The folder of cases.
        seen: Folders that gave a case, or a reason why not.
    """
    found: dict[str, str] = {}
    known = {folder.relative_to(root).parts[0] for folder in seen if folder != root}
    for path in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        if path.name in known:
            continue
        if is_zip(path):
            found[path.name] = (
                "it is a .zip; segment it by itself, unpack it, or convert it where it holds DICOM (mindgap convert)"
            )
        elif path.is_dir() and os.access(path, os.R_OK | os.X_OK) and not holds_masks(path):
            reason = _why_overlooked(path)
            if reason:
                found[path.name] = reason
    return found


def _why_overlooked(folder: Path) -> str:
    """Why a folder gave no case; nothing of one that holds other things, such as scripts."""
    if not any(folder.iterdir()):
        return "its folder is empty"
    for place, _, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts) + 1
        for name in names:
            path = Path(place) / name
            if is_nifti(path) and not name.startswith(".") and depth > MAX_DEPTH:
                return f"its images lie {depth} levels down, and {MAX_DEPTH} are searched; name a folder nearer to them"
            if path.suffix.lower() in (".mgz", ".mha", ".nrrd", ".mnc"):
                return f"{name} is no NIfTI; convert it"
            if is_dicom(path):
                return "it holds DICOM and no NIfTI; segment it by itself, or convert it (mindgap convert)"
    return ""


def files_below(folder: Path, closed: list[Path]) -> Iterator[Path]:
    """Files at any depth that are not hidden, links included, in order; a linked folder counts as a folder, once.

    Args:
        folder: Where to look.
        closed: Takes folders that may not be read.
    """
    been = {os.path.realpath(place) for place in (folder, *visible(folder).parents)}  # a link may lead up
    unread = lambda error: closed.append(Path(error.filename))  # noqa: E731
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unread):
        names, folders[:] = sorted(name for name in folders if not name.startswith(".")), []
        for name in names:
            real = os.path.realpath(Path(place, name))
            if real not in been:
                been.add(real)
                folders.append(name)
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def is_dicom(path: Path) -> bool:
    """By a name that promises DICOM (which is then read or refused), or by the mark in its first bytes.

    A stray file that may not be read says nothing, and is none.
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with suppress(OSError), path.open("rb") as handle:
        return has_dicom_mark(handle.read(DICOM_HEAD))
    return False


def has_dicom_mark(head: bytes) -> bool:
    """Whether the first bytes of a file say that it is DICOM."""
    return head[DICOM_HEAD - len(_MARK) : DICOM_HEAD] == _MARK


def is_zip(path: Path) -> bool:
    """Whether a path is a .zip by its name."""
    return path.suffix.lower() == ".zip" and path.is_file()


def walk(root: Path, closed: set[Path], depth: int = 0) -> Iterator[Path]:
    """A folder and those below it, but not the masks that `mindgap segment` has left there; ``closed`` as above."""
    below = subfolders(root, closed)
    if root in closed:
        return
    yield root
    for folder in below if depth < MAX_DEPTH else ():
        try:
            own = holds_masks(folder)
        except PermissionError:
            closed.add(folder)
            continue
        if not own:
            yield from walk(folder, closed, depth + 1)
