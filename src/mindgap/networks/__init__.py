"""Architectures by name: the one place that turns plain numbers into networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mindgap.errors import SettingError
from mindgap.networks.aligned import AlignedNetwork, AnchorWeights, Weighting
from mindgap.networks.encoders import (
    BrainNorm,
    JointEncoder,
    LatentBatchNorm,
    NormalHeads,
    SequenceEncoders,
    SharedEncoder,
)
from mindgap.networks.vnet import VNet


def build_vnet(*, channels_in: int, width: int = 16) -> VNet:
    """A plain VNet on the concatenated sequences."""
    return VNet(channels_in, width=width)


def build_aligned(
    *,
    sequences: int,
    latent_channels: int = 4,
    width: int = 16,
    weighted: bool = True,
    weights: AnchorWeights | None = None,
    weighting: Weighting | None = None,
    encoder: str = "per_sequence",
    latent_norm: str = "brain",
    heads: bool = False,
) -> AlignedNetwork:
    """The aligned teacher with its VNet predictor; ``weighted`` alone is softmax weights that the predictor sees."""
    norm = BrainNorm(latent_channels) if latent_norm == "brain" else LatentBatchNorm(sequences, latent_channels)
    return AlignedNetwork(
        ENCODERS[encoder](sequences, channels=latent_channels, norm=norm),
        VNet(sequences * latent_channels, width=width),
        sequences=sequences,
        weights=weights or ("softmax" if weighted else "none"),
        weighting=weighting or ("always" if weighted else "never"),
        heads=NormalHeads(sequences, latent_channels) if heads else None,
    )


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "per_sequence": SequenceEncoders,
    "shared": SharedEncoder,
    "joint": JointEncoder,
}
NETWORKS: dict[str, Callable[..., nn.Module]] = {"vnet": build_vnet, "aligned": build_aligned}


def build_network(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network from its name and plain arguments.

    Raises:
        SettingError: The name is unknown or the arguments are not those of the architecture.
    """
    if architecture not in NETWORKS:
        raise SettingError(f"network {architecture!r} is unknown: choose one of {', '.join(NETWORKS)}.")
    try:
        return NETWORKS[architecture](**arguments)
    except TypeError as error:
        raise SettingError(f"network {architecture!r} does not take {arguments}: {error}.") from error
