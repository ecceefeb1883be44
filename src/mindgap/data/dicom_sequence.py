"""Which sequence a DICOM series is, proposed from its headers with the reason - or not proposed, and asked for.

Two witnesses are heard: the times (what the scanner did) and the words (what people called it). They have to agree.
The times come first because words are free text; contrast shows in the header's agent or in words only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mindgap.data.dicom import DicomSeries
from mindgap.errors import SettingError
from mindgap.sequences import SEQUENCES, Sequence, contrast_of_text

LEAVE_OUT = "none"
"""What a user writes in the place of a series to leave a sequence out."""
NONE, UNDECIDED = "-", "?"
"""What stands in a table in the place of a sequence: it is none of the four, or only the user can tell."""
FEW_SLICES = 5


@dataclass(frozen=True)
class Proposal:
    """What a series is taken for.

    Attributes:
        series: The series.
        sequence: One of the four, or None.
        reason: Why, or why not.
        aside: It is none of the four (a localizer, a map, ...); otherwise None means that the user is asked.
        contested: The sequence that other series are taken for as well.
        may_be: Which it can be, where the user is asked.
    """

    series: DicomSeries
    sequence: Sequence | None
    reason: str
    aside: bool = False
    contested: Sequence | None = None
    may_be: tuple[Sequence, ...] = SEQUENCES

    @property
    def word(self) -> str:
        """What a table says of it: a sequence, ``-`` or ``?``."""
        return str(self.sequence) if self.sequence is not None else NONE if self.aside else UNDECIDED

    @property
    def candidates(self) -> tuple[Sequence, ...]:
        """What it can be: the sequence it is or was taken for, or what is left to ask for."""
        likely = self.contested or self.sequence
        return self.may_be if likely is None else (likely,)

    @property
    def unclear(self) -> bool:
        """Whether only the user can tell what it is."""
        return self.sequence is None and not self.aside and self.contested is None


@dataclass(frozen=True)
class TimeRule:
    """A range of times that has a name.

    Attributes:
        weighting: T1, T2 or FLAIR, or None for what is none of the four.
        reason: What it is.
        echo_ms: Echo time from and to.
        repetition_ms: Repetition time from and to.
        inversion_ms: Inversion time from and to; (0, 0) where there must be none, None where it does not matter.
        gradient: Whether it is a gradient echo; None where it does not matter.
    """

    weighting: Sequence | None
    reason: str
    echo_ms: tuple[float, float]
    repetition_ms: tuple[float, float]
    inversion_ms: tuple[float, float] | None
    gradient: bool | None = None


_ANY = (0.0, float("inf"))
_LONG = float("inf")
TIME_RULES: tuple[TimeRule, ...] = (
    TimeRule(None, "short TI (STIR, fat suppressed)", _ANY, _ANY, (60.0, 300.0), gradient=False),
    TimeRule(Sequence.FLAIR, "long TE and a TI that nulls fluid", (60.0, _LONG), (4000.0, _LONG), (1500.0, 3200.0)),
    TimeRule(Sequence.T1, "short TE after an inversion", (0.0, 40.0), (0.0, 3600.0), (300.0, 1400.0)),
    TimeRule(
        Sequence.T2, "long TE and TR without inversion", (60.0, _LONG), (1500.0, _LONG), (0.0, 0.0), gradient=False
    ),
    TimeRule(Sequence.T1, "short TE and TR", (0.0, 30.0), (200.0, 1400.0), (0.0, 0.0), gradient=False),
    TimeRule(Sequence.T1, "gradient echo with short TE and TR", (0.0, 10.0), (0.0, 400.0), (0.0, 0.0), gradient=True),
    TimeRule(None, "short TE with long TR (proton density)", (0.0, 40.0), (1500.0, _LONG), (0.0, 0.0), gradient=False),
    TimeRule(None, "gradient echo with long TE (T2*, susceptibility)", (10.0, _LONG), _ANY, None, gradient=True),
)
"""The first rule that holds counts. Ranges hold the usual protocols at 1.5 and 3 T, with gaps between them on purpose:
what falls in a gap is asked for."""

_ASIDE_WORDS: tuple[tuple[str, str], ...] = (
    (r"loc|localizer|localiser|scout|survey|topogram|3.?plane", "a localizer"),
    (r"dwi|dti|diff|diffusion|adc|eadc|tracew?|trace|fa|tensor|ep2d|b\d{3,4}", "a diffusion image or map"),
    (r"perf|perfusion|dsc|dce|pwi|asl|pcasl|r?cbf|r?cbv|mtt|ttp|tmax|ktrans", "a perfusion image or map"),
    (r"swi|swan|swip|t2.?star|t2\*|hemo|mip|minip|pha|phase|venbold", "a susceptibility image or projection"),
    (r"mra|tof|mrv|angio", "an angiography"),
    (r"bold|fmri|rest|rsfmri", "a functional image"),
    (r"mrs|spectroscopy|csi|svs|press", "spectroscopy"),
    (r"sub|subtraction|subtr", "a subtraction"),
    (r"t1.?map|t2.?map|pd|stir|fieldmap|b0map|b1map", "a map or another contrast"),
)
_ASIDE_TYPES: tuple[tuple[str, str], ...] = (
    ("LOCALIZER", "a localizer"),
    ("DIFFUSION ADC FA TRACEW EADC TENSOR", "a diffusion image or map"),
    ("PERFUSION ASL CBF CBV MTT TTP TMAX RELCBF RELCBV GBP PBP", "a perfusion image or map"),
    ("SWI MNIP MIP MINIP PROJECTION PHASE P SUBTRACTION", "a projection, phase image or subtraction"),
    ("MOSAIC FMRI", "a mosaic of many volumes"),
    ("DERIVED SECONDARY REFORMATTED MPR", "derived from other images, not acquired"),
)
_WEIGHTING_WORDS: tuple[tuple[str, Sequence], ...] = (
    (r"flair|tirm|dark.?fluid|t2f|t2flair", Sequence.FLAIR),
    (r"t2|t2w", Sequence.T2),
    (r"t1|t1w|t1n|t1c|t1ce|t1gd|mprage|f?spgr|bravo|tfl\w*|vibe", Sequence.T1),
)
_WITHOUT_ALONE = r"(?:w/?o|without|ohne|sans|sin|senza)"
"""Of contrast, where it ends a description."""
_BOTH = r"w(?:ith)?/? *(?:and|&|/|\+)? *(?:w/?o|without)"
_UNCLEAR_CONTRAST = "c"  # "T1-C" is written for both
_EITHER_T1 = (Sequence.T1, Sequence.T1CE)
_NO_AGENT = {"", "none", "no", "n", "na", "n/a", "0", "without", "no contrast", "unknown"}


def propose(series: Iterable[DicomSeries], named: Mapping[Sequence, str] | None = None) -> tuple[Proposal, ...]:
    """Say for each series which sequence it is taken for; what several are taken for, none is.

    Args:
        series: Of one examination.
        named: What the user decides, and what counts before any header: sequence -> series number or uid, or "none"
            to leave the sequence out.

    Returns:
        One proposal per series, in their order.

    Raises:
        SettingError: No series, or several, carry a number; or one series is named for two sequences.
    """
    alone, named = [propose_one(one) for one in series], named or {}
    chosen: dict[str, Sequence] = {}
    for sequence, word in named.items():
        if word.lower() == LEAVE_OUT:
            continue
        uid = _find(word, sequence, alone).series.uid
        if uid in chosen:
            raise SettingError(f"series {word} is named for {chosen[uid]} and for {sequence}: it can be only one.")
        chosen[uid] = sequence
    made = []
    for proposal in alone:
        taken_for = proposal.sequence
        if proposal.series.uid in chosen:
            proposal = Proposal(proposal.series, chosen[proposal.series.uid], "named by you")
        elif taken_for is not None and taken_for in named:
            why = "left out" if named[taken_for].lower() == LEAVE_OUT else "another series is named for it"
            proposal = Proposal(proposal.series, None, f"{taken_for}, but {why}", aside=True)
        made.append(proposal)
    return _without_rivals(made)


def propose_one(series: DicomSeries) -> Proposal:
    """Say which sequence one series is taken for, looking at it alone."""
    aside = _why_aside(series)
    if aside is not None:
        return Proposal(series, None, aside, aside=True)
    if len(series.echoes_ms) > 1:
        echoes = " and ".join(f"{echo:g}" for echo in series.echoes_ms)
        return Proposal(series, None, f"images of several echo times (TE {echoes} ms): ask")
    rule, words = _rule_of(series), _words_of(series)
    times = _times(series)
    if rule is not None and rule.weighting is None and not words:
        return Proposal(series, None, f"{rule.reason}: none of the four ({times})", aside=True)
    if len(words) > 1:
        return Proposal(series, None, f"its name speaks of {' and '.join(sorted(map(str, words)))}: ask")
    word = next(iter(words), None)
    if rule is None:
        if word is None:
            return Proposal(series, None, f"neither name nor times tell ({times}): ask")
        if series.echo_ms is not None and series.repetition_ms is not None:
            return Proposal(series, None, f"called {word}, but its times are unusual for that ({times}): ask")
        return _with_contrast(series, word, f"called {word}; the header holds no times")
    if rule.weighting is None or word not in (None, rule.weighting):
        return Proposal(series, None, f"called {word}, but it has {rule.reason} ({times}): ask")
    called = f"called {word}, " if word is not None else ""
    return _with_contrast(series, rule.weighting, f"{called}{rule.reason} ({times})")


def rivals(proposals: Iterable[Proposal]) -> dict[Sequence, list[DicomSeries]]:
    """The sequences that several series could be, which the user has to decide."""
    found: dict[Sequence, list[DicomSeries]] = {}
    for proposal in proposals:
        if proposal.contested is not None:
            found.setdefault(proposal.contested, []).append(proposal.series)
    return {sequence: found[sequence] for sequence in SEQUENCES if sequence in found}


def _without_rivals(proposals: list[Proposal]) -> tuple[Proposal, ...]:
    made = []
    for proposal in proposals:
        same = [other.series for other in proposals if other.sequence is proposal.sequence is not None]
        if len(same) > 1:
            others = ", ".join(one.name for one in same if one is not proposal.series)
            reason = f"{proposal.sequence}, but so is {others}: ask"
            proposal = Proposal(proposal.series, None, reason, contested=proposal.sequence)
        made.append(proposal)
    return tuple(made)


def _why_aside(series: DicomSeries) -> str | None:
    """Why a series is none of the four; None when it may be one."""
    if any(one.frames > 1 for one in series.slices):
        return "several images in one file, of which nothing says where each lies"
    if series.diffusion:
        return "a diffusion image (b value in the header)"
    types = {part for word in series.image_type for part in word.upper().split()}
    for words, what in _ASIDE_TYPES:
        met = types & set(words.split())
        if met:
            return f"{what} (ImageType {', '.join(sorted(met))})"
    for pattern, what in _ASIDE_WORDS:
        word = _match(pattern, series.description or series.protocol)
        if word:
            return f'{what} (called "{word}")'
    if "EP" in {word.upper() for word in series.scanning}:
        return "echo planar (diffusion, perfusion or function)"
    orientations = {one.orientation for one in series.slices if one.orientation is not None}
    if len(series.slices) < FEW_SLICES:
        return f"only {len(series.slices)} images"
    if len({tuple(round(value, 2) for value in one) for one in orientations}) > 1:
        return "slices in several directions (a localizer)"
    return None


def _rule_of(series: DicomSeries) -> TimeRule | None:
    """The first rule whose times hold; none where echo or repetition time are not told."""
    echo, repetition, inversion = series.echo_ms, series.repetition_ms, series.inversion_ms or 0.0
    if not echo or not repetition:
        return None
    scanning = {word.upper() for word in series.scanning}
    gradient = "GR" in scanning and "SE" not in scanning
    for rule in TIME_RULES:
        if (
            rule.echo_ms[0] <= echo <= rule.echo_ms[1]
            and rule.repetition_ms[0] <= repetition <= rule.repetition_ms[1]
            and (rule.inversion_ms is None or rule.inversion_ms[0] <= inversion <= rule.inversion_ms[1])
            and rule.gradient in (None, gradient)
        ):
            return rule
    return None


def _words_of(series: DicomSeries) -> set[Sequence]:
    """The weightings the names speak of; the description counts before the protocol, which covers several series."""
    for text in (series.description, series.protocol, series.sequence_name):
        found = {weighting for pattern, weighting in _WEIGHTING_WORDS if _match(pattern, text)}
        if found:
            break
    # "T2 FLAIR" is FLAIR, and "T1 FLAIR" a T1 with an inversion; all three words together stay unclear.
    if found == {Sequence.T2, Sequence.FLAIR}:
        return {Sequence.FLAIR}
    return {Sequence.T1} if found == {Sequence.T1, Sequence.FLAIR} else found


def _with_contrast(series: DicomSeries, weighting: Sequence, reason: str) -> Proposal:
    """T1 or T1ce, by the agent in the header and the words; where they contradict, the user is asked."""
    if weighting is not Sequence.T1:
        return Proposal(series, weighting, reason)
    text = (series.description or series.protocol).lower()
    agent = series.contrast if series.contrast.lower() not in _NO_AGENT else None
    called, without = contrast_of_text(_in_full(text))
    if both := _match(_BOTH, text):
        return Proposal(series, None, f'T1 called "{both}", with or without contrast: ask', may_be=_EITHER_T1)
    if without and (agent or called):
        what = f"the header names the agent {agent}" if agent else f'also "{called}"'
        return Proposal(series, None, f'T1 called "{without}", but {what}: ask', may_be=_EITHER_T1)
    if agent or called:
        return Proposal(series, Sequence.T1CE, f"{reason}; " + (f"agent {agent}" if agent else f'called "{called}"'))
    if not without and _match(_UNCLEAR_CONTRAST, text):
        return Proposal(series, None, 'T1 called "c", with or without contrast: ask', may_be=_EITHER_T1)
    return Proposal(series, Sequence.T1, f"{reason}; no contrast agent named")


def _in_full(text: str) -> str:
    """A description with the short forms of DICOM written out: "w/o", "no c", a "without" that ends it, "T1+C"."""
    text = re.sub(rf"(?<![a-z0-9]){_WITHOUT_ALONE}(?=[^a-z0-9]*$)", "without contrast", text)
    text = re.sub(r"(?<![a-z0-9])w/?o(?![a-z0-9])", "without", text)
    text = re.sub(r"(?<![a-z0-9])(no|non|without|ohne|sans|sin|senza)([^a-z0-9]+)c(?![a-z0-9+])", r"\1 contrast", text)
    return text.replace("_", " ").replace("+", " +") if re.search(r"\+[ck]", text) else text


def _find(word: str, sequence: Sequence, proposals: list[Proposal]) -> Proposal:
    tests: tuple[Callable[[DicomSeries], bool], ...] = (
        lambda one: one.uid == word,
        lambda one: str(one.number) == word,
    )
    for test in tests:
        found = [proposal for proposal in proposals if test(proposal.series)]
        if len(found) == 1:
            return found[0]
        if found:
            uids = ", ".join(proposal.series.uid for proposal in found)
            raise SettingError(
                f"{len(found)} series have the number {word}: name the one for {sequence} by uid ({uids})."
            )
    there = ", ".join(str(proposal.series.number) for proposal in proposals)
    raise SettingError(f"there is no series {word} (named for {sequence}): choose one of {there}, or write none.")


def _match(pattern: str, text: str) -> str | None:
    """The first word that a pattern fits; whatever is no letter and no digit parts words, and "t2*" is not "t2"."""
    match = re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9*])", text.lower())
    return None if match is None else match[0]


def _times(series: DicomSeries) -> str:
    named = (("TE", series.echo_ms), ("TR", series.repetition_ms), ("TI", series.inversion_ms))
    known = [f"{name} {value:g}" for name, value in named if value]
    return f"{', '.join(known)} ms" if known else "no times"
