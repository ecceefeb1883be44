"""The teacher of the paper: encoders per sequence, latents at full resolution, a predictor on all of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.networks.encoders import NormalHeads
from mindgap.networks.layout import hand_over
from mindgap.shapes import Bool, Float

AnchorWeights = Literal["none", "softmax", "raw", "ratio"]
"""How weights follow from the parameters a: not at all, s = softmax(a), w = a, or w = a / sum(a)."""
Weighting = Literal["never", "always", "prediction"]
"""When the predictor sees weighted latents; "prediction" means in eval mode only."""


class AlignedNetwork(nn.Module):
    r"""Front encoders $E_j$, latents $Z_j$, and a predictor on their concatenation.

    With ``weighting`` "always" the predictor sees $J\,s_j Z_j$ with $s = \mathrm{softmax}(a)$ and a free $a$ that
    starts at 0: the segmentation loss then reaches the weights of the mixture anchor. The factor is absorbed by the
    next convolution, so the weights are not identifiable and say nothing about how informative a sequence is.

    Args:
        encoders: The front end: image, present -> latents and brains.
        predictor: Takes the concatenated latents, J * C channels.
        weights: How anchor weights follow from their parameters.
        weighting: When the predictor sees weighted latents.
        heads: VAE heads on the latents (anchor ``normal``), or None.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> Output with logits (B, classes, i, j, k), J latents
        (B, C, i, j, k; the means with ``heads``), and the features of the predictor plus "brain" (B, 1, i, j, k), the
        voxels that are brain in every present sequence, "sequence_weights" (J,), shares that sum to 1 (uniform where
        the weights are no shares), "anchor_weights" (J,) as the alignment takes them, and with ``heads``
        "log_variance" (B, J*C, i, j, k).

    Reference:
        Liu et al., Mind the Gap, 2024, sections II and III, https://arxiv.org/abs/2409.19366.
        We differ: the weights reach the predictor in training and prediction alike; the authors' later code
        multiplies at prediction only (``weighting`` "prediction").
    """

    def __init__(
        self,
        encoders: nn.Module,
        predictor: nn.Module,
        *,
        sequences: int,
        weights: AnchorWeights = "softmax",
        weighting: Weighting = "always",
        heads: NormalHeads | None = None,
    ) -> None:
        super().__init__()
        self.encoders, self.predictor, self.heads = encoders, predictor, heads
        self.sequences, self.weights, self.weighting = sequences, weights, weighting
        starts = {"raw": torch.ones(sequences), "ratio": 0.1 * torch.randn(sequences)} if weights != "softmax" else {}
        start = starts.get(weights, torch.zeros(sequences))
        self.anchor_logits = None if weights == "none" else nn.Parameter(start)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Encode, weight and segment; absent sequences contribute a latent of 0."""
        latents, brains = self.encoders(image, present)
        count, features = self.sequences, {}
        given = latents
        if self.heads is not None:
            given, latents, logs = self.heads(latents, brains)
            features["log_variance"] = torch.cat(logs, dim=1)
        shares, anchor_weights = self._weights(image)
        if self.weighting == "always":
            given = tuple(count * shares[j] * given[j] for j in range(count))
        elif self.weighting == "prediction" and not self.training:
            given = tuple(shares[j] * given[j] for j in range(count))
        output: Output = self.predictor(hand_over(torch.cat(given, dim=1), self.predictor))
        features |= {**output.features, "brain": shared_brain(brains, present)}
        features |= {"sequence_weights": shares, "anchor_weights": anchor_weights}
        return Output(output.logits, features=features, latents=latents, head=output.head)

    def _weights(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Shares that sum to 1, and the weights an alignment takes."""
        uniform = image.new_full((self.sequences,), 1.0 / self.sequences, dtype=torch.float32)
        if self.anchor_logits is None:
            return uniform, uniform
        free = self.anchor_logits.float()
        if self.weights == "raw":
            return uniform, free
        shares = torch.softmax(free, dim=0) if self.weights == "softmax" else free / free.sum()
        return shares, shares


def shared_brain(brains: tuple[Tensor, ...], present: Tensor) -> Tensor:
    """Voxels that are brain in every sequence a row has (B, 1, i, j, k)."""
    absent = ~present.to(brains[0].device, non_blocking=True)[:, :, None, None, None]  # B J 1 1 1
    shared = brains[0] | absent[:, 0:1]
    for j in range(1, len(brains)):
        shared = shared & (brains[j] | absent[:, j : j + 1])
    return shared
