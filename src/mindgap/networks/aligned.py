"""The teacher of the paper: encoders per sequence, latents at full resolution, a VNet on all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mindgap.batch import Bool, Float, Output
from mindgap.networks.encoders import SequenceEncoders
from mindgap.networks.vnet import VNet


class AlignedNetwork(nn.Module):
    r"""Front encoders $E_j$, latents $Z_j$, and a predictor on their concatenation.

    With ``weighted`` the predictor sees $J\,s_j Z_j$ with $s = \mathrm{softmax}(a)$ and a free $a$ that starts at 0:
    the segmentation loss then reaches the weights of the mixture anchor. The factor is absorbed by the next
    convolution, so the weights are not identifiable and say nothing about how informative a sequence is.

    Args:
        encoders: The front end.
        predictor: Takes the concatenated latents, J * C channels.
        weighted: Whether the latents are weighted (anchor ``mixture``).

    Shapes:
        image (B, J, i, j, k), present (B, J) -> Output with logits (B, classes, i, j, k), J latents
        (B, C, i, j, k), and the features of the predictor plus "brain" (B, 1, i, j, k), the voxels that are brain
        in every present sequence, and "sequence_weights" (J,) that sum to 1.

    Reference:
        Liu et al., Mind the Gap, 2024, sections II and III, https://arxiv.org/abs/2409.19366.
        We differ: the weights reach the predictor in training and prediction alike; the authors' later code
        multiplies at prediction only.
    """

    def __init__(self, encoders: SequenceEncoders, predictor: VNet, *, weighted: bool) -> None:
        super().__init__()
        self.encoders, self.predictor = encoders, predictor
        self.anchor_logits = nn.Parameter(torch.zeros(encoders.sequences)) if weighted else None

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Encode, weight and segment; absent sequences contribute a latent of 0."""
        latents, brains = self.encoders(image, present)
        count = self.encoders.sequences
        if self.anchor_logits is None:
            weights = image.new_full((count,), 1.0 / count)
            weighted = latents
        else:
            weights = torch.softmax(self.anchor_logits.float(), dim=0)
            weighted = tuple(count * weights[j] * latents[j] for j in range(count))
        output: Output = self.predictor(torch.cat(weighted, dim=1))
        features = {**output.features, "brain": _shared_brain(brains, present), "sequence_weights": weights}
        return Output(output.logits, features=features, latents=latents)


def _shared_brain(brains: tuple[Tensor, ...], present: Tensor) -> Tensor:
    """Voxels that are brain in every sequence a row has (B, 1, i, j, k)."""
    absent = ~present.to(brains[0].device)[:, :, None, None, None]  # B J 1 1 1
    shared = brains[0] | absent[:, 0:1]
    for j in range(1, len(brains)):
        shared = shared & (brains[j] | absent[:, j : j + 1])
    return shared
