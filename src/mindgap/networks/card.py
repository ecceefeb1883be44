"""What a model folder says of its network (model.json), without torch: a network in OpenVINO needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, sha256_of
from mindgap.regions import Head
from mindgap.sequences import Subset, subset_from_names

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
MODEL_CARD, WEIGHTS = "model.json", "model.safetensors"
BEFORE = "before"
"""Key of the card of the weights that are being replaced."""
Decision = Literal["most_probable", "expected_dice"]
"""How the probabilities of a network become a mask (``inference.decision``)."""


@dataclass(frozen=True)
class ModelCard:
    """Enough to rebuild a network for inference without the settings it was trained with.

    Attributes:
        architecture: Name in ``mindgap.networks.build.NETWORKS``.
        arguments: Plain arguments of the builder.
        sequences: What the input columns are.
        preparation: How a case is prepared, as plain values.
        crop: Side of the training crops in voxels; the window of a tiled prediction.
        method: What trained it.
        any_subset: Whether it takes every non-empty subset of ``sequences``, or needs all of them.
        decision: How its probabilities become a mask (``inference.decision``).
        coverage: How it was measured and is meant to be applied: in tiles, or over the whole brain in one pass.
    """

    architecture: str
    arguments: dict[str, Any]
    sequences: Subset
    preparation: dict[str, Any]
    crop: int
    method: str
    any_subset: bool = False
    decision: Decision = "most_probable"
    coverage: Literal["tiles", "whole"] = "tiles"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose weights are those its card speaks of; they are loaded when they are first asked for.

    Attributes:
        folder: Where it lies.
        card: How the network is built and fed.
        sha256: Of the weights.
    """

    folder: Path
    card: ModelCard
    sha256: str

    @cached_property
    def network(self) -> nn.Module:
        """In eval mode, on the CPU.

        Raises:
            MindgapError: As :func:`mindgap.networks.weights.load_network`; or the weights are others by now.
        """
        from mindgap.networks.weights import load_network

        loaded = load_network(self.folder)
        if loaded.sha256 != self.sha256:
            raise MindgapError(
                f"{self.folder} was given other weights while it was in use (SHA-256 {loaded.sha256[:12]}..., before "
                f"{self.sha256[:12]}...): begin again, best when its training has ended."
            )
        return loaded.network


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights and its card."""

    network: nn.Module
    card: ModelCard
    folder: Path
    sha256: str


Trained = ModelFolder | TrainedNetwork
"""What an engine is made of: both have the network, its card, its folder and the hash of its weights."""


def open_model(folder: Path) -> ModelFolder:
    """Read the card of a model folder and hold the hash of the weights against it.

    Whether they fit the architecture and are finite is seen when they are loaded: by torch, when they are translated,
    and by the export that an int8 network comes from.

    Raises:
        MindgapError: As :func:`read_card`; weights are missing or damaged.
    """
    card, expected = read_card(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise MindgapError(f"{path} is missing: copy the whole folder of the run.")
    found = sha256_of(path)
    if found != expected:
        raise MindgapError(f"{path} is damaged (SHA-256 {found[:12]}..., expected {expected[:12]}...): copy it again.")
    return ModelFolder(folder, card, found)


def read_card(folder: Path) -> tuple[ModelCard, str]:
    """Read model.json.

    Returns:
        The card and the SHA-256 the weights have to have.

    Raises:
        MindgapError: The folder holds no model, half of one, one of a newer format, or one of other sequences.
    """
    path = folder / MODEL_CARD
    if not path.is_file():
        raise MindgapError(
            f"{folder} holds no trained model ({MODEL_CARD} is missing): name the folder of a finished run."
        )
    value = standing_card(folder)
    if value.get("format") != FORMAT:
        raise MindgapError(f"{path} has format {value.get('format')}; this version reads {FORMAT}. Update mindgap.")
    try:
        card = ModelCard(
            architecture=value["architecture"],
            arguments=value["arguments"],
            sequences=subset_from_names(value["sequences"]),
            preparation=value["preparation"],
            crop=value["crop"],
            method=value["method"],
            any_subset=value.get("any_subset", False),
            decision=value.get("decision", "most_probable"),
            coverage=value.get("coverage", "tiles"),
        )
        return card, value["sha256"]
    except KeyError as error:
        raise MindgapError(f"{path} lacks {error}: copy the whole folder of the run again.") from error
    except SettingError as error:
        raise MindgapError(f"{path}: {error} Copy the whole folder of the run again, or update mindgap.") from error


def head_of(architecture: str, arguments: Mapping[str, Any]) -> Head:
    """How the logits of a network turn into probabilities, which decides how its masks are made."""
    if architecture == "ensemble":
        return head_of(arguments["architecture"], arguments["arguments"])
    return "sigmoid" if "smunet" in (architecture, arguments.get("backbone")) else "softmax"


def standing_card(folder: Path) -> Any:
    """What model.json says of the weights beside it; of a card that speaks of two models, the one that lies there."""
    value = read_json(folder / MODEL_CARD)
    before = value.get(BEFORE)
    weights = folder / WEIGHTS
    if before is None or not weights.is_file():
        return value
    return before if sha256_of(weights) == before.get("sha256") else {k: v for k, v in value.items() if k != BEFORE}
