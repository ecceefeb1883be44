"""One network for every subset, from latents: mean and variance of what is present go into a VNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.networks.aligned import shared_brain
from mindgap.networks.layout import hand_over
from mindgap.shapes import Bool, Float


class FusedNetwork(nn.Module):
    r"""Latents of the present sequences, fused by their weighted mean and variance, then a predictor.

    $M = \sum_j s_j Z_j$, $V = \sum_j s_j (Z_j - M)^2$ with shares $s$ renormalised over the present sequences,
    $s = \mathrm{softmax}(a)$ and $a$ learnt. The predictor sees M and V, 2 C channels, whatever is present; of a single
    sequence M is its latent and V is 0. Where latents are aligned, M is nearly the same whichever sequences it is made
    of: any-subset prediction is what alignment is for.

    Args:
        encoders: image, present -> latents and brains (:class:`mindgap.networks.encoders.SequenceEncoders`).
        predictor: Takes 2 C channels.
        sequences: J.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> Output with J latents (B, C, i, j, k) and the features of the predictor
        plus "brain", "sequence_weights" and "anchor_weights" as :class:`mindgap.networks.aligned.AlignedNetwork`.

    Reference:
        Mean and variance over what is present: Havaei et al., HeMIS, MICCAI 2016, https://arxiv.org/abs/1607.05194.
        We differ: latents at full resolution, normalised over brain voxels with statistics shared by the sequences and
        drawn to their barycentre; weights; the variance is biased, so that one sequence has one (0).
    """

    def __init__(self, encoders: nn.Module, predictor: nn.Module, *, sequences: int) -> None:
        super().__init__()
        self.encoders, self.predictor = encoders, predictor
        self.anchor_logits = nn.Parameter(torch.zeros(sequences))

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Encode what is present, fuse and segment."""
        latents, brains = self.encoders(image, present)
        weights = torch.softmax(self.anchor_logits.float(), dim=0)
        shares = weights * present.to(image.device, non_blocking=True)  # B J
        shares = (shares / shares.sum(1, keepdim=True)).unflatten(1, (-1, 1, 1, 1, 1))  # B J 1 1 1 1
        mean = sum(shares[:, j] * latent for j, latent in enumerate(latents))
        assert isinstance(mean, Tensor)
        variance = sum(shares[:, j] * (latent - mean).square() for j, latent in enumerate(latents))
        assert isinstance(variance, Tensor)
        output: Output = self.predictor(hand_over(torch.cat([mean, variance], dim=1), self.predictor))
        features = {**output.features, "brain": shared_brain(brains, present)}
        features |= {"sequence_weights": weights, "anchor_weights": weights}
        return Output(output.logits, features=features, latents=latents, head=output.head)
