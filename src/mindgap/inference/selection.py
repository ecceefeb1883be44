"""Which network answers: the one trained for exactly the sequences at hand, else the best that needs no others.

A model folder holds one network (model.json, model.safetensors), or a set of them: ``members/NAME/``, each a model
folder with its ``confidence.json``, and the index ``models.json``. All members of a set were measured on the same
cases, so that their scores may be compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.files import read_json, write_aside, write_json
from mindgap.inference.confidence import Confidence, read_confidence
from mindgap.inference.exported import QUANTISED, RECORD
from mindgap.networks.card import MODEL_CARD, WEIGHTS, ModelCard, read_card
from mindgap.progress import Say, mute
from mindgap.runfiles import CONFIDENCE, MEMBERS, MODELS
from mindgap.sequences import Subset, format_subset, make_subset

FORMAT = 1


@dataclass(frozen=True)
class Member:
    """A network that may answer.

    Attributes:
        folder: Where it lies.
        card: What it is.
        confidence: What is known of it; None for a network that was not calibrated.
    """

    folder: Path
    card: ModelCard
    confidence: Confidence | None

    def uses(self, available: Subset) -> Subset | None:
        """What it would look at of the sequences at hand; None where they are not enough."""
        common = tuple(sequence for sequence in self.card.sequences if sequence in available)
        return common if common and (self.card.any_subset or common == self.card.sequences) else None

    def dice(self, subset: Subset) -> dict[str, dict[str, float]]:
        """Region or "mean" -> case -> Dice on cases it did not learn from; empty where it was not measured."""
        table = {} if self.confidence is None else self.confidence.dice(format_subset(subset))
        return table if table.get("mean") else {}


@dataclass(frozen=True)
class Choice:
    """The network that answers.

    Attributes:
        member: It.
        subset: What it looks at.
        is_exact: Whether it was trained for all of the sequences at hand.
        expected: Mean Dice of the three regions over the cases it was measured on; n is 0 where there are none.
        passed_over: Networks that would have answered too.
    """

    member: Member
    subset: Subset
    is_exact: bool
    expected: Interval
    passed_over: tuple[str, ...]

    def describe(self, available: Subset) -> str:
        """One line for the user."""
        name, seen = self.member.folder.resolve().name, format_subset(self.subset)
        why = "for any subset" if self.member.card.any_subset else f"trained for {seen}"
        why = why if self.is_exact else f"none is for {format_subset(available)}; best for less"
        e = self.expected
        if not e.n:
            return f"{name} answers from {seen} ({why})"
        return f"{name} answers from {seen} ({why}): mean Dice {e.text(2)} on {e.n} cases"

    def to_plain(self) -> dict[str, Any]:
        """For the manifest of a mask."""
        e = self.expected
        measured = (
            {"mean": round(e.mean, 4), "low": round(e.low, 4), "high": round(e.high, 4), "n": e.n} if e.n else None
        )
        return {
            "subset": format_subset(self.subset),
            "trained_for_exactly_these": self.is_exact,
            "mean_dice": measured,
            "passed_over": list(self.passed_over),
        }


def read_members(model: Path) -> tuple[Member, ...]:
    """The networks of a model folder.

    Raises:
        MindgapError: It holds none, or one is damaged.
    """
    if (model / MODEL_CARD).is_file() or not (model / MODELS).is_file():
        return (_member(model),)
    index = read_json(model / MODELS)
    if index.get("format") != FORMAT:
        raise MindgapError(f"{model / MODELS} has format {index.get('format')}; this version reads {FORMAT}.")
    members = []
    for name, sha256 in index["members"].items():
        member = _member(model / MEMBERS / name)
        if read_card(member.folder)[1] != sha256:
            raise MindgapError(f"{member.folder} is not the network {MODELS} speaks of: run `mindgap bundle` again.")
        members.append(member)
    return tuple(members)


def choose(members: Sequence[Member], case_id: str, available: Subset) -> Choice:
    """Pick the network that answers for the sequences at hand.

    One trained for exactly these comes first; among several, and where there is none, the highest mean Dice of WT, TC
    and ET on the cases they were measured on decides. That the best of several is shown makes its Dice look a little
    better than it is.

    Args:
        members: Of a model folder.
        case_id: Name for the message.
        available: What the case has.

    Raises:
        InputError: None fits; the message lists what each would need.
    """
    fitting = [(member, used) for member in members if (used := member.uses(available)) is not None]
    if not fitting:
        wanted = "; ".join(f"{member.folder.resolve().name} needs {_needs(member.card)}" for member in members)
        raise InputError(
            case=case_id,
            expected=f"the sequences of a network ({wanted})",
            found=format_subset(available),
            mend="add what one of them needs, or name another model",
        )
    exact = [pair for pair in fitting if pair[1] == available]
    scored = [(bootstrap_mean(member.dice(used).get("mean", {})), member, used) for member, used in exact or fitting]
    expected, member, used = max(scored, key=lambda entry: entry[0].mean if entry[0].n else -1.0)
    others = tuple(other.folder.name for other, _ in fitting if other is not member)
    return Choice(member, used, bool(exact), expected, others)


@dataclass(frozen=True)
class Answering:
    """The network that answers for a case.

    Attributes:
        folder: Of the network.
        confidence: What is known of it; None for one that was not calibrated.
        choice: Why it answers, where it is one of several.
    """

    folder: Path
    confidence: Confidence | None = None
    choice: Choice | None = None


def answering(model: Path, case_id: str, available: Subset, say: Say = mute) -> Answering:
    """The network of a model folder that answers; one that is alone and does not fit is refused by the predictor.

    Args:
        model: Run folder, or model folder of one network or several.
        case_id: Name for the message.
        available: What the case has.
        say: Takes one line about which network answers and how well, and one where nothing is known of it.

    Raises:
        InputError: None of several networks fits.
        MindgapError: What is known is of other weights.
    """
    members = read_members(model)
    if len(members) == 1 and members[0].uses(available) is None:
        return Answering(model)  # the predictor says what this network needs
    choice = choose(members, case_id, available)
    if len(members) > 1 or choice.expected.n:
        say(choice.describe(available))
    member = choice.member
    if member.confidence is None:
        say(f"no estimate of reliability: {member.folder} was not calibrated (mindgap calibrate)")
    return Answering(member.folder, member.confidence, choice if len(members) > 1 else None)


def joint_card(model: Path) -> ModelCard:
    """What a model folder can use: the card of its network; of several, all their sequences, in any number."""
    members = read_members(model)
    if len(members) == 1:
        return members[0].card
    joint = make_subset(sequence for member in members for sequence in member.card.sequences)
    return replace(members[0].card, sequences=joint, any_subset=True)


def bundle(runs: Sequence[Path], out: Path) -> tuple[Member, ...]:
    """Put networks into one model folder, with what is known of each.

    Args:
        runs: Run folders, calibrated on the same cases.
        out: The model folder; it must not exist or be empty.

    Raises:
        SettingError: Two have one name, one was not calibrated, or they were calibrated on different cases; or the
            place is taken.
    """
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        raise SettingError("two runs have the same name: rename a folder, since members are called after them.")
    if out.is_dir() and any(out.iterdir()):
        raise SettingError(f"{out} is not empty: choose another folder for the set.")
    members = {name: _member(run) for name, run in zip(names, runs, strict=True)}
    _check_comparable(members)
    for name, member in members.items():
        for file in (WEIGHTS, CONFIDENCE, MODEL_CARD):
            with write_aside(out / MEMBERS / name / file) as aside:
                shutil.copyfile(member.folder / file, aside)
        if (member.folder / QUANTISED).is_dir():
            shutil.copytree(member.folder / QUANTISED, out / MEMBERS / name / QUANTISED)
        if (member.folder / RECORD).is_file():
            shutil.copyfile(member.folder / RECORD, out / MEMBERS / name / RECORD)
    index = {name: read_card(out / MEMBERS / name)[1] for name in members}
    write_json(out / MODELS, {"format": FORMAT, "members": index})  # last: it says that the set is whole
    return read_members(out)


def _member(folder: Path) -> Member:
    card, sha256 = read_card(folder)
    return Member(folder, card, read_confidence(folder, sha256))


def _needs(card: ModelCard) -> str:
    return f"any of {', '.join(map(str, card.sequences))}" if card.any_subset else format_subset(card.sequences)


def _check_comparable(members: Mapping[str, Member]) -> None:
    """Scores of networks on different cases do not say which is better.

    Raises:
        SettingError: They cannot be compared.
    """
    cases: dict[str, frozenset[str]] = {}
    for name, member in members.items():
        if member.confidence is None:
            raise SettingError(
                f"{member.folder} was not calibrated, so nothing says when it is the best: run "
                f"`mindgap calibrate {member.folder}` first."
            )
        cases[name] = frozenset(row.case for row in member.confidence.observed)
    first, *rest = cases
    for name in rest:
        if cases[name] != cases[first]:
            raise SettingError(
                f"{first} and {name} were calibrated on different cases ({len(cases[first])} and {len(cases[name])}), "
                "so their Dice cannot be compared: calibrate all on the same cohort."
            )
