"""What acquiring an absent sequence would bring: paired differences of Dice on cases that have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindgap.errors import SettingError
from mindgap.evaluation.statistics import Interval, paired_difference
from mindgap.inference.selection import Choice, Member, choose
from mindgap.regions import REGIONS
from mindgap.sequences import SEQUENCES, Subset, format_subset, make_subset
from mindgap.sequences import Sequence as MriSequence


@dataclass(frozen=True)
class Advice:
    """What one more sequence would bring.

    Attributes:
        sequence: The absent one.
        change: WT, TC, ET and "mean" -> mean change of Dice with its 95 % bootstrap interval over cases; it may be
            negative.
        network: The network that would answer then.
    """

    sequence: MriSequence
    change: dict[str, Interval]
    network: str


def advise(members: Sequence[Member], case_id: str, available: Subset) -> tuple[Choice, list[Advice]]:
    r"""The expected change of Dice from acquiring each absent sequence, the most first.

    Over the calibration cases: $\frac1n\sum_i \left[D_i(S\cup\{s\}) - D_i(S)\right]$, each side by the network that
    would answer. It is a mean over those cases and says nothing of what is special in this one.

    Args:
        members: Networks of a model folder.
        case_id: Name for the message.
        available: S, what the case has.

    Returns:
        Who answers now, and the advice; sequences no network can use bring nothing and are left out.

    Raises:
        InputError: No network fits the case.
        SettingError: The network was not measured on what the case has.
    """
    now = choose(members, case_id, available)
    before = now.member.dice(now.subset)
    if not before:
        raise SettingError(
            f"{now.member.folder} was not measured on {format_subset(now.subset)}: run "
            f"`mindgap calibrate {now.member.folder}` first."
        )
    found = []
    for sequence in SEQUENCES:
        if sequence in available or all(sequence not in member.card.sequences for member in members):
            continue
        then = choose(members, case_id, make_subset([*available, sequence]))
        after = then.member.dice(then.subset)
        if after:
            regions = (*map(str, REGIONS), "mean")
            change = {region: paired_difference(after[region], before[region]) for region in regions}
            found.append(Advice(sequence, change, then.member.folder.resolve().name))
    return now, sorted(found, key=lambda advice: -advice.change["mean"].mean)
