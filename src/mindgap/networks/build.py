"""Architectures by name: the one place that turns plain numbers into networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from mindgap.errors import SettingError
from mindgap.networks.aligned import AlignedNetwork, AnchorWeights, Weighting
from mindgap.networks.dynunet import DynUNetBackbone
from mindgap.networks.encoders import JointEncoder, NormalHeads, SequenceEncoders, SharedEncoder
from mindgap.networks.ensemble import Ensemble
from mindgap.networks.fused import FusedNetwork
from mindgap.networks.fused_unet import FusedUNet
from mindgap.networks.masked import MaskedNetwork
from mindgap.networks.norms import BrainNorm, LatentBatchNorm
from mindgap.networks.smunet import SmuPath
from mindgap.networks.vnet import VNet


def build_vnet(*, channels_in: int, width: int = 16) -> VNet:
    """A plain VNet on the concatenated sequences."""
    return VNet(channels_in, width=width)


def build_smunet(*, channels_in: int, width: int = 16) -> SmuPath:
    """One path of SMU-Net on the concatenated sequences."""
    return SmuPath(channels_in, width=width)


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
    backbone: Literal["vnet", "smunet"] = "vnet",
) -> AlignedNetwork:
    """The aligned teacher with its predictor; ``weighted`` alone is softmax weights that the predictor sees."""
    norm = BrainNorm(latent_channels) if latent_norm == "brain" else LatentBatchNorm(sequences, latent_channels)
    return AlignedNetwork(
        ENCODERS[encoder](sequences, channels=latent_channels, norm=norm),
        BACKBONES[backbone](sequences * latent_channels, width=width),
        sequences=sequences,
        weights=weights or ("softmax" if weighted else "none"),
        weighting=weighting or ("always" if weighted else "never"),
        heads=NormalHeads(sequences, latent_channels) if heads else None,
    )


def build_fused(*, sequences: int, latent_channels: int = 4, width: int = 16) -> FusedNetwork:
    """Encoders per sequence, mean and variance of what is present, a VNet."""
    encoders = SequenceEncoders(sequences, channels=latent_channels)
    return FusedNetwork(encoders, VNet(2 * latent_channels, width=width), sequences=sequences)


def build_ensemble(*, count: int, architecture: str, arguments: dict[str, Any]) -> Ensemble:
    """``count`` networks of one kind, averaged."""
    return Ensemble(build_network(architecture, arguments) for _ in range(count))


def build_masked(*, sequences: int, width: int = 16, maps: bool = True) -> MaskedNetwork:
    """A VNet on filled sequences and, with ``maps``, what says which are present."""
    return MaskedNetwork(VNet(sequences * (2 if maps else 1), width=width), maps=maps)


def build_dynunet(*, sequences: int, width: int = 16) -> MaskedNetwork:
    """MONAI's DynUNet on filled sequences."""
    return MaskedNetwork(DynUNetBackbone(sequences, width=width), maps=False)


ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "per_sequence": SequenceEncoders,
    "shared": SharedEncoder,
    "joint": JointEncoder,
}
BACKBONES: dict[str, Callable[..., nn.Module]] = {"vnet": VNet, "smunet": SmuPath}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vnet": build_vnet,
    "aligned": build_aligned,
    "smunet": build_smunet,
    "fused": build_fused,
    "fused_unet": FusedUNet,
    "ensemble": build_ensemble,
    "masked": build_masked,
    "dynunet": build_dynunet,
}


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
