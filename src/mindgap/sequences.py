"""The four MRI sequences in THE order, every alias users write for them, and the fifteen subsets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from itertools import combinations

from mindgap.errors import SettingError


class Sequence(str, Enum):
    """An MRI sequence; iteration gives the canonical order T1, T2, T1ce, FLAIR.

    The order is the paper's (its listing of the anchor weights) and ProtoKD's. Other lines of work use
    others (RFNet: FLAIR, T1ce, T1, T2), so no code here relies on a number: it relies on this enumeration.
    """

    T1 = "T1"
    T2 = "T2"
    T1CE = "T1ce"
    FLAIR = "FLAIR"

    def __str__(self) -> str:
        return self.value


SEQUENCES: tuple[Sequence, ...] = tuple(Sequence)

ALIASES: dict[Sequence, tuple[str, ...]] = {
    Sequence.T1: ("t1", "t1n", "t1w", "t1pre"),
    Sequence.T2: ("t2", "t2w"),
    Sequence.T1CE: ("t1ce", "t1c", "t1gd", "t1post", "t1ca", "ce-gadolinium_t1w"),
    Sequence.FLAIR: ("flair", "t2f", "fla", "t2flair", "t2-flair"),
}

Subset = tuple[Sequence, ...]
"""A non-empty selection of sequences in canonical order."""

SUBSETS: tuple[Subset, ...] = tuple(
    subset for size in range(1, len(SEQUENCES) + 1) for subset in combinations(SEQUENCES, size)
)
"""All fifteen, from one sequence to four."""


def sequence_from_alias(name: str) -> Sequence | None:
    """The sequence a word stands for ("t1gd" -> T1ce), or None; case does not matter."""
    word = name.strip().lower()
    for sequence, aliases in ALIASES.items():
        if word == sequence.value.lower() or word in aliases:
            return sequence
    return None


def sequence_from_filename(stem: str) -> Sequence | None:
    """The sequence a file name ends in, or None; see :func:`split_filename`."""
    parts = split_filename(stem)
    return None if parts is None else parts[2]


def split_filename(stem: str) -> tuple[str, str, Sequence] | None:
    """Take a file name apart into (case, alias as written, sequence), or None when it names no sequence.

    The alias has to be the last token of the name ("BraTS-GLI-00000-000-t1c", "Brats18_X_flair"), so that a
    case called "T2_study" is not taken for a T2 image. The longest alias wins: "_ce-gadolinium_T1w" is T1ce.
    In BIDS the contrast is an entity that may stand anywhere: "sub-1_ce-gadolinium_run-1_T1w" is T1ce too.

    Args:
        stem: File name without ".nii" or ".nii.gz".

    Example:
        >>> split_filename("BraTS-GLI-00000-000-t1c")
        ('BraTS-GLI-00000-000', 't1c', <Sequence.T1CE: 'T1ce'>)
    """
    pairs = sorted(
        ((alias, sequence) for sequence, aliases in ALIASES.items() for alias in aliases),
        key=lambda pair: -len(pair[0]),
    )
    for alias, sequence in pairs:
        match = re.search(rf"(?:^|[_\-. ])({re.escape(alias)})$", stem, re.IGNORECASE)
        if match is None:
            continue
        case = stem[: match.start()]
        if sequence is Sequence.T1 and re.search(r"(^|_)ce-[a-z0-9]+(_|$)", case, re.IGNORECASE):
            sequence = Sequence.T1CE
        return case, match[1], sequence
    return None


def make_subset(sequences: Iterable[Sequence]) -> Subset:
    """Put sequences in canonical order, once each.

    Raises:
        SettingError: No sequence is left; a network without input has no answer.
    """
    chosen = set(sequences)
    if not chosen:
        raise SettingError("the set of sequences is empty: name at least one of T1, T2, T1ce, FLAIR.")
    return tuple(sequence for sequence in SEQUENCES if sequence in chosen)


def parse_subset(text: str) -> Subset:
    """Read "T1+T2+FLAIR" (any alias, any order; "all" is all four).

    Raises:
        SettingError: A word is no sequence, or none is named.

    Example:
        >>> format_subset(parse_subset("flair+t1gd"))
        'T1ce+FLAIR'
    """
    if text.strip().lower() == "all":
        return SEQUENCES
    found: list[Sequence] = []
    for word in filter(None, re.split(r"[+,\s]+", text)):
        sequence = sequence_from_alias(word)
        if sequence is None:
            raise SettingError(f"{word!r} is no sequence: write T1, T2, T1ce or FLAIR, joined by '+', or 'all'.")
        found.append(sequence)
    return make_subset(found)


def parse_subsets(text: str) -> tuple[Subset, ...]:
    """Read "T1+T2,FLAIR": several subsets, once each, in the order of the fifteen; "all" is all fifteen.

    Raises:
        SettingError: A word is no sequence, or none is named.

    Example:
        >>> [format_subset(subset) for subset in parse_subsets("flair,t2+t1")]
        ['FLAIR', 'T1+T2']
    """
    if text.strip().lower() == "all":
        return SUBSETS
    chosen = {parse_subset(word) for word in text.split(",")}
    return tuple(subset for subset in SUBSETS if subset in chosen)


def format_subset(subset: Iterable[Sequence]) -> str:
    """The canonical name of a subset, "T1+T2+FLAIR"."""
    return "+".join(str(sequence) for sequence in make_subset(subset))
