"""How far latents lie from an anchor: distances over brain voxels, and the barycentre of the present sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mindgap.shapes import Bool, Float

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

    Reference:
        The squared distance of Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
        We differ: a mean over channels and brain voxels, where the paper says nothing and the authors' public code
        (github.com/T-Y-Liu/MedMAP) takes the mean over all voxels: the background is alike in all sequences.
    """
    count = brain.sum((1, 2, 3, 4)).clamp_min(1) * latent.shape[1]
    return _masked_square(latent.float(), anchor.float(), brain.float()) / count


def sequence_distances(
    latents: Latents, anchor: Float[Tensor, "B C i j k"], brain: Bool[Tensor, "B 1 i j k"]
) -> Float[Tensor, "B J"]:
    """Distance of every sequence to an anchor, for the log."""
    return torch.stack([brain_distance(latent, anchor, brain) for latent in latents], dim=1)


def weighted_distances(latents: Latents, anchor: Tensor, share: Tensor, brain: Tensor) -> Tensor:
    """Mean of the distances to the anchor with shares (B, J) normalised per case; 0 where all shares are 0."""
    total = share.sum(1).clamp_min(1e-12)
    loss = torch.zeros_like(total)
    for j, latent in enumerate(latents):
        loss = loss + share[:, j] * brain_distance(latent, anchor, brain)
    return loss / total


def mixture_anchor(
    latents: Latents, weights: Float[Tensor, " J"], present: Bool[Tensor, "B J"]
) -> Float[Tensor, "B C i j k"]:
    r"""The barycentre of the present latents, $A = \sum_j s_j\,\mathrm{sg}(Z_j)$; the gradient reaches s, not Z.

    Args:
        latents: One per sequence.
        weights: s, positive; renormalised over the present sequences.
        present: Which sequences each case has.

    Reference:
        As :func:`align_to_mixture`.
    """
    share = shares_of(weights, present, latents[0].device)
    anchor = torch.zeros_like(latents[0], dtype=torch.float32)
    for j, latent in enumerate(latents):
        anchor = anchor + share[:, j].view(-1, 1, 1, 1, 1) * latent.detach().float()
    return anchor


def shares_of(weights: Tensor, present: Tensor, device: torch.device) -> Tensor:
    """Weights of the present sequences, renormalised to sum to 1 in each case (B, J)."""
    share = present.float().to(device, non_blocking=True) * weights.float()
    return share / share.sum(1, keepdim=True).clamp_min(1e-12)


def brain_mean(values: Tensor, brain: Tensor) -> Tensor:
    """Mean of (B, 1, i, j, k) over brain voxels per case; 0 without any."""
    inside = torch.where(brain, values, values.new_zeros(()))
    return inside.sum((1, 2, 3, 4)) / brain.sum((1, 2, 3, 4)).clamp_min(1)


class _MaskedSquare(torch.autograd.Function):
    r"""$\sum_v m_v (z_v - a_v)^2$ per case, keeping one difference; autograd's own steps take three times as long."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, anchor: Tensor, mask: Tensor) -> Tensor:
        difference = (latent - anchor).mul_(mask)
        ctx.save_for_backward(difference)
        return (difference * difference).sum((1, 2, 3, 4))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (difference,) = ctx.saved_tensors
        scaled = difference * (2 * gradient).view(-1, 1, 1, 1, 1)
        return scaled, -scaled if ctx.needs_input_grad[1] else None, None


_masked_square: Callable[[Tensor, Tensor, Tensor], Tensor] = _MaskedSquare.apply


class _BarycentreDistance(torch.autograd.Function):
    r"""$L_b = \sum_j p_{bj} \sum_v m_v \lVert Z_j - A\rVert^2$ with $A = \sum_j s_{bj}\,\mathrm{sg}(Z_j)$.

    The gradient reaches $Z_j$ through its own distance and $s$ through $A$. Written out, autograd's steps pass over
    the latents two and a half times as often.
    """

    @staticmethod
    def forward(ctx: Any, shares: Tensor, part: Tensor, mask: Tensor, *latents: Tensor) -> Tensor:
        """Shares s and parts p (B, J), mask of 0 and 1 (B, 1, i, j, k), latents (B, C, i, j, k) -> (B,)."""
        anchor = torch.mul(latents[0], _per_case(shares[:, 0]))
        for j, latent in enumerate(latents[1:], start=1):
            anchor.addcmul_(latent, _per_case(shares[:, j]))
        differences = [(latent - anchor).mul_(mask) for latent in latents]
        squares = [torch.linalg.vector_norm(value, dim=(1, 2, 3, 4)).square() for value in differences]
        ctx.save_for_backward(part, *differences, *latents)
        return (part * torch.stack(squares, dim=1)).sum(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, *saved = ctx.saved_tensors
        differences, latents = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        scales = 2 * part * gradient[:, None]
        own = [value * _per_case(scales[:, j]) for j, value in enumerate(differences)]
        for_shares = None
        if ctx.needs_input_grad[0]:
            of_anchor = own[0].neg()
            for value in own[1:]:
                of_anchor.sub_(value)
            for_shares = torch.stack([(of_anchor * latent).sum((1, 2, 3, 4)) for latent in latents], dim=1)
        return for_shares, None, None, *own


barycentre_distance: Callable[..., Tensor] = _BarycentreDistance.apply


def _per_case(values: Tensor) -> Tensor:
    """(B,) to be multiplied with maps."""
    return values.view(-1, 1, 1, 1, 1)
