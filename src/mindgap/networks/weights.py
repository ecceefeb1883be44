"""A trained network on disk: model.json (how to rebuild and feed it) and model.safetensors (its numbers)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, sha256_of, write_aside, write_json
from mindgap.networks import build_network
from mindgap.sequences import Subset, make_subset, sequence_from_alias

FORMAT = 1
MODEL_CARD, WEIGHTS = "model.json", "model.safetensors"
_BEFORE = "before"
Decision = Literal["most_probable", "expected_dice"]
"""How the probabilities of a network become a mask (``inference.decision``)."""


@dataclass(frozen=True)
class ModelCard:
    """Enough to rebuild a network for inference without the settings it was trained with.

    Attributes:
        architecture: Name in ``NETWORKS``.
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
class TrainedNetwork:
    """A network with its weights and its card."""

    network: nn.Module
    card: ModelCard
    folder: Path
    sha256: str


def save_network(folder: Path, network: nn.Module, card: ModelCard, *, half: bool = False) -> None:
    """Write model.safetensors and, last, model.json (whose presence says that the model is whole).

    With ``half`` weights are written in float16, which takes half the space; they are computed with in float32 again.
    What float16 cannot hold stays float32: running averages of normalisations, whose variances may lie above its
    largest number, 65,504, and every tensor with such a number in it.

    Two files cannot be renamed at once. While the weights of a standing model are replaced its card speaks of both
    models, so that a kill at any moment leaves one of them whole.
    """
    # cloned: some networks (DynUNet) hold a layer under two names, and the format keeps no memory that is shared
    learnt = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    tensors = {
        name: (tensor.half() if half and name in learnt and _fits_half(tensor) else tensor)
        .detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }
    content = save(tensors)  # save_file would make it readable for its owner only
    value = {
        "format": FORMAT,
        "architecture": card.architecture,
        "arguments": card.arguments,
        "sequences": [str(sequence) for sequence in card.sequences],
        "preparation": card.preparation,
        "crop": card.crop,
        "method": card.method,
        "any_subset": card.any_subset,
        "decision": card.decision,
        "coverage": card.coverage,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with write_aside(folder / WEIGHTS) as aside:
        aside.write_bytes(content)
        before = _card_before(folder)
        if before is not None:
            write_json(folder / MODEL_CARD, {**value, _BEFORE: before})
    write_json(folder / MODEL_CARD, value)


def _fits_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.abs() <= torch.finfo(torch.float16).max).all())


def read_card(folder: Path) -> tuple[ModelCard, str]:
    """Read model.json.

    Returns:
        The card and the SHA-256 the weights have to have.

    Raises:
        MindgapError: The folder holds no model, half of one, or one of a newer format.
    """
    path = folder / MODEL_CARD
    if not path.is_file():
        raise MindgapError(
            f"{folder} holds no trained model ({MODEL_CARD} is missing): name the folder of a finished run."
        )
    value = _standing(folder)
    if value.get("format") != FORMAT:
        raise MindgapError(f"{path} has format {value.get('format')}; this version reads {FORMAT}. Update mindgap.")
    try:
        sequences = [sequence_from_alias(name) for name in value["sequences"]]
        card = ModelCard(
            architecture=value["architecture"],
            arguments=value["arguments"],
            sequences=make_subset(sequence for sequence in sequences if sequence is not None),
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


def load_network(folder: Path) -> TrainedNetwork:
    """Rebuild a trained network, in eval mode, on the CPU.

    Raises:
        MindgapError: Weights are missing, damaged, not finite, or of another architecture than the card says.
    """
    card, expected = read_card(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise MindgapError(f"{path} is missing: copy the whole folder of the run.")
    found = sha256_of(path)
    if found != expected:
        raise MindgapError(f"{path} is damaged (SHA-256 {found[:12]}..., expected {expected[:12]}...): copy it again.")
    try:
        network = build_network(card.architecture, card.arguments)
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError, SettingError) as error:
        raise SettingError(
            f"{path} does not fit architecture {card.architecture} {card.arguments} of {MODEL_CARD}: {error} "
            "Copy the whole folder of the run again, or update mindgap."
        ) from error
    spoilt = [name for name, value in network.state_dict().items() if not bool(value.isfinite().all())]
    if spoilt:
        raise MindgapError(
            f"{path} holds numbers that are not finite ({', '.join(spoilt[:3])}): parts of the network would be "
            "silent. Train it again, or take an earlier copy."
        )
    return TrainedNetwork(network.eval(), card, folder, found)


def _standing(folder: Path) -> Any:
    """What model.json says of the weights beside it; of a card that speaks of two models, the one that lies there."""
    value = read_json(folder / MODEL_CARD)
    before = value.get(_BEFORE)
    weights = folder / WEIGHTS
    if before is None or not weights.is_file():
        return value
    return before if sha256_of(weights) == before.get("sha256") else {k: v for k, v in value.items() if k != _BEFORE}


def _card_before(folder: Path) -> Any | None:
    try:
        return _standing(folder)
    except MindgapError:
        return None  # there is none, or a damaged one, which need not be kept
