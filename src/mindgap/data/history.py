"""Which cases a trained network has learnt from, by itself and through the networks it learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindgap.errors import MindgapError
from mindgap.files import read_json
from mindgap.runfiles import CONFIDENCE, MANIFEST


@dataclass(frozen=True)
class History:
    """Cases that are no news to a network.

    Attributes:
        learnt: Cases its weights were fitted to, or those of its teacher, or of the network it started from.
        chose: Cases that chose among the states of one of these.
    """

    learnt: frozenset[str] = frozenset()
    chose: frozenset[str] = frozenset()

    def __or__(self, other: History) -> History:
        return History(self.learnt | other.learnt, self.chose | other.chose)

    @property
    def known(self) -> frozenset[str]:
        """Both: cases that cannot judge the network."""
        return self.learnt | self.chose

    def to_plain(self) -> dict[str, list[str]]:
        """As a manifest holds it."""
        return {"train": sorted(self.learnt), "validation": sorted(self.chose)}


def cases_of(folder: Path) -> dict[str, Any]:
    """The cases that a run names in its manifest: those it learnt from, was chosen by, and is to be judged by.

    Args:
        folder: Of the run.

    Raises:
        MindgapError: The manifest is missing, damaged, or not that of a training.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    cases = manifest.get("cases") if isinstance(manifest, dict) else None
    if not isinstance(cases, dict):
        raise MindgapError(
            f"{path} does not say which cases the network learnt from: copy the whole folder of the run again, or "
            "train anew."
        )
    return cases


def history_of(folder: Path) -> History:
    """The history of the network in a run folder, or of one that comes with the package.

    A model folder that tells nothing of its run has an empty one.

    Args:
        folder: With the manifest of the run; without one, what was measured by cross-validation names the cases that
            the members have learnt.

    Raises:
        MindgapError: The manifest names no cases.
    """
    if (folder / MANIFEST).is_file():
        cases = cases_of(folder)
        return _of(cases) | _of(cases.get("before", {}))
    if (folder / CONFIDENCE).is_file():
        known = read_json(folder / CONFIDENCE)
        if known["part"] == "cross-validation":
            return History(frozenset(row["case"] for row in known["observed"]))
    return History()


def together(folders: Iterable[Path]) -> History:
    """What several networks have learnt from."""
    history = History()
    for folder in folders:
        history |= history_of(folder)
    return history


def _of(cases: dict[str, list[str]]) -> History:
    return History(frozenset(cases.get("train", ())), frozenset(cases.get("validation", ())))
