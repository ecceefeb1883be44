"""Small heads that methods train beside a segmenter and throw away afterwards."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.shapes import Float

_POOLED = 2
"""Side of the pooled map."""


class ContrastiveHead(nn.Module):
    r"""Embed a feature map: $g = W_2\,\mathrm{relu}(W_1\,\mathrm{flatten}(\mathrm{pool}(f)))$, of length 1.

    Args:
        channels: Channels of the feature map.

    Shapes:
        feature (B, channels, i, j, k) -> (B, 16), rows of length 1.

    Reference:
        Chen et al., Learning with Privileged Multimodal Knowledge for Unimodal Segmentation, IEEE TMI 2022.
        We differ: adaptive average pooling to 2x2x2. The release pools 40^3 with stride 1, which gives 1.1 million
        inputs per head; a stride of 40 (2x2x2 for an 80^3 crop) is surely meant.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels * _POOLED**3, 32, bias=False)
        self.embed = nn.Linear(32, 16, bias=False)

    def forward(self, feature: Float[Tensor, "B C i j k"]) -> Float[Tensor, "B E"]:
        """Pool, embed and normalise."""
        pooled = F.adaptive_avg_pool3d(feature, _POOLED).flatten(1)
        return F.normalize(self.embed(F.relu(self.hidden(pooled))), dim=1)


class StyleDiscriminator(nn.Module):
    """Guess from a style map which of SMU-Net's paths made it.

    Three times [Conv3d 4x4x4, stride 2, padding 1 -> LeakyReLU 0.2], then a 1x1x1 convolution and the mean over what is
    left. It is computed in float32: its maps are tiny.

    Args:
        channels: Channels of the style.
        width: Channels after the first convolution; they double twice.

    Shapes:
        style (B, channels, i, j, k) -> (B,), logits that a map is the missing path's.

    Reference:
        Azad et al., SMU-Net, MIDL 2022, https://arxiv.org/abs/2204.02961, and its public code.
        We differ: the release ends in a 2x3x2 convolution that fits crops of 160x192x128 only; and a side of one voxel
        is padded by one more, so that crops of 16 voxels and more work.
    """

    def __init__(self, channels: int, *, width: int = 64) -> None:
        super().__init__()
        sizes = (channels, width, 2 * width, 4 * width)
        self.halvings = nn.ModuleList(nn.Conv3d(a, b, kernel_size=4, stride=2, padding=1) for a, b in pairwise(sizes))
        self.verdict = nn.Conv3d(4 * width, 1, kernel_size=1)

    def forward(self, style: Float[Tensor, "B C i j k"]) -> Float[Tensor, " B"]:
        """Judge."""
        with torch.autocast(style.device.type, enabled=False):
            x = style.float()
            for halve in self.halvings:
                thin = [pad for side in reversed(x.shape[2:]) for pad in (0, int(side == 1))]
                x = F.leaky_relu(halve(F.pad(x, thin) if any(thin) else x), 0.2)
            verdict: Tensor = self.verdict(x).mean((1, 2, 3, 4))
            return verdict
