"""Small heads that methods train beside a segmenter and throw away afterwards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import Float


class ContrastiveHead(nn.Module):
    r"""Embed a feature map: $g = W_2\,\mathrm{relu}(W_1\,\mathrm{flatten}(\mathrm{pool}(f)))$, of length 1.

    Args:
        channels: Channels of the feature map.
        pooled: Side of the pooled map.
        hidden: Width of the hidden layer.
        embedded: Dimensions of the embedding.

    Shapes:
        feature (B, channels, i, j, k) -> (B, embedded), rows of length 1.

    Reference:
        Chen et al., Learning with Privileged Multimodal Knowledge for Unimodal Segmentation, IEEE TMI 2022.
        We differ: adaptive average pooling to 2x2x2. The release pools 40^3 with stride 1, which gives 1.1 million
        inputs per head; a stride of 40 (2x2x2 for an 80^3 crop) is surely meant.
    """

    def __init__(self, channels: int, *, pooled: int = 2, hidden: int = 32, embedded: int = 16) -> None:
        super().__init__()
        self.pooled = pooled
        self.hidden = nn.Linear(channels * pooled**3, hidden, bias=False)
        self.embed = nn.Linear(hidden, embedded, bias=False)

    def forward(self, feature: Float[Tensor, "B C i j k"]) -> Float[Tensor, "B E"]:
        """Pool, embed and normalise."""
        pooled = F.adaptive_avg_pool3d(feature, self.pooled).flatten(1)
        return F.normalize(self.embed(F.relu(self.hidden(pooled))), dim=1)
