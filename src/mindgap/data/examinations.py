"""Where the examinations of a DICOM export lie, whichever way it is nested: by the study that its headers name.

An examination is a folder whose series are of one study, or a .zip. Where a folder holds several studies, each in
folders of its own, each of these is one; where their series lie beside each other, a person has to part them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from mindgap.data.dicom import need
from mindgap.data.folders import closed_error, is_dicom, is_lost, reason_of, visible
from mindgap.errors import InputError

CONTENTS = "DICOMDIR"
"""The table of contents of a disc."""
_OTHER_ARCHIVES = (".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz")


@dataclass(frozen=True)
class Places:
    """What a search has found.

    Attributes:
        examinations: Name -> folder or archive.
        failed: Name -> why an entry that may be an examination is none.
        others: Names of folders without DICOM.
    """

    examinations: dict[str, Path]
    failed: dict[str, str]
    others: tuple[str, ...]


class _Folder:
    """A folder, what lies in it, and of which studies that is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def entries(self) -> list[Path]:
        """Not hidden, in order."""
        return sorted(entry for entry in self.path.iterdir() if not entry.name.startswith("."))

    @cached_property
    def own(self) -> str | None:
        """The study of the DICOM files directly in it; None where there are none, "" where they do not tell."""
        studies = map(_study_of, filter(_is_image, self.entries))
        first = next(studies, None)
        return first or next(filter(None, studies), first)

    @cached_property
    def inside(self) -> list[_Folder]:
        """Folders and archives directly in it that hold DICOM at any depth."""
        found = [_Folder(entry) for entry in self.entries if entry.is_dir() and not _is_closed(entry)]
        return [one for one in found if one.studies] + [_Archive(path) for path in self.entries if is_archive(path)]

    @cached_property
    def studies(self) -> frozenset[str]:
        """All studies at any depth, one file of each folder being looked at; {""} where none tells."""
        if self.path.resolve() in {parent.resolve() for parent in self.path.parents}:  # a link that leads up
            return frozenset()
        own = frozenset() if self.own is None else frozenset({self.own})
        all_ = own.union(*(one.studies for one in self.inside))
        return all_ - {""} or all_

    @property
    def place(self) -> Path:
        """Its path, or that of the archive that is all it holds."""
        alone = self.inside[0].place if self.own is None and len(self.inside) == 1 else self.path
        return alone if is_archive(alone) else self.path

    def parted(self) -> Iterator[tuple[Path, str]]:
        """The examinations in it, and with the reason what is none or cannot be told apart."""
        if len(self.studies) < 2:
            yield self.place, ""
            return
        if self.own is not None:
            yield self.path, f"series of {len(self.studies)} examinations side by side: give each one folder of its own"
            return
        count = Counter(study for one in self.inside for study in one.studies if study)
        for one in self.inside:
            shared = {study for study in one.studies if count[study] > 1}
            if shared:
                others = [other.path.name for other in self.inside if other is not one and other.studies & shared]
                yield (
                    one.path,
                    f"its study lies in {', '.join(others)} too: give each one folder of its own",
                )
            else:
                yield from one.lost() if len(one.studies) > 1 else ()
                yield from one.parted()

    def lost(self) -> Iterator[tuple[Path, str]]:
        """What lies directly in it, may be an examination, and cannot be looked into."""
        for entry in self.entries:
            if is_lost(entry):
                yield entry, "it is a link to nothing; fetch what it stands for, or remove it"
            elif entry.is_dir() and _is_closed(entry):
                yield entry, reason_of(closed_error(entry.name))
            elif entry.suffix.lower() in _OTHER_ARCHIVES and not entry.is_dir():
                yield entry, "it is an archive, but no .zip; unpack it"


class _Archive(_Folder):
    """A .zip, taken for one examination: it is unpacked when it is read."""

    own = None
    inside: list[_Folder] = []  # noqa: RUF012

    @cached_property
    def studies(self) -> frozenset[str]:
        """A mark of its own."""
        return frozenset({f"archive {self.path}"})


def is_archive(path: Path) -> bool:
    """Whether a file is a .zip by its name."""
    return path.suffix.lower() == ".zip" and path.is_file()


def find_examinations(root: Path) -> Places:
    """Find the folders and archives that hold an examination each.

    Args:
        root: An export of any nesting (PATIENT/SERIES, PATIENT/STUDY/SERIES, a disc), or one examination. One file of
            each folder is looked at.

    Raises:
        InputError: There is none, or it may not be read.
    """
    if is_archive(root):
        return Places({_plain(root.stem): root}, {}, ())
    if not root.is_dir():
        raise _nothing(root, "no DICOM" if root.exists() else "nothing there")
    if _is_closed(root):
        raise closed_error(str(root))
    top = _Folder(root)
    failed: dict[str, str] = {}
    examinations: dict[str, Path] = {}
    for path, reason in chain(top.lost(), top.parted() if top.studies else ()):
        name = "" if reason else _name_of(path, top)
        if name in examinations:
            reason = f"{examinations[name].name} is called {name}, too: rename one of them"
        if reason:
            failed[str(path.relative_to(root))] = reason
        else:
            examinations[name] = path
    if not examinations and not failed:
        raise _nothing(root, "no DICOM")
    inside = {one.path for one in top.inside}
    others = tuple(entry.name for entry in top.entries if entry.is_dir() and entry not in inside)
    return Places(examinations, failed, tuple(name for name in others if name not in failed))


def _is_image(path: Path) -> bool:
    return path.is_file() and path.name.upper() != CONTENTS and is_dicom(path)


def _study_of(path: Path) -> str:
    pydicom = need("pydicom")
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"], force=True)
        return str(header.get("StudyInstanceUID", ""))
    except Exception:  # damaged, in one of the dozen ways of pydicom: said when the examination is read
        return ""


def _name_of(path: Path, top: _Folder) -> str:
    """The path below the root, without folders that hold nothing but the next one; P5_ST2 of P5/ST2.

    A single examination is called as its folder, or as the root where that is what holds its series.
    """
    if path == top.path:
        alone = top.own is None and len(top.inside) == 1 and not any(e.name.upper() == CONTENTS for e in top.entries)
        only = top.inside[0].path if alone else top.path
        return _plain(only.stem if is_archive(only) else visible(only).name)
    parts, here = list[str](), top
    for part in path.relative_to(top.path).parts:
        name = Path(part).stem if is_archive(here.path / part) else part
        parts += [name] if len(here.inside) > 1 else []
        here = next(one for one in here.inside if one.path.name == part)
    return _plain("_".join(parts) or (path.stem if is_archive(path) else path.name))


def _plain(name: str) -> str:
    """A name that every program can write: without spaces around it, bytes that are no UTF-8 as escapes."""
    return name.strip().encode("utf-8", "backslashreplace").decode("utf-8").replace("\\", "-") or "case"


def _is_closed(folder: Path) -> bool:
    return not os.access(folder, os.R_OK | os.X_OK)


def _nothing(root: Path, found: str) -> InputError:
    return InputError(
        case=str(root),
        expected="a folder with DICOM examinations, in folders or .zip files of their own",
        found=found,
        mend="name the folder above those of the examinations",
    )
