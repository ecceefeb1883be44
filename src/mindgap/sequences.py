"""The four MRI sequences in THE order, every alias users write for them, and the fifteen subsets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, pairwise
from typing import NamedTuple

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
    Sequence.T1: ("t1", "t1n", "t1w", "t1pre", "t1flair", "t1_flair"),
    Sequence.T2: ("t2", "t2w"),
    Sequence.T1CE: (
        *("t1ce", "t1c", "t1gd", "t1post", "t1ca", "ct1"),
        *("t1_ce", "t1_c", "t1_gd", "t1_post", "ce-gadolinium_t1w"),
    ),
    Sequence.FLAIR: ("flair", "t2f", "fla", "t2flair", "t2-flair", "t2_flair"),
}

_WORD = r"[^_\-. ]+"
_AGENT = r"contrast|gd|gad|gado\w*|gadavist|ce|km"
_GIVEN = rf"{_AGENT}|con"  # not by itself: "con" is a control as well
_WITH = rf"{_AGENT}|c\+|\+c|\+km?|enhanced|inj(?:ect\w*)?|post(?:{_GIVEN})?"
_WITHOUT = rf"pre(?:{_GIVEN})?|nativ|native|none|unenhanced|non?(?:{_GIVEN}|enhanced)|noc"
_NEGATIONS = r"no|non|wo|without|ohne|sans|sin|senza"
"""Say something only before a word of contrast."""
_SILENT = r"(?:pre|post) (?:op|surg|resect|biops|treat|therap|chemo|radi|rt|crt|tx|proc)\w*|native space|space native"
"""The operation, the treatment or the computer, not the contrast."""
_NAMES_TOO = ("post", "gd", "gad", "ce")
"""What may be part of the name of a case as well: initials, a study, a point in time."""
_T1_WITH = rf"t1w?\+?(?:c\+?|ca|post(?:{_GIVEN})?|{_GIVEN})|(?:c|ce|gd|post)t1w?"
_LAID_ON = r"to|in|on|space"
_REGISTERED = r"2|(?:co)?reg\w*|align\w*|warp\w*|rigid|affine"
"""Before the name of the image that another one was laid on ("FLAIR_to_T1"); these also where nothing was."""
_FAT_SATURATED = ("fs", "fatsat")
"""Of a T1 more often with contrast than without, which nobody can know."""
_PROTOCOL = (
    rf"[23]d|iso|ax|axial|tra|transversal|sag|sagittal|cor|coronal|mprage|mpr|t?se|fse|{'|'.join(_FAT_SATURATED)}"
)
"""May stand behind the name of a sequence and say nothing of which it is ("dark fluid" does, and is not here)."""
_OTHER_MR = r"adc|dwi|dti|swi|asl|dsc|dce|perf\w*|cbv|cbf|mra|ct|pet"
"""No sequence of these four, whatever it was laid on."""
_T1_WITHOUT = rf"t1n|t1w?pre(?:{_GIVEN})?|t1w?native?|t1w?non?(?:{_GIVEN})"

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


@dataclass(frozen=True)
class FileName:
    """The name of an image, taken apart.

    Attributes:
        case: What stands before the alias.
        alias: As written, with the words of contrast beside it ("post_T1w").
        sequence: What it stands for; None where it may be one or another, T1 or T1ce, or FLAIR or what a FLAIR was laid
            on ("FLAIR_to_T1"), which is for a person to say.
    """

    case: str
    alias: str
    sequence: Sequence | None


def sequence_from_filename(stem: str) -> Sequence | None:
    """The sequence a file name ends in, or None where it names none or leaves T1 and T1ce open."""
    parts = split_filename(stem)
    return None if parts is None else parts[2]


def split_filename(stem: str) -> tuple[str, str, Sequence | None] | None:
    """Take one file name apart as :func:`read_filenames` does, or None when it names no sequence.

    Args:
        stem: File name without ".nii" or ".nii.gz".

    Example:
        >>> split_filename("BraTS-GLI-00000-000-t1c")
        ('BraTS-GLI-00000-000', 't1c', <Sequence.T1CE: 'T1ce'>)
    """
    found = read_filenames([stem]).get(stem)
    return None if found is None else (found.case, found.alias, found.sequence)


def read_filenames(stems: Iterable[str], case_id: str = "") -> dict[str, FileName]:
    """Take the names of one case's images apart; those that name no sequence are left out.

    The alias has to be the last token of a name ("BraTS-GLI-00000-000-t1c", "Brats18_X_flair"), but for words of
    contrast and of the protocol behind it ("T1_post", "T2_TSE_tra", "t1_mprage_km"), so that a case called "T2_study"
    is not taken for a T2 image. A T1 with a word of contrast anywhere is T1ce ("post_T1",
    "sub-1_ce-gadolinium_run-1_T1w"); "T1_FLAIR" is a T1 with an inversion. What a case is called says nothing about its
    images: words of ``case_id`` do not count ("POST_01_t1"), nor do those that all names begin with, nor subjects and
    sessions of BIDS. Words that say both, and words that may be part of the name of the case, leave T1 and T1ce open,
    and so does a T1 with fat saturation and no word of contrast. A name that holds another sequence before its last
    one ("FLAIR_reg_T1"; "T2_FLAIR" is a FLAIR), or says that something lies on it ("scan_to_T1"), leaves open which it
    is; one of another kind ("ADC_to_FLAIR") names none.

    Args:
        stems: File names without ".nii" or ".nii.gz", of one case.
        case_id: Name of the case or of its folder, where it is known.

    Example:
        >>> [str(name.sequence) for name in read_filenames(["GD-17_t1", "GD-17_post_t1"], "GD-17").values()]
        ['T1', 'T1ce']
    """
    found = {stem: tokens for stem in stems if (tokens := _Tokens.of(stem)) is not None}
    shared = None
    if len(found) > 1:
        beginnings = [tokens.words[: tokens.at] for tokens in found.values()]
        columns = [len(set(words)) == 1 for words in zip(*beginnings, strict=False)]
        shared = columns.index(False) if False in columns else len(columns)
    names = {stem: tokens.read(case_id, shared) for stem, tokens in found.items()}
    return {stem: name for stem, name in names.items() if name is not None}


@dataclass(frozen=True)
class _Tokens:
    """A file name in words; the one at ``at`` names the sequence, behind it stand words of contrast only."""

    stem: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    at: int

    @staticmethod
    def of(stem: str) -> _Tokens | None:
        matches = list(re.finditer(_WORD, stem))
        words = tuple(match[0].lower() for match in matches)
        if not words or matches[-1].end() < len(stem):
            return None
        at = len(words) - 1
        while at and _sequence_of(words[at]) is None and (_speaks(words, at) or _is(rf"{_PROTOCOL}|with", words[at])):
            at -= 1
        behind = any(_speaks(words, index) for index in range(at + 1, len(words)))
        if _sequence_of(words[at]) not in ((Sequence.T1, Sequence.FLAIR) if behind else SEQUENCES):
            return None
        if words[-1] == "with":
            return None
        return _Tokens(stem, words, tuple(match.span() for match in matches), at)

    def read(self, case_id: str, shared: int | None) -> FileName | None:
        """What the name says; ``shared`` words begin all names of the case, None where there is no other name."""
        own = self._own(case_id)
        quiet = [mine or index < (shared or 0) or self._entity(index) for index, mine in enumerate(own)]
        start, sequence = self.at, _sequence_of(self.words[self.at])
        if self.words[start] in ("flair", "fla") and start and not quiet[start - 1]:
            before = _sequence_of(self.words[start - 1])
            if before in (Sequence.T1, Sequence.T2):
                start, sequence = start - 1, Sequence.T1 if before is Sequence.T1 else sequence
        if sequence is Sequence.T1:
            sequence = self._with_contrast(start, quiet, own, shared)
            while start and not quiet[start - 1] and _speaks(self.words, start - 1):
                start -= 1
            if start > 1 and self.words[0] == "sub" and self._between(start) == "-":
                start -= 1  # the key of an entity, with its value
        elif any(_speaks(self.words, index) for index in range(self.at + 1, len(self.words))):
            return None
        if any(_is(_OTHER_MR, word) for word, hushed in zip(self.words[:start], quiet, strict=False) if not hushed):
            return None
        if self._lies_on(start, sequence, quiet):
            sequence = None
        case = self.stem[: self.spans[start - 1][1]] if start else ""
        return FileName(case, self.stem[self.spans[start][0] :], sequence)

    def _with_contrast(self, start: int, quiet: list[bool], own: list[bool], shared: int | None) -> Sequence | None:
        """T1 or T1ce, or None where the words leave it open."""
        words, at = self.words, self.at
        alone = ["pre"] if re.fullmatch(_T1_WITHOUT, words[at]) else []
        behind = ["c+" if word == "c" else word for word in words[at + 1 :]]
        before = ["|" if quiet[index] else words[index] for index in range(start)]
        given, withheld = contrast_of([*before, "|", *behind, "|", *alone])
        near = start
        while near and _is(_WITH, before[near - 1]):
            near -= 1
        if shared is None:  # no other name shows where that of the case ends
            ends = own[0] or words[0] == "sub"
            for index in range(near):
                if before[index] in _NAMES_TOO and (not ends or words[index + 1].isdigit()):
                    before[index] = "|"
        doubts = (
            given and withheld,
            given and not contrast_of([*before, "|", *behind]).given,
            any(mine and _is(_WITH, word) for mine, word in zip(own[at + 1 :], behind, strict=True)),
            0 < start <= (shared or 0) and not own[start - 1] and _is(_WITH, words[start - 1]),
            bool(start) and before[start - 1] == "c",
            words[at + 1 :] == ("c",) and self._between(at + 1) == "-",  # "T1-C" is written for both
            not given and not withheld and any(word in _FAT_SATURATED for word in words[at + 1 :]),
            not given and ("acq", "ce") in pairwise(words),  # contrast, to some; BIDS has an entity of its own for it
        )
        return None if any(doubts) else Sequence.T1CE if given else Sequence.T1

    def _own(self, case_id: str) -> list[bool]:
        """Which words are those of the case's name, from the left; none where that names the sequence itself."""
        left = Counter(re.findall(_WORD, case_id.lower()))
        if all(_sequence_of(word) for word in left):  # "T1" is a folder of one sequence, not a case
            return [False] * len(self.words)
        own = []
        for word in self.words:
            own.append(left[word] > 0)
            left[word] -= 1
        return [False] * len(own) if own[self.at] else own

    def _entity(self, index: int) -> bool:
        """Whether a word is a value of BIDS that says nothing of contrast, which is the entity ``ce-``."""
        key, word = self.words[index - 1], self.words[index]
        silent = key in ("sub", "ses") or (key, word) == ("acq", "ce") or (key == "space" and index < self.at)
        return index > 0 and self._between(index) == "-" and silent

    def _lies_on(self, start: int, sequence: Sequence | None, quiet: list[bool]) -> bool:
        """Whether what the name ends in may be what the image was laid on: "FLAIR_to_T1", "T2_reg_T1ce", "FLAIR_T1"."""
        near = start - 1
        if near < 0 or quiet[near]:
            return False
        word, rest = self.words[near], [self.words[index] for index in range(near) if not quiet[index]]
        if _is(_LAID_ON, word):
            return bool(rest) and not (word == "space" and rest[-1] in ("native", "nativ"))
        other = _sequence_of(rest[-1] if rest and _is(_REGISTERED, word) else word)
        same = {sequence}
        if sequence is Sequence.FLAIR:
            same |= {Sequence.T2} if start == self.at else {Sequence.T1, Sequence.T2}  # "T2_FLAIR" is one word
        same |= {Sequence.T1, Sequence.T1CE} if sequence in (None, Sequence.T1, Sequence.T1CE) else set()
        return other is not None and other not in same

    def _between(self, index: int) -> str:
        return self.stem[self.spans[index - 1][1] : self.spans[index][0]]


