"""The convolution unit every network here is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mindgap.networks.batchnorm import BatchNorm


def convolutions(count: int, channels_in: int, channels_out: int) -> nn.Sequential:
    """``count`` times [Conv3d 3x3x3, padding 1, no bias -> BatchNorm -> ReLU].

    The bias is left out because the normalisation that follows removes it.

    Args:
        count: How many units.
        channels_in: Channels of the first input.
        channels_out: Channels of every output.
    """
    layers: list[nn.Module] = []
    for index in range(count):
        source = channels_in if index == 0 else channels_out
        layers += [
            Convolution(source, channels_out, kernel_size=3, padding=1, bias=False),
            BatchNorm(channels_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def downsampling(channels_in: int, channels_out: int) -> nn.Sequential:
    """Halve each axis: [Conv3d 2x2x2, stride 2 -> BatchNorm -> ReLU]."""
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel_size=2, stride=2),
        BatchNorm(channels_out),
        nn.ReLU(inplace=True),
    )


def upsampling(channels_in: int, channels_out: int) -> nn.Sequential:
    """Double each axis: [ConvTranspose3d 2x2x2, stride 2 -> BatchNorm -> ReLU]."""
    return nn.Sequential(
        nn.ConvTranspose3d(channels_in, channels_out, kernel_size=2, stride=2),
        BatchNorm(channels_out),
        nn.ReLU(inplace=True),
    )


def channels_last(network: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Move a network to a device and lay its convolutions out with channels last.

    In fp32 on a CPU this trains 1.3-1.5 times faster; bf16 convolutions need it to be fast at all.
    """
    if device is not None:
        network = network.to(device)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload, no-any-return]


class Convolution(nn.Conv3d):
    """A Conv3d whose weight gradient is right in bf16 on the CPU, too.

    For maps with a side of two voxels the bf16 kernel of torch 2.13's CPU library leaves the weight gradient of a 3x3x3
    convolution unwritten: what stood in memory before comes back, even NaN. Such maps (crops of 16 or 32 voxels have
    them deep down) are computed in fp32; they are tiny.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the parent's argument
        """Convolve."""
        if input.device.type == "cpu" and 2 in input.shape[2:] and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(input.float())
        return super().forward(input)
