"""Anchors: losses that draw the latents of the sequences together. All are means over channels and brain voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mindgap.batch import Bool, Float

Latents = Sequence[Tensor]
"""J latents of shape (B, C, i, j, k), in the order of the network's sequences."""


def brain_distance(
    latent: Float[Tensor, "B C i j k"], anchor: Float[Tensor, "B C i j k"], brain: Bool[Tensor, "B 1 i j k"]
) -> Float[Tensor, " B"]:
    r"""Mean squared distance of a latent and an anchor over brain voxels, per case.

    $d = \frac{1}{C\,|V|}\sum_{v\in V}\lVert Z_v - A_v\rVert^2$ with $V$ the brain voxels of the case; 0 if it has
    none.

    Args:
        latent: Z, in units of its own spread inside the brain (:class:`mindgap.networks.encoders.BrainNorm`).
        anchor: A.
        brain: Voxels to compare.

    Returns:
        One value per case, at least 0.
    """
    squared = (latent.float() - anchor.float()).square().mean(1, keepdim=True)
    inside = torch.where(brain, squared, squared.new_zeros(()))
    return inside.sum((1, 2, 3, 4)) / brain.sum((1, 2, 3, 4)).clamp_min(1)


def align_to_sequence(
    latents: Latents,
    present: Bool[Tensor, "B J"],
    brain: Bool[Tensor, "B 1 i j k"],
    *,
    k: int,
    anchor_gradient: bool = False,
) -> Float[Tensor, " B"]:
    r"""Anchor $P_k$: align every other sequence to sequence k.

    $L = \frac{1}{|\{j\ne k\}|}\sum_{j\ne k} d(Z_j, A)$, $A = \mathrm{sg}(Z_k)$, over the present sequences; 0 for a
    case that lacks k or has nothing else.

    Args:
        latents: One per sequence.
        present: Which sequences each case has.
        brain: Voxels compared, brain in every present sequence.
        k: Position of the anchor sequence.
        anchor_gradient: Let the gradient reach the anchor too (the paper's formula taken literally).

    Returns:
        One value per case; 0 is agreement.

    Reference:
        Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
        We differ: the anchor is held fixed by default ("a fixed anchor to which the others are aligned").
    """
    anchor = latents[k] if anchor_gradient else latents[k].detach()
    share = present.float().to(brain.device)
    share = share * share[:, k : k + 1]
    share[:, k] = 0
    return _weighted_distances(latents, anchor, share, brain)


def align_to_mixture(
    latents: Latents,
    weights: Float[Tensor, " J"],
    present: Bool[Tensor, "B J"],
    brain: Bool[Tensor, "B 1 i j k"],
) -> Float[Tensor, " B"]:
    r"""Anchor $P_*$: align every sequence to the weighted barycentre of all.

    $A = \sum_j s_j\,\mathrm{sg}(Z_j)$, $L = \frac1{J}\sum_j d(Z_j, A)$ over the present sequences, whose weights are
    renormalised to sum to 1. The latents are paired voxel by voxel; A is a barycentre, not a sample of the mixture
    distribution $\sum_k s_k P(Z_k)$. For uniform s the gradient is the same with and without the stop-gradient.

    Args:
        latents: One per sequence.
        weights: s, positive; the gradient reaches them.
        present: Which sequences each case has.
        brain: Voxels compared, brain in every present sequence.

    Returns:
        One value per case; 0 is agreement, and a case with a single sequence costs 0.

    Reference:
        Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
        We differ: the printed form sum_j w_j ||Z_j - Z_k||^2 with free w is unbounded below.
    """
    share = present.float().to(brain.device)
    anchor = mixture_anchor(latents, weights, present)
    return _weighted_distances(latents, anchor, share, brain)


def mixture_anchor(
    latents: Latents, weights: Float[Tensor, " J"], present: Bool[Tensor, "B J"]
) -> Float[Tensor, "B C i j k"]:
    """The barycentre of the present latents (stop-gradient on them, not on the weights)."""
    device = latents[0].device
    share = present.float().to(device) * weights.float()
    share = share / share.sum(1, keepdim=True).clamp_min(1e-12)
    anchor = torch.zeros_like(latents[0], dtype=torch.float32)
    for j, latent in enumerate(latents):
        anchor = anchor + share[:, j].view(-1, 1, 1, 1, 1) * latent.detach().float()
    return anchor


def sequence_distances(
    latents: Latents, anchor: Float[Tensor, "B C i j k"], brain: Bool[Tensor, "B 1 i j k"]
) -> Float[Tensor, "B J"]:
    """Distance of every sequence to an anchor, for the log."""
    return torch.stack([brain_distance(latent, anchor, brain) for latent in latents], dim=1)


def _weighted_distances(latents: Latents, anchor: Tensor, share: Tensor, brain: Tensor) -> Tensor:
    """Mean of the distances to the anchor with shares (B, J) normalised per case; 0 where all shares are 0."""
    total = share.sum(1).clamp_min(1e-12)
    loss = torch.zeros_like(total)
    for j, latent in enumerate(latents):
        loss = loss + share[:, j] * brain_distance(latent, anchor, brain)
    return loss / total
