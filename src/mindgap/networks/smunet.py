"""SMU-Net's backbone: a residual encoder-decoder that tells content from style at its deepest level."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import Output, fill_absent
from mindgap.networks.blocks import Convolution
from mindgap.regions import CLASS_COUNT
from mindgap.shapes import Bool, Float

_GROUPS = 8


class GroupNorm(nn.GroupNorm):
    """A GroupNorm that is fast on the CPU, too.

    Its backward pass in torch 2.13's CPU library is twenty times slower on maps with channels last than on others,
    which made it a third of a step in bf16. With the maps turned round for it a step takes a fifth less.
    """

    def forward(self, input: Float[Tensor, "B C i j k"]) -> Tensor:  # noqa: A002 - the name of the parent's argument
        """Normalise."""
        if input.device.type != "cpu" or input.is_contiguous():
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last_3d)


class ResidualBlock(nn.Module):
    """Add to a map two times [GroupNorm -> ReLU -> Conv3d 3x3x3, padding 1].

    Args:
        channels: In and out. There are eight groups, or as many as divide the channels of a narrower network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = math.gcd(_GROUPS, channels)
        self.norm1, self.norm2 = (GroupNorm(groups, channels) for _ in range(2))
        self.conv1, self.conv2 = (Convolution(channels, channels, kernel_size=3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "B C i j k"]) -> Float[Tensor, "B C i j k"]:
        """Add the residual."""
        inner = self.conv1(F.relu(self.norm1(x), inplace=True))
        residual: Tensor = self.conv2(F.relu(self.norm2(inner), inplace=True))
        return x + residual


class SmuPath(nn.Module):
    """One path of SMU-Net: residual stages, content and style at 1/8 of the resolution, additive skips.

    Stages have 1, 2, 2, 4 residual blocks with w, 2w, 4w, 8w channels on the way down (w = ``width``), and one each on
    the way up. Content is the deepest map; style joins it with what enters the two deepest stages. With w = 16 a path
    has 4.78 million parameters.

    Args:
        channels_in: Input channels.
        width: Channels at full resolution.
        dropout: Of the map that content and style make for the decoder; off in eval mode.

    Shapes:
        image (B, channels_in, i, j, k) -> Output.logits (B, 3, i, j, k) of head "sigmoid", features "feature"
        (B, w, i, j, k), "content" and "style" (B, 8w, i/8, j/8, k/8). Sides are multiples of 8.

    Reference:
        Azad et al., SMU-Net, MIDL 2022, https://arxiv.org/abs/2204.02961, and its public code (after Myronenko, 3D MRI
        brain tumor segmentation using autoencoder regularization, 2018).
        We differ: the outputs are ET, NCR, ED in the order of our classes, where the release has ED, NET, ET and a
        background that enters no loss and no decision.
    """

    def __init__(self, channels_in: int, *, width: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        w = width
        self.stem, self.encode1 = Convolution(channels_in, w, kernel_size=3, padding=1), _blocks(1, w)
        self.down1, self.encode2 = _halve(w, 2 * w), _blocks(2, 2 * w)
        self.down2, self.encode3 = _halve(2 * w, 4 * w), _blocks(2, 4 * w)
        self.down3, self.encode4 = _halve(4 * w, 8 * w), _blocks(4, 8 * w)
        self.style = _pointwise(20 * w, 8 * w)
        self.mix, self.dropout = _pointwise(16 * w, 8 * w), nn.Dropout(dropout)
        self.narrow1, self.decode1 = _pointwise(8 * w, 4 * w), _blocks(1, 4 * w)
        self.narrow2, self.decode2 = _pointwise(4 * w, 2 * w), _blocks(1, 2 * w)
        self.narrow3, self.decode3 = _pointwise(2 * w, w), _blocks(1, w)
        self.head = _pointwise(w, CLASS_COUNT - 1)  # a sigmoid for each tumour class

    def forward(self, image: Float[Tensor, "B C i j k"], present: Bool[Tensor, "B J"] | None = None) -> Output:
        """Segment a batch; where ``present`` (one column per channel) is False the content is ignored."""
        if present is not None:
            image = fill_absent(image, present)
        e1 = self.encode1(self.stem(image))  # w, full resolution
        e2 = self.encode2(self.down1(e1))  # 2w, 1/2
        d2 = self.down2(e2)
        e3 = self.encode3(d2)  # 4w, 1/4
        d3 = self.down3(e3)
        content = self.encode4(d3)  # 8w, 1/8
        style = self.style(torch.cat([F.max_pool3d(d2, 2), d3, content], dim=1))  # 8w, 1/8
        mixed = self.dropout(self.mix(torch.cat([style, content], dim=1)))
        up1 = self.decode1(_double(self.narrow1(mixed)) + e3)
        up2 = self.decode2(_double(self.narrow2(up1)) + e2)
        feature = self.decode3(_double(self.narrow3(up2)) + e1)
        features = {"feature": feature, "content": content, "style": style}
        return Output(logits=self.head(feature), features=features, head="sigmoid")


def _blocks(count: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def _halve(channels_in: int, channels_out: int) -> Convolution:
    return Convolution(channels_in, channels_out, kernel_size=3, stride=2, padding=1)


def _pointwise(channels_in: int, channels_out: int) -> Convolution:
    return Convolution(channels_in, channels_out, kernel_size=1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
