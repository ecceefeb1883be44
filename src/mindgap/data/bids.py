"""BIDS: cases of a data set by the names of its files, which are entities (``sub-01_ce-gd_T1w``), never opened.

A case is a subject, or a session of one, called as its folders are, whatever these are links to. Contrast is the entity
``ce-``, or a word in another one (``acq-postcontrast``). Where two files could be the same sequence (runs,
acquisitions), the case is refused with the candidates: which one is good enough is for a person to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mindgap.data.case import CaseFiles, Source
from mindgap.data.folders import (
    closed_error,
    is_lost,
    lost_links,
    nifti_files,
    reason_of,
    refuse_lost,
    refuse_unclear,
    subfolders,
    visible,
)
from mindgap.data.naming import refuse_mixed
from mindgap.data.nifti import stem_of
from mindgap.errors import InputError
from mindgap.sequences import Sequence, sequence_from_filename

DESCRIPTION = "dataset_description.json"
_SUFFIXES = {"T1w": Sequence.T1, "T2w": Sequence.T2, "FLAIR": Sequence.FLAIR}


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set, or a subject or session of one, by its folders ``[sub-][/ses-]/anat``."""
    return folder.is_dir() and any(_anat_folders(folder, set()))


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
    closed: set[Path] = set()
    for folder in _anat_folders(root, closed):
        case_id = _case_of(folder)
        if case_id in cases or case_id in rejected:
            cases.pop(case_id, None)
            rejected[case_id] = f"two folders give this name, one of them {folder}; rename one"
            continue
        try:
            cases[case_id] = _read_anat(case_id, folder)
        except PermissionError:
            closed.add(folder)
        except InputError as error:
            rejected[case_id] = reason_of(error)
    for folder in sorted(closed):
        name = _case_of(folder) if folder.name == "anat" else _name_of(folder)
        rejected[str(folder) if name in cases or name in rejected else name] = reason_of(closed_error(name))
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
        case=visible(folder).name,
        expected="one subject or session with one file for each sequence",
        found=reasons or ", ".join(cases),
        mend="name the folder of one session, or the files by --t1 --t1ce --t2 --flair",
    )


def _anat_folders(root: Path, closed: set[Path]) -> list[Path]:
    """``anat`` folders below a data set, a subject or a session, in order; what may not be read is added to closed."""
    # A link to a subject holds one, whatever it is called.
    alone = any(re.match(r"(sub|ses)-", path.name) for path in (visible(root), root.resolve()))
    found = []
    for subject in [root] if alone else subfolders(root, closed, "sub-*"):
        for place in (subject, *subfolders(subject, closed, "ses-*")):
            found += subfolders(place, closed, "anat")
    return sorted(found)


def _case_of(anat: Path) -> str:
    return _name_of(visible(anat).parent)


def _name_of(folder: Path) -> str:
    """The name of a subject's or a session's folder: a session says whose it is."""
    place = visible(folder)
    return f"{place.parent.name}_{place.name}" if place.name.startswith("ses-") else place.name


def _read_anat(case_id: str, folder: Path) -> CaseFiles:
    """The case in one folder ``anat``.

    Raises:
        InputError: A link points nowhere, a name leaves T1 and T1ce open, names speak of two subjects, or two files
            could be one sequence.
    """
    found: dict[Sequence | None, list[Path]] = {}
    for path in sorted((*nifti_files(folder), *lost_links(folder))):
        suffix = entities_of(stem_of(path))[1]
        if suffix in _SUFFIXES:
            found.setdefault(_sequence_of(stem_of(path), suffix), []).append(path)
    refuse_lost(case_id, (path for paths in found.values() for path in paths if is_lost(path)))
    refuse_unclear(case_id, found.get(None, ()))
    subjects = {path.name: entities_of(stem_of(path))[0].get("sub", "") for paths in found.values() for path in paths}
    refuse_mixed(case_id, {name: f"sub-{subject}" for name, subject in subjects.items() if subject})
    return CaseFiles(case_id, _only(case_id, {key: paths for key, paths in found.items() if key is not None}))


def _sequence_of(stem: str, suffix: str) -> Sequence | None:
    """By the suffix; a T1w may have contrast, and is None where its name leaves that open."""
    return sequence_from_filename(stem) if suffix == "T1w" else _SUFFIXES[suffix]


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
