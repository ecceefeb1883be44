"""Networks that come with the package, so that a mask needs no training: where they lie and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path

from mindgap.errors import SettingError
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.inference.confidence import Confidence, read_confidence
from mindgap.networks.card import WEIGHTS, ModelCard, read_card
from mindgap.regions import REGIONS
from mindgap.sequences import format_subset

DEFAULT = "box"
"""The network that answers where none is named."""
CARD = "card.md"
"""What a person should know before using it."""


@dataclass(frozen=True)
class Shipped:
    """A network that comes with the package.

    Attributes:
        name: By which it is asked for.
        folder: Where it lies.
        card: How it is built and fed.
        sha256: Of its weights.
        bytes: Of its weights.
        confidence: What is known of it from cross-validation.
        text: Its model card, Markdown.
    """

    name: str
    folder: Path
    card: ModelCard
    sha256: str
    bytes: int
    confidence: Confidence | None
    text: str

    def dice(self, subset: str) -> dict[str, Interval]:
        """Region, or "mean" -> Dice over the cases of its cross-validation with its interval."""
        table = {} if self.confidence is None else self.confidence.dice(subset)
        return {name: bootstrap_mean(table.get(name, {})) for name in ("mean", *map(str, REGIONS))}

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        from mindgap.networks.build import build_network

        return sum(p.numel() for p in build_network(self.card.architecture, self.card.arguments).parameters())

    @property
    def complete(self) -> str:
        """The subset of all its sequences."""
        return format_subset(self.card.sequences)


def shipped() -> dict[str, Shipped]:
    """The networks of this installation by name."""
    return {path.name: describe(path) for path in sorted(_root().iterdir()) if (path / WEIGHTS).is_file()}


def describe(folder: Path) -> Shipped:
    """What lies in a model folder.

    Raises:
        MindgapError: It holds no network, or what is known is of another one.
    """
    card, sha256 = read_card(folder)
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    size = (folder / WEIGHTS).stat().st_size
    return Shipped(folder.name, folder, card, sha256, size, read_confidence(folder, sha256), text)


def model_folder(model: str | PathLike[str] | None) -> Path:
    """The folder a user means: a folder of theirs, a shipped network by name, or the one in the box.

    Args:
        model: Folder or name; None for :data:`DEFAULT`.

    Raises:
        SettingError: It is neither a folder nor the name of a network.
    """
    if model is not None and Path(model).exists():
        return Path(model)
    name = DEFAULT if model is None else str(model)
    inside = _root() / name
    if Path(name).name == name and (inside / WEIGHTS).is_file():
        return inside
    names = ", ".join(path.name for path in sorted(_root().iterdir()) if (path / WEIGHTS).is_file())
    raise SettingError(
        f"{name} is neither the folder of a finished `mindgap train` nor a network that comes with mindgap "
        f"({names or 'none does'}): check --model, or leave it out."
    )


def _root() -> Path:
    return Path(str(resources.files("mindgap.inference") / "models"))
