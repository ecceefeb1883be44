"""Where the examinations of a DICOM export lie, whichever way it is nested: by the study that its headers name.

An examination is a folder, or a .zip, whose series are of one study. Where a folder holds several studies, each in a
folder of its own, each of these is one; where their series lie beside each other, a person has to part them.
"""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from mindgap.data.dicom import ABOUT_IMAGES, need
from mindgap.data.dicom_files import CONTENTS
from mindgap.data.folders import DICOM_HEAD, closed_error, has_dicom_mark, is_dicom, is_lost, is_zip, reason_of, visible
from mindgap.errors import InputError

_OTHER_ARCHIVES = (".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz")


@dataclass
class Places:
    """What a search has found.

    Attributes:
        examinations: Name -> folder or archive.
        failed: Path below the root -> why what may be an examination is none.
        others: Paths below the root of folders and archives without DICOM.
    """

    examinations: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


class _Folder:
    """A folder, what lies in it, and of which studies that is.

    Args:
        path: The folder.
        been: Every place that was looked into before by its real path, so that links lead nowhere twice.
    """

    def __init__(self, path: Path, been: dict[str, _Folder]) -> None:
        self.path, self.been = path, been

    @cached_property
    def entries(self) -> list[Path]:
        """Not hidden, in order."""
        return sorted(entry for entry in self.path.iterdir() if not entry.name.startswith("."))

    @cached_property
    def own(self) -> str | None:
        """The study of the DICOM files directly in it; None where there are none, "" where they do not tell."""
        told = (study for study in map(_study_of, filter(_is_image, self.entries)) if study is not None)
        first = next(told, None)
        return first or next(filter(None, told), first)

    @cached_property
    def below(self) -> list[_Folder]:
        """Folders and archives directly in it; of several ways to one place the first."""
        found: list[_Folder] = []
        for entry in self.entries:
            kind = _Archive if is_zip(entry) else _Folder if _is_open(entry) else None
            real = os.path.realpath(entry)
            if kind is not None and real not in self.been:
                self.been[real] = kind(entry, self.been)
                found.append(self.been[real])
        return found

    @cached_property
    def inside(self) -> list[_Folder]:
        """Those of them that hold DICOM at any depth."""
        return [one for one in self.below if one.studies]

    @cached_property
    def studies(self) -> frozenset[str]:
        """All studies at any depth, one file of each folder being looked at; {""} where none tells."""
        own = frozenset() if self.own is None else frozenset({self.own})
        found = own.union(*(one.studies for one in self.inside))
        return found - {""} or found

    @property
    def place(self) -> Path:
        """Its path, or that of the archive that is all it holds."""
        alone = self.inside[0].place if self.own is None and len(self.inside) == 1 else self.path
        return alone if is_zip(alone) else self.path

    @property
    def is_one(self) -> bool:
        """Whether it is one examination: of one study, without archives beside other series."""
        return len(self.studies) == 1 and (is_zip(self.place) or not self.archived)

    @cached_property
    def archived(self) -> bool:
        """Whether archives with DICOM lie in it, at any depth."""
        return any(is_zip(one.path) or one.archived for one in self.inside)

    def lost(self) -> Iterator[tuple[Path, str]]:
        """What lies directly in it, may be an examination, and cannot be looked into."""
        for entry in self.entries:
            if is_lost(entry):
                yield entry, "it is a link to nothing; fetch what it stands for, or remove it"
            elif _is_folder(entry) and not _is_open(entry):
                yield entry, reason_of(closed_error(entry.name))
            elif entry.suffix.lower() in _OTHER_ARCHIVES and not _is_folder(entry):
                yield entry, "it is an archive, but no .zip; unpack it"


class _Archive(_Folder):
    """A .zip: one member of each of its folders is looked at where it lies."""

    entries: list[Path] = []  # noqa: RUF012
    own = None

    @cached_property
    def studies(self) -> frozenset[str]:
        """As of a folder; {""} where it cannot be read, which is said when it is unpacked."""
        found: dict[PurePosixPath, str] = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in sorted(archive.infolist(), key=lambda one: one.filename):
                    folder = PurePosixPath(member.filename).parent
                    study = None if member.is_dir() or found.get(folder) else _study_in(archive, member)
                    found |= {} if study is None else {folder: study}
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError):  # or encrypted
            return frozenset({""})
        return frozenset(found.values()) - {""} or frozenset(found.values())


