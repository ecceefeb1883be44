"""Whose images lie side by side, by what their names say before the sequence.

Two patients in one folder make one mask of both, and no later check is sure to notice. Names hold much else:
directions, protocols, dates, numbers of runs. What is known to say nothing of a patient is left out; what then stands
against each other are two names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import combinations
from operator import and_

from mindgap.errors import InputError
from mindgap.sequences import sequence_from_alias

_WORD = r"[^_\-. ]+"
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-_. ]?)[01]\d\1[0-3]\d(?:[-_. tT]?\d{4,6})?|[0-3]\d([-_. ])[01]\d\2(?:19|20)\d\d)(?!\d)"
)
_ENTITIES = re.compile(
    r"acq|ce|chunk|den|desc|dir|echo|flip|hemi|inv|label|mod|mt|part|proc|rec|res|run|ses|space|split|task"
)
"""Of BIDS, all but the subject; a session is another time, not another patient."""
_SILENT = re.compile(
    r"ax|axial|tra|trans\w*|sag|sagittal|cor|coronal|obl\w*|iso\w*|\d+(?:mm|t|d)|v\d+"  # direction, resolution, field
    r"|mp2?rage|mpr|f?spgr|bravo|vibe|tfl|t?se|fse|fl[23]d|gre|ge|ffe|tfe|cube|vista|propeller|blade|tirm|stir|haste"
    r"|flash|spc|space|dixon|water|fs|fatsat|fat|sat|sense|dark|fluid"  # the scanner's
    r"|brain|head|neuro|kopf|schaedel|schädel|cerveau|crane|tete|cranio|mri?|mrt|irm|nii|nifti|images?|img|im|anat"
    r"|stripped|skull\w*|strip|bet|hdbet|hd|n4\w*|bias\w*|corr\w*|norm\w*|denois\w*|crop\w*|masked|resampl\w*|reslic\w*"
    r"|(?:co)?reg\w*|align\w*|warp\w*|rigid|affine|atlas|mni\w*|sri24|native?|raw|orig\w*|ras|lps|to|in|on"
    r"|pre\w*|post\w*|op|surg\w*|base(?:line)?|bl|follow\w*|fu\w*|no|w|wo|with|without|contrast|enhanced|gd|gad\w*|ce|km"
    r"|(?:run|series|ser|se|sc|scan|acq|echo|te|tr|ti|vol|visit|day|week|month|tp|time\w*|ses|session)\d*"
)
_NUMBERS = re.compile(r"subj?|subject|patient|pat|pt|p|case|id")
"""Words before the number of a patient."""


def patients_apart(parts: Mapping[str, str]) -> tuple[str, str] | None:
    """Two files whose names speak of different patients; None where no two do.

    Words that all names share are no difference, nor is a word that one name has more than another. Numbers count
    where they may be a patient's: behind its name ("BraTS20_Training_001"), not by themselves ("03_AX_T1") nor as the
    one or two last digits ("Smith_3_T1"), which are those of a series.

    Args:
        parts: File -> what stands in its name before the sequence.

    Example:
        >>> patients_apart({"Smith_t1ce.nii.gz": "Smith", "Jones_flair.nii.gz": "Jones"})
        ('Smith_t1ce.nii.gz', 'Jones_flair.nii.gz')
        >>> patients_apart({"P1_AX_T1.nii.gz": "P1_AX", "P1_SAG_FLAIR.nii.gz": "P1_SAG"})
    """
    words = {file: _words_of_patient(part) for file, part in parts.items()}
    if not words:
        return None
    counts = {file: Counter(own) for file, own in words.items()}
    shared = reduce(and_, counts.values())
    rests = {file: tuple((count - shared).elements()) for file, count in counts.items()}
    for one, other in combinations(rests, 2):
        mine, theirs = rests[one], rests[other]
        # Beside a shared name with a number in it, words without any are taken for those of an unknown protocol.
        if mine and theirs and mine != theirs and (not _numbered(shared) or (_numbered(mine) and _numbered(theirs))):
            return one, other
    return None


def refuse_mixed(case_id: str, parts: Mapping[str, str]) -> None:
    """Refuse files of one folder whose names speak of different patients.

    Args:
        case_id: The folder.
        parts: As :func:`patients_apart`.

    Raises:
        InputError: Two do.
    """
    apart = patients_apart(parts)
    if apart is not None:
        raise InputError(
            case=case_id,
            expected="files of one patient",
            found=" and ".join(f"{file} (of {parts[file]!r}?)" for file in apart),
            mend="keep one patient per folder; where these are of one patient, name each file by its sequence (--t1, "
            "--t1ce, --t2, --flair, or a manifest), or rename one",
        )


def _words_of_patient(part: str) -> list[str]:
    """The words that may be a patient's name or number."""
    found: list[str] = []
    for chunk in _DATE.sub("_", part.lower()).split("_"):
        key, dash, _ = chunk.partition("-")
        if not (dash and _ENTITIES.fullmatch(key)):
            found += re.findall(_WORD, chunk)
    kept: list[str] = []
    for index, word in enumerate(found):
        counted = index > 0 and _NUMBERS.fullmatch(found[index - 1]) is not None
        if word.isdigit():
            if counted or any(not known.isdigit() for known in kept):
                kept.append(f"{found[index - 1]} {word}" if counted else word)
        elif _SILENT.fullmatch(word) is None and sequence_from_alias(word) is None:
            kept.append(word)
    if kept and kept[-1].isdigit() and len(kept[-1]) < 3:
        kept.pop()
    return kept


def _numbered(words: Iterable[str]) -> bool:
    return any(re.search(r"\d", word) for word in words)
