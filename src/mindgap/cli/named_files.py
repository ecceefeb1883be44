"""A patient at the command line: a folder, or files named by their sequence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindgap.data.case import CaseFiles
    from mindgap.sequences import Sequence


def named_files(*, t1: Path | None, t1ce: Path | None, t2: Path | None, flair: Path | None) -> dict[Sequence, Path]:
    """Sequence -> file, of those that were named."""
    from mindgap.sequences import Sequence

    given = {Sequence.T1: t1, Sequence.T2: t2, Sequence.T1CE: t1ce, Sequence.FLAIR: flair}
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
    """The files of a patient, of NIfTI, who is named one way or the other (:func:`check_one_way`).

    Raises:
        InputError: The files cannot be a case.
    """
    from mindgap.data.cohort import case_from_files, case_from_folder

    return case_from_folder(folder, label=False) if folder is not None else case_from_files(named)