def _sequence_of(word: str) -> Sequence | None:
    """The sequence of one word, with what is written together with T1 ("t1wpostgd", "t1+c")."""
    if _is(_T1_WITH, word):
        return Sequence.T1CE
    return Sequence.T1 if _is(_T1_WITHOUT, word) else sequence_from_alias(word)


def _speaks(words: tuple[str, ...], index: int) -> bool:
    """Whether a word speaks of contrast; "no" does where it stands before one that does."""
    after = words[index + 1] if index + 1 < len(words) else ""
    return _is(rf"{_WITH}|{_WITHOUT}|c", words[index]) or (_is(_NEGATIONS, words[index]) and _is(rf"{_WITH}|c", after))


class Contrast(NamedTuple):
    """What words say of contrast.

    Attributes:
        given: The words that say it was given, "" where there are none.
        withheld: The words that say it was not.
    """

    given: str
    withheld: str


def contrast_of_text(text: str) -> Contrast:
    """What free text says of contrast, as far as it is no name of a case; T1 may be written together with it.

    Both are told where a text says both, which leaves it open.

    Example:
        >>> contrast_of_text("AX T1 POST GD"), contrast_of_text("T1 post-op")
        (Contrast(given='post', withheld=''), Contrast(given='', withheld=''))
    """
    found = re.findall(r"\+?[a-z0-9*]+\+?", text.lower())
    words = [word if _is(_WITH, word) else word.strip("+") for word in found]
    joined = {word: "ce" if _is(_T1_WITH, word) else "pre" for word in words if _is(f"{_T1_WITH}|{_T1_WITHOUT}", word)}
    given, withheld = contrast_of(joined.get(word, word) for word in words)
    written = {part: word for word, part in joined.items()}  # as it stands in the text
    return Contrast(written.get(given, given), written.get(withheld, withheld))


