"""The weights of a trained network on disk: model.safetensors, beside the card (model.json, ``networks.card``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mindgap.errors import MindgapError, SettingError
from mindgap.files import write_aside, write_json
from mindgap.networks.build import build_network
from mindgap.networks.card import (
    BEFORE,
    FORMAT,
    MODEL_CARD,
    WEIGHTS,
    ModelCard,
    TrainedNetwork,
    open_model,
    standing_card,
)


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
            write_json(folder / MODEL_CARD, {**value, BEFORE: before})
    write_json(folder / MODEL_CARD, value)


def _fits_half(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.abs() <= torch.finfo(torch.float16).max).all())


def load_network(folder: Path) -> TrainedNetwork:
    """Rebuild a trained network, in eval mode, on the CPU.

    Raises:
        MindgapError: Weights are missing, damaged, not finite, or of another architecture than the card says.
    """
    model = open_model(folder)
    card, path = model.card, folder / WEIGHTS
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
    return TrainedNetwork(network.eval(), card, folder, model.sha256)


def _card_before(folder: Path) -> Any | None:
    try:
        return standing_card(folder)
    except MindgapError:
        return None  # there is none, or a damaged one, which need not be kept