def find_examinations(root: Path) -> Places:
    """Find the folders and archives that hold an examination each.

    Args:
        root: An export of any nesting (PATIENT/SERIES, PATIENT/STUDY/SERIES, a disc), or one examination. One file of
            each folder is looked at.

    Raises:
        InputError: There is none, or it may not be read.
    """
    found = Places()
    if is_zip(root):
        found.examinations[_plain(root.stem)] = root
        return found
    if not root.is_dir():
        raise _nothing(root, "no DICOM" if root.exists() else "nothing there")
    if not _is_open(root):
        raise closed_error(str(root))
    top = _Folder(root, {})
    top.been[os.path.realpath(root)] = top
    _part(top, top, found)
    if not found.examinations and not found.failed:
        raise _nothing(root, "no DICOM")
    return found


def _part(here: _Folder, top: _Folder, found: Places) -> None:
    """Sort what lies in a folder that is not an examination itself, or itself where it is one."""

    def name(path: Path) -> str:
        return str(path.relative_to(top.path))

    if here is top or not here.is_one:
        found.failed |= {name(path): reason for path, reason in here.lost()}
    if here.is_one:
        _add(here, top, found)
    elif not here.studies:
        found.others += [name(here.path)]
        for one in here.below:  # nothing, but for what is lost in it
            _part(one, top, found)
    elif isinstance(here, _Archive):
        found.failed[name(here.path)] = f"an archive of {len(here.studies)} examinations; unpack it"
    elif here.own is not None:
        found.failed[name(here.path)] = "series of several examinations, or copies; give each one folder of its own"
    else:
        count = Counter(study for one in here.inside for study in one.studies if study)
        for one in here.below:
            shared = {study for study in one.studies if count[study] > 1}
            if shared:
                others = [other.path.name for other in here.inside if other is not one and other.studies & shared]
                reason = f"its study lies in {', '.join(others)} too; give each one folder of its own"
                found.failed[name(one.path)] = reason
            else:
                _part(one, top, found)


def _add(here: _Folder, top: _Folder, found: Places) -> None:
    """Take a folder for one examination."""
    case_id = _name_of(here.place, top)
    same = [known for known in found.examinations if known.lower() == case_id.lower()]
    if same:
        reason = f"{found.examinations[same[0]].name} is called {same[0]}, too; rename one of them"
        found.failed[str(here.place.relative_to(top.path))] = reason
    else:
        found.examinations[case_id] = here.place
    if here is top:
        found.others += [one.path.name for one in here.below if not one.studies]


def _is_folder(entry: Path) -> bool:
    with suppress(OSError):  # a link into a folder that is closed to us
        return entry.is_dir()
    return True


def _is_open(entry: Path) -> bool:
    with suppress(OSError):
        return entry.is_dir() and os.access(entry, os.R_OK | os.X_OK)
    return False


def _is_image(path: Path) -> bool:
    with suppress(OSError):
        return path.is_file() and path.name.upper() != CONTENTS and is_dicom(path)
    return False


def _study_of(file: Any) -> str | None:
    """The study of an image; None for what only accompanies images, "" where it does not tell."""
    pydicom = need("pydicom")
    try:
        tags = ["StudyInstanceUID", "Modality"]
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
        return None if str(header.get("Modality", "")) in ABOUT_IMAGES else str(header.get("StudyInstanceUID", ""))
    except Exception:  # damaged, in one of the dozen ways of pydicom: said when the examination is read
        return ""


def _study_in(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str | None:
    """The same of a member of an archive; None for what is no DICOM, too."""
    if PurePosixPath(member.filename).name.upper() == CONTENTS:
        return None
    with archive.open(member) as file:
        if not has_dicom_mark(file.read(DICOM_HEAD)):
            return None
        file.seek(0)
        return _study_of(file)


def _name_of(path: Path, top: _Folder) -> str:
    """The path below the root, without folders that hold nothing but the next one; P5_ST2 of P5/ST2.

    A single examination is called as its folder, or as the root where that is what holds its series.
    """
    if path == top.path:
        alone = top.own is None and len(top.inside) == 1 and not any(e.name.upper() == CONTENTS for e in top.entries)
        return _plain(visible(top.inside[0].path if alone else top.path).name)
    parts, here = list[str](), top
    for part in path.relative_to(top.path).parts:
        name = Path(part).stem if is_zip(here.path / part) else part
        parts += [name] if len(here.inside) > 1 else []
        here = next(one for one in here.inside if one.path.name == part)
    return _plain("_".join(parts) or (path.stem if is_zip(path) else path.name))


def _plain(name: str) -> str:
    """A name that every program can write: without spaces around it, bytes that are no UTF-8 as escapes."""
    return name.strip().encode("utf-8", "backslashreplace").decode("utf-8").replace("\\", "-") or "case"


def _nothing(root: Path, found: str) -> InputError:
    return InputError(
        case=str(root),
        expected="a folder with DICOM examinations, in folders or .zip files of their own",
        found=found,
        mend="name the folder above those of the examinations",
    )