def contrast_of(words: Iterable[str]) -> Contrast:
    """What words in lower case say of contrast; negations, the operation and the treatment are understood."""
    text = re.sub(rf"(?<!\S)(?:{_SILENT})(?!\S)", "|", " ".join(words))
    negated = rf"(?<!\S)(?:(?:{_NEGATIONS}) (?:{_WITH})|(?:{_WITHOUT})(?: (?:{_GIVEN}))?)(?!\S)"
    withheld = re.search(negated, text)
    given = re.search(rf"(?<!\S)(?:{_WITH})(?!\S)", re.sub(negated, "|", text))
    return Contrast("" if given is None else given[0], "" if withheld is None else withheld[0])


def _is(pattern: str, word: str) -> bool:
    return re.fullmatch(pattern, word) is not None


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


def subset_from_names(names: Iterable[str]) -> Subset:
    """Read the sequences that a file says the columns of an array are: none may be passed over, or columns shift.

    Raises:
        SettingError: One is unknown, stands there twice or out of order, or there is none.

    Example:
        >>> format_subset(subset_from_names(["T1", "FLAIR"]))
        'T1+FLAIR'
    """
    names = list(names)
    found = [sequence_from_alias(name) for name in names]
    known = tuple(sequence for sequence in SEQUENCES if sequence in found)
    if not found or tuple(found) != known:
        raise SettingError(
            f"expected sequences among {', '.join(map(str, SEQUENCES))}, each once and in this order, found "
            f"{', '.join(map(repr, names)) or 'none'}."
        )
    return known
