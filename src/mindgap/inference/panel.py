"""The networks that answer for the cases of a cohort: one, or of a set the one for what each case has."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from mindgap.files import sha256_of
from mindgap.inference.confidence import Confidence
from mindgap.inference.predictor import Coverage, Predictor
from mindgap.inference.selection import Choice, Member, choose, read_members
from mindgap.progress import Say, mute
from mindgap.runfiles import MODELS
from mindgap.sequences import Subset, format_subset


@dataclass(frozen=True)
class Answer:
    """Who answers for a case.

    Attributes:
        predictor: The network.
        confidence: What is known of it; None for one that was not calibrated.
        choice: Why it answers, where it is one of a set.
    """

    predictor: Predictor
    confidence: Confidence | None = None
    choice: Choice | None = None


@dataclass
class Panel:
    """Networks by what they answer for, each loaded once, when the first case needs it, and kept.

    Attributes:
        sha256: Of the weights of the one network, or of the index of the set, which names those of all.
        coverage: As planned by the one network, or as asked of all.
        tta: Whether mirror images are averaged.
    """

    sha256: str
    coverage: Coverage
    tta: bool
    _members: tuple[Member, ...] = ()
    _load: Callable[[Path], Predictor] | None = None
    _loaded: dict[Path, Answer] = field(default_factory=dict)

    @classmethod
    def of_one(cls, predictor: Predictor, confidence: Confidence | None = None) -> Panel:
        """One network for all cases; those it does not fit fail by themselves."""
        panel = cls(predictor.sha256, predictor.planned_coverage, predictor.tta)
        panel._loaded[predictor.folder] = Answer(predictor, confidence)
        return panel

    @classmethod
    def open(
        cls,
        model: Path,
        subsets: Collection[Subset],
        load: Callable[[Path], Predictor],
        *,
        coverage: Coverage,
        tta: bool,
        say: Say = mute,
    ) -> Panel:
        """The network or networks of a model folder.

        Args:
            model: Run folder, or model folder of one network or several.
            subsets: What the cases have; which network answers for each is said at once.
            load: Loads the network of a folder, with the coverage and mirroring below.
            coverage: As asked of all.
            tta: Whether mirror images are averaged.
            say: Takes these lines, and one where nothing is known of the network.

        Raises:
            MindgapError: The folder holds no network, or a damaged one.
            SettingError: Engine, precision or device are not there.
        """
        members = read_members(model)
        if len(members) == 1:
            (member,) = members
            if member.confidence is None:
                say(f"no estimate of reliability: {member.folder} was not calibrated (mindgap calibrate)")
            return cls.of_one(load(member.folder), member.confidence)
        panel = cls(sha256_of(model / MODELS), coverage, tta, members, load)
        for subset in sorted(subsets, key=lambda some: (-len(some), some)):
            if any(member.uses(subset) for member in members):
                given = format_subset(subset)
                say(f"{given}: {choose(members, given, subset).describe(subset)}")
                if not panel._loaded:
                    panel.answer(given, subset)  # an engine or device that is not there is said before any case
        return panel

    def answer(self, case_id: str, available: Subset) -> Answer:
        """Who answers for a case.

        Args:
            case_id: Name for the message.
            available: What it has.

        Raises:
            InputError: None of several networks fits; one that is alone refuses by itself.
        """
        if self._load is None:
            return next(iter(self._loaded.values()))
        choice = choose(self._members, case_id, available)
        member = choice.member
        if member.folder not in self._loaded:
            self._loaded[member.folder] = Answer(self._load(member.folder), member.confidence)
        return replace(self._loaded[member.folder], choice=choice)
