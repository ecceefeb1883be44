"""A patient at the command line: a folder, or files named by their sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mindgap.data.case import CaseFiles
    from mindgap.sequences import Sequence


class NamedFiles(Protocol):
    """Settings with a flag for each sequence."""

    @property
    def t1(self) -> Path | None:
        """T1 image."""

    @property
    def t1ce(self) -> Path | None:
        """Contrast-enhanced T1 image."""

    @property
    def t2(self) -> Path | None:
        """T2 image."""

    @property
    def flair(self) -> Path | None:
        """FLAIR image."""


def named_files(settings: NamedFiles) -> dict[Sequence, Path]:
    """Sequence -> file, of those that were named."""
    from mindgap.sequences import Sequence

    given = {
        Sequence.T1: settings.t1,
        Sequence.T2: settings.t2,
        Sequence.T1CE: settings.t1ce,
        Sequence.FLAIR: settings.flair,
    }
    return {sequence: path for sequence, path in given.items() if path is not None}


def check_one_way(folder: Path | None, named: Mapping[Sequence, Path]) -> None:
    """Refuse a patient that is named both ways, or in none.

    Raises:
        SettingError: It is.
    """
    from mindgap.errors import SettingError

    if folder is not None and named:
        raise SettingError("give either a folder or named files (--t1 --t1ce --t2 --flair), not both.")
    if folder is None and not named:
        raise SettingError("no sequence is given: name a folder, or files with --t1 --t1ce --t2 --flair.")


def find_case(folder: Path | None, named: Mapping[Sequence, Path]) -> CaseFiles:
    """The files of a patient, of NIfTI.

    Raises:
        SettingError: As :func:`check_one_way`.
        InputError: The files cannot be a case.
    """
    from mindgap.data.cohort import case_from_files, case_from_folder

    check_one_way(folder, named)
    return case_from_folder(folder, label=False) if folder is not None else case_from_files(named)
