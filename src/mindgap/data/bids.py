"""BIDS: cases of a data set by the names of its files, which are entities (``sub-01_ce-gd_T1w``), never opened.

A case is a subject, or a session of one. Contrast is the entity ``ce-``. Where two files could be the same sequence
(runs, acquisitions), the case is refused with the candidates: which one is good enough is for a person to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mindgap.data.case import CaseFiles, Source
from mindgap.data.nifti import is_nifti, stem_of
from mindgap.errors import InputError
from mindgap.sequences import Sequence

DESCRIPTION = "dataset_description.json"
_SUFFIXES = {"T1w": Sequence.T1, "T2w": Sequence.T2, "FLAIR": Sequence.FLAIR}


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set, or a subject or session of one, by its folders ``[sub-][/ses-]/anat``."""
    return folder.is_dir() and any(_anat_folders(folder))


def entities_of(stem: str) -> tuple[dict[str, str], str]:
    """Take a BIDS name apart.

    Example:
        >>> entities_of("sub-01_ce-gadolinium_T1w")
        ({'sub': '01', 'ce': 'gadolinium'}, 'T1w')
    """
    *pairs, suffix = stem.split("_")
    return {key: value for key, _, value in (pair.partition("-") for pair in pairs)}, suffix


def read_bids(root: Path) -> tuple[dict[str, CaseFiles], dict[str, str]]:
    """Find the cases of a data set, a subject or a session; ``derivatives`` and ``sourcedata`` are not entered.

    Args:
        root: The data set, or a folder ``sub-X`` or ``ses-Y`` of it.

    Returns:
        The cases by name (``sub-X`` or ``sub-X_ses-Y``), and for those that cannot be used the reason.
    """
    cases: dict[str, CaseFiles] = {}
    rejected: dict[str, str] = {}
    for folder in _anat_folders(root):
        case_id = _case_of(folder)
        found: dict[Sequence, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            sequence = _sequence_of(path)
            if sequence is not None:
                found.setdefault(sequence, []).append(path)
        try:
            cases[case_id] = CaseFiles(case_id, _only(case_id, found))
        except InputError as error:
            rejected[case_id] = f"{error.found} where {error.expected} is due; {error.mend}"
    return cases, rejected


def case_from_bids(folder: Path) -> CaseFiles:
    """The one case of a subject or a session.

    Raises:
        InputError: There are several, or it cannot be used.
    """
    cases, rejected = read_bids(folder)
    if len(cases) == 1 and not rejected:
        return next(iter(cases.values()))
    reasons = "; ".join(f"{case}: {reason}" for case, reason in rejected.items())
    raise InputError(
        case=folder.resolve().name,
        expected="one subject or session with one file for each sequence",
        found=reasons or ", ".join(cases),
        mend="name the folder of one session, or the files by --t1 --t1ce --t2 --flair",
    )


def _anat_folders(root: Path) -> list[Path]:
    """``anat`` folders below a data set, a subject or a session, in order."""
    if re.match(r"(sub|ses)-", root.resolve().name):
        places = ("anat", "ses-*/anat")
    else:
        places = ("sub-*/anat", "sub-*/ses-*/anat")
    return sorted(folder for place in places for folder in root.glob(place) if folder.is_dir())


def _case_of(anat: Path) -> str:
    above = anat.resolve().parent
    return above.name if above.name.startswith("sub-") else f"{above.parent.name}_{above.name}"


def _sequence_of(path: Path) -> Sequence | None:
    if not is_nifti(path) or not path.is_file():
        return None
    entities, suffix = entities_of(stem_of(path))
    sequence = _SUFFIXES.get(suffix)
    return Sequence.T1CE if sequence is Sequence.T1 and "ce" in entities else sequence


def _only(case_id: str, found: Mapping[Sequence, list[Path]]) -> dict[Sequence, Source]:
    for sequence, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                case=case_id,
                expected=f"one file for {sequence}",
                found=", ".join(path.name for path in paths),
                mend="list the right ones in a manifest (case,t1,t2,t1ce,flair), or name them by "
                f"--{str(sequence).lower()}",
            )
    return {sequence: Source(paths[0]) for sequence, paths in found.items()}
