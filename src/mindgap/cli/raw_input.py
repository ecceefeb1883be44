"""Raw scans at the command line: the flags, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mindgap.data.raw import RawOptions
    from mindgap.sequences import Sequence

_CHOSEN = "auto"


@dataclass(frozen=True)
class RawFlags:
    """What only raw scans take.

    Attributes:
        raw: The scans lie on different grids, are not registered, or show the skull.
        already_stripped: Raw scans without a skull: the brain is what lies above 0.
        brain_mask: File with the brain of one patient, on the grid of one of the raw scans.
        hd_bet: The program hd-bet, which finds the brain; the one on PATH is found.
        reference: The sequence the others are laid upon (T1, T1ce, T2, FLAIR); the finest grid if auto.
        native: The sequence whose grid the mask takes; the reference if auto.
        n4: Correct the bias field of raw scans.
    """

    raw: bool = False
    already_stripped: bool = False
    brain_mask: Path | None = None
    hd_bet: Path | None = None
    reference: str = _CHOSEN
    native: str = _CHOSEN
    n4: bool = False

    def options(self) -> RawOptions | None:
        """What is to be done; None where scans are not raw.

        Raises:
            SettingError: A flag of raw scans without --raw, or no way to find the brain.
        """
        from mindgap.errors import SettingError

        if not self.raw:
            if self != RawFlags():
                raise SettingError(
                    "--already-stripped --brain-mask --hd-bet --reference --native --n4 are for raw scans: add --raw."
                )
            return None
        from mindgap.data.brain import choose_brain
        from mindgap.data.raw import RawOptions

        brain = choose_brain(already_stripped=self.already_stripped, mask=self.brain_mask, hd_bet=self.hd_bet)
        return RawOptions(brain, _sequence(self.reference), _sequence(self.native), self.n4)


def _sequence(word: str) -> Sequence | None:
    from mindgap.errors import SettingError
    from mindgap.sequences import parse_subset

    if word == _CHOSEN:
        return None
    named = parse_subset(word)
    if len(named) > 1:
        raise SettingError(f"{word} names {len(named)} sequences: --reference and --native take one.")
    return named[0]
