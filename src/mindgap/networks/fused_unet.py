"""A small U-Net for every subset: light encoders per sequence, fused by mean and variance, heavy work at half size."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import Output, brain_of, fill_absent
from mindgap.networks.aligned import shared_brain
from mindgap.networks.batchnorm import BatchNorm
from mindgap.networks.blocks import Convolution
from mindgap.networks.encoders import block_diagonal
from mindgap.networks.layout import hand_over
from mindgap.networks.norms import BrainNorm
from mindgap.regions import CLASS_COUNT
from mindgap.shapes import Bool, Float

LEVELS = (1, 4, 8, 8)
"""Channels at full, half, quarter and eighth resolution, in units of the width."""


class FusedUNet(nn.Module):
    r"""Latents per sequence, mean and variance of what is present, then a residual U-Net.

    Every sequence goes through an encoder of its own: a 3x3x3 convolution to C channels, leaky ReLU, a 1x1x1
    convolution, and :class:`mindgap.networks.encoders.BrainNorm`. Mean and variance of the latents of what is present
    look the same whatever is present; with ``each``, the latents of every sequence stand beside them (0 where it is
    absent), so that nothing that a complete case tells is averaged away. All heavy work is done at half resolution and
    below; one convolution at full resolution decides the voxels.

    Args:
        sequences: J.
        latent_channels: C.
        width: w; the U-Net has w, 4w, 8w and 8w channels at full, half, quarter and eighth resolution.
        each: Whether the U-Net also sees every present sequence by itself.
        own_share: Of :class:`mindgap.networks.encoders.BrainNorm`.
        shared_norm: Whether latents are normalised with statistics shared by the sequences, or each with its own.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> Output.logits (B, 4, i, j, k), J latents (B, C, i, j, k), the
        features "feature" (B, w, i, j, k), "bottleneck", and "brain" as :class:`mindgap.networks.fused.FusedNetwork`.
        Sides are multiples of 8.

    Reference:
        Mean and variance over what is present: Havaei et al., HeMIS, MICCAI 2016, https://arxiv.org/abs/1607.05194;
        residual U-Net: Isensee et al., nnU-Net, Nature Methods 2021.
        We differ: latents normalised over brain voxels (with statistics shared by the sequences or their own), biased
        variance (of one sequence it is 0), little work at full resolution.
    """

    def __init__(
        self,
        sequences: int,
        *,
        latent_channels: int = 8,
        width: int = 8,
        each: bool = True,
        own_share: float = 0.0,
        shared_norm: bool = True,
    ) -> None:
        super().__init__()
        count, fine = sequences, latent_channels
        self.sequences, self.each = sequences, each
        self.embed = nn.Conv3d(count, count * fine, kernel_size=3, padding=1, groups=count)
        self.latent = nn.Conv3d(count * fine, count * fine, kernel_size=1, groups=count, bias=False)
        self.norm = BrainNorm(fine, own_share=own_share, sequences=None if shared_norm else count)
        channels = [width * level for level in LEVELS]
        fused = 2 * fine + (fine * count if each else 0)
        self.down = nn.ModuleList(_down(a, b) for a, b in pairwise([fused, *channels[1:]]))
        self.encode = nn.ModuleList(_Residual(c) for c in channels[1:])
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairwise(channels))
        skips = [2 * fine, *channels[1:-1]]
        self.decode = nn.ModuleList(_Unit(c + s, c) for c, s in zip(channels[:-1], skips, strict=True))
        self.head = nn.Conv3d(width, CLASS_COUNT, kernel_size=1)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Fuse what is present and segment."""
        image = fill_absent(image, present)
        brains = brain_of(image)
        embedded = F.leaky_relu(F.conv3d(image, self._dense(self.embed), self.embed.bias, padding=1), 0.01)
        latents = self.norm(F.conv3d(embedded, self._dense(self.latent)), brains)  # B JC i j k, 0 where absent
        fused = self._fuse(latents, present)
        maps = hand_over(torch.cat([fused, latents], dim=1) if self.each else fused, self.down)
        skips = [maps[:, : fused.shape[1]]]
        for down, encode in zip(self.down, self.encode, strict=True):
            maps = encode(down(maps))
            skips.append(maps)
        bottleneck = skips.pop()
        for up, decode in zip(reversed(self.up), reversed(self.decode), strict=True):  # from the coarsest
            maps = decode(torch.cat([up(maps), skips.pop()], dim=1))
        features = {"feature": maps, "bottleneck": bottleneck, "brain": shared_brain(brains.split(1, dim=1), present)}
        return Output(self.head(maps), features=features, latents=latents.chunk(self.sequences, dim=1))

    def _fuse(self, latents: Float[Tensor, "B JC i j k"], present: Bool[Tensor, "B J"]) -> Float[Tensor, "B F i j k"]:
        """Mean and variance over the present sequences, channel by channel; absent latents are 0."""
        shown = present.to(latents.device, latents.dtype, non_blocking=True)
        count = shown.sum(1)[:, None, None, None, None]
        parts = latents.unflatten(1, (self.sequences, -1))  # B J C i j k
        mean = parts.sum(1) / count
        return torch.cat([mean, parts.square().sum(1) / count - mean.square()], dim=1)

    def _dense(self, layer: nn.Conv3d) -> Tensor:
        """Weights of a grouped convolution as of a dense one with 0 between groups, which is faster in bf16."""
        return block_diagonal(layer.weight, self.sequences)


class _Unit(nn.Module):
    """Conv3d 3x3x3 -> BatchNorm -> leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convolution = Convolution(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        self.norm = BatchNorm(channels_out)

    def forward(self, maps: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(maps)), 0.01)


class _Residual(nn.Module):
    """Two units, the second added to what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Unit(channels, channels)
        self.second = Convolution(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = BatchNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        return F.leaky_relu(maps + self.norm(self.second(self.first(maps))), 0.01)


def _down(channels_in: int, channels_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, kernel_size=2, stride=2, bias=False),
        BatchNorm(channels_out),
        nn.LeakyReLU(0.01),
    )
