"""Which files of a folder are DICOM, also where their beginning is lost: a slice must not go missing without a word.

Most files have a mark behind 128 bytes of nothing. Some have neither, and begin with their first element; and where a
copy was interrupted a file is empty, short or full of zeros. The latter two kinds are looked for beside files that have
the mark, and in other folders of the same examination, among names that promise nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mindgap.data.folders import DICOM_HEAD, DICOM_SUFFIXES, is_dicom
from mindgap.errors import InputError

_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")
"""What a file without the mark begins with, in either byte order."""
CONTENTS = "DICOMDIR"
"""The table of contents of a disc, in whichever case."""


@dataclass(frozen=True)
class Sorted:
    """Files of a folder.

    Attributes:
        dicom: Those to read.
        unknown: Those beside them that are none, under names that promise nothing else.
    """

    dicom: tuple[Path, ...]
    unknown: tuple[Path, ...]


def sort_out(files: Iterable[Path], folder: Path) -> Sorted:
    """Say of each file whether it is DICOM.

    Args:
        files: Below a folder.
        folder: For messages.

    Raises:
        InputError: One beside DICOM files is empty, too short, or may not be read.
    """
    files = tuple(files)
    dicom = [path for path in files if is_dicom(path)]
    known, unknown = set(dicom), list[Path]()
    places = {path.parent for path in dicom if path.name.upper() != CONTENTS}
    if places:
        places |= _unmarked_series(files, places)
    for path in files:
        if path not in known and path.parent in places and not _promises_other(path):
            (dicom if _begins_with_element(path, folder) else unknown).append(path)
    return Sorted(tuple(sorted(dicom)), tuple(unknown))


def _unmarked_series(files: Iterable[Path], marked: Collection[Path]) -> set[Path]:
    """Folders beside those with a mark that look like a series: a copy is interrupted folder by folder.

    They hold nothing of another kind, and files that begin with an element, or several of which none begins with
    anything.
    """
    there: dict[Path, list[Path]] = {}
    for path in files:
        if path.parent not in marked and path.name.upper() != CONTENTS:
            there.setdefault(path.parent, []).append(path)
    found = set[Path]()
    for place, inside in there.items():
        heads = [] if any(map(_promises_other, inside)) else [_head_of(path) for path in inside]
        lost = len(heads) > 1 and not any(any(head) for head in heads)
        if lost or any(len(head) == DICOM_HEAD and head[:2] in _FIRST_GROUPS for head in heads):
            found.add(place)
    return found


def _head_of(path: Path) -> bytes:
    """The first bytes; none where the file may not be read, which is said later or has no say."""
    with suppress(OSError), path.open("rb") as handle:
        return handle.read(DICOM_HEAD)
    return b""


def unreadable(path: Path, folder: Path, why: str) -> InputError:
    """What is said of a file that is or may be DICOM and cannot be read."""
    return InputError(
        case=str(path.relative_to(folder)),
        expected="a whole DICOM file",
        found=f"one that cannot be read ({why})",
        mend="export or copy the file again, or take it out of the folder if it is no DICOM",
    )


def _promises_other(path: Path) -> bool:
    """Whether a suffix is that of another kind of file; numbers at the end of a name are none ("1.2.840.7")."""
    suffix = path.suffix.lower()
    return re.fullmatch(r"\.[a-z][a-z0-9]*", suffix) is not None and suffix not in (*DICOM_SUFFIXES, ".mr")


def _begins_with_element(path: Path, folder: Path) -> bool:
    try:
        with path.open("rb") as handle:
            head = handle.read(DICOM_HEAD)
    except OSError as error:
        raise unreadable(path, folder, error.strerror or str(error)) from error
    if len(head) < DICOM_HEAD:
        raise unreadable(path, folder, f"{len(head)} bytes beside DICOM files, as an interrupted copy leaves")
    if not any(head):
        raise unreadable(path, folder, "it begins with zeros and nothing else, as an interrupted copy does")
    return head[:2] in _FIRST_GROUPS
