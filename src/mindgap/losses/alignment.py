"""Anchors: losses that draw the latents of the sequences together. All are means over channels and brain voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from mindgap.losses.distances import (
    Latents,
    barycentre_distance,
    brain_mean,
    mixture_anchor,
    sequence_distances,
    shares_of,
    weighted_distances,
)
from mindgap.shapes import Bool, Float


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
    share = present.float().to(brain.device, non_blocking=True)
    share = share * share[:, k : k + 1]
    share[:, k] = 0
    return weighted_distances(latents, anchor, share, brain)


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
    there = present.float().to(brain.device, non_blocking=True)
    values = [latent.float() for latent in latents]
    part = there / there.sum(1, keepdim=True).clamp_min(1e-12)
    part = part / (brain.sum((1, 2, 3, 4)).clamp_min(1) * values[0].shape[1])[:, None]
    return barycentre_distance(shares_of(weights, present, brain.device), part, brain.float(), *values)


def align_to_normal(
    means: Latents,
    log_variances: Float[Tensor, "B JC i j k"],
    present: Bool[Tensor, "B J"],
    brain: Bool[Tensor, "B 1 i j k"],
) -> Float[Tensor, " B"]:
    r"""Anchor $P_N$: the divergence of every latent's normal distribution from the standard normal one.

    $L = \frac1J\sum_j \overline{\tfrac12(\sigma_j^2 + \mu_j^2 - 1 - \log\sigma_j^2)}$, the mean over channels and brain
    voxels, over the present sequences: $KL(N(\mu,\sigma^2)\,\|\,N(0,1))$ exactly, and the paper's formula with v the
    standard deviation.

    Args:
        means: mu, one per sequence.
        log_variances: log sigma^2 of all sequences along the channels.
        present: Which sequences each case has.
        brain: Voxels looked at.

    Returns:
        Nats, one value per case; 0 is the standard normal distribution.

    Reference:
        Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
    """
    logs = log_variances.float().chunk(len(means), dim=1)
    costs = []
    for mean, log in zip(means, logs, strict=True):
        cost = 0.5 * (log.exp() + mean.float().square() - 1 - log)
        costs.append(brain_mean(cost.mean(1, keepdim=True), brain))
    share = present.float().to(brain.device, non_blocking=True)
    return (torch.stack(costs, dim=1) * share).sum(1) / share.sum(1).clamp_min(1)


def align_moments_to_normal(
    latents: Latents, present: Bool[Tensor, "B J"], brain: Bool[Tensor, "B 1 i j k"]
) -> Float[Tensor, " B"]:
    r"""P_N by moments: the divergence of N(m, v) from N(0, 1), m and v over the brain voxels of a case, per channel.

    It pairs nothing: sequences whose latents have nothing in common but mean and variance cost 0, and behind a
    normalisation most of it is met from the start. A named ablation.

    Args:
        latents: One per sequence.
        present: Which sequences each case has.
        brain: Voxels looked at.

    Returns:
        Nats, one value per case.

    Reference:
        Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
        We differ: moments are those of a case, not of the batch, so that there is one value per case.
    """
    count = brain.sum((2, 3, 4)).clamp_min(1)
    costs = []
    for latent in latents:
        zero = latent.new_zeros(())
        mean = torch.where(brain, latent, zero).sum((2, 3, 4)) / count
        centred = torch.where(brain, latent - mean[:, :, None, None, None], zero)
        variance = centred.square().sum((2, 3, 4)) / count + 1e-6
        costs.append(0.5 * (variance + mean.square() - 1 - variance.log()).mean(1))
    share = present.float().to(brain.device, non_blocking=True)
    return (torch.stack(costs, dim=1) * share).sum(1) / share.sum(1).clamp_min(1)


def align_input_to_normal(
    image: Float[Tensor, "B J i j k"],
    mean: Float[Tensor, ""],
    log_variance: Float[Tensor, ""],
    present: Bool[Tensor, "B J"],
) -> Float[Tensor, " B"]:
    r"""P_N of the authors' draft: $\frac1{2J}\sum_j \overline{(m-x_j)^2/v + v}$ with learnable m and v, on the INPUT.

    No gradient reaches an encoder, so nothing is aligned: a named ablation that shows just that.

    Args:
        image: The prepared sequences.
        mean: m.
        log_variance: log v (the draft uses its variance parameter as it is; ours stays positive).
        present: Which sequences each case has.

    Returns:
        One value per case; not a divergence (v stands where log v belongs).

    Reference:
        The authors' public code (github.com/T-Y-Liu/MedMAP, its first version, April 2025), in our own words.
        We differ: v is the exponential of what is learnt, and a sequence that is absent counts nowhere.
    """
    variance = log_variance.float().exp()
    shown = present.to(image.device, non_blocking=True)[:, :, None, None, None]
    seen = torch.where(shown, image.float(), image.new_zeros(()))  # before the difference: NaN has NaN gradients
    squared = torch.where(shown, (mean - seen).square(), image.new_zeros(()))
    costs = 0.5 * (squared.mean((2, 3, 4)) / variance + variance)
    share = present.float().to(image.device, non_blocking=True)
    return (costs * share).sum(1) / share.sum(1).clamp_min(1)


def align_literally(
    latents: Latents,
    weights: Float[Tensor, " J"],
    present: Bool[Tensor, "B J"],
    brain: Bool[Tensor, "B 1 i j k"],
    *,
    k: int,
) -> Float[Tensor, " B"]:
    r"""P_* as printed: $\sum_j w_j\,d(Z_j, \mathrm{sg}(Z_k))$.

    With free w it is unbounded below, since $\partial L/\partial w_j = d_j \ge 0$; with w = J softmax(a) all weight
    drifts to j = k, where the distance is 0, and the alignment switches itself off. Kept to show both.

    Args:
        latents: One per sequence.
        weights: w, free or J softmax(a); the gradient reaches them.
        present: Which sequences each case has; a case without k costs 0.
        brain: Voxels compared.
        k: Position of the anchor sequence.

    Returns:
        One value per case; may be negative.

    Reference:
        Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366.
    """
    distances = sequence_distances(latents, latents[k].detach(), brain)
    share = present.float().to(brain.device, non_blocking=True)
    return (distances * weights.float() * share).sum(1) * share[:, k]


def align_by_precision(
    latents: Latents,
    weights: Float[Tensor, " J"],
    present: Bool[Tensor, "B J"],
    brain: Bool[Tensor, "B 1 i j k"],
) -> Float[Tensor, " B"]:
    r"""Weights as precisions: $\sum_j w_j d(Z_j, A) - \sum_j\log w_j$, A the barycentre, w = J s.

    The log keeps every weight off 0: a Gaussian maximum likelihood of the weights.

    Args:
        latents: One per sequence.
        weights: s, positive shares that sum to 1.
        present: Which sequences each case has.
        brain: Voxels compared.

    Returns:
        One value per case.

    Reference:
        Ours, after Liu et al., Mind the Gap, 2024, section III-B, https://arxiv.org/abs/2409.19366, whose printed P_*
        has free weights and no barrier.
    """
    share = present.float().to(brain.device, non_blocking=True)
    w = len(latents) * weights.float()
    distances = sequence_distances(latents, mixture_anchor(latents, weights, present), brain)
    return ((w * distances - w.log()) * share).sum(1)


def align_to_released_mixture(
    latents: Latents,
    weights: Float[Tensor, " J"],
    brain: Bool[Tensor, "B 1 i j k"],
    *,
    anchor_gradient: bool,
) -> Float[Tensor, " B"]:
    r"""The authors' released forms: $A = \sum_j w_j Z_j$, mean distance of all sequences to it.

    ``medmap_a`` (draft): w = a / sum(a), A without gradient, $\frac1J\sum_j d_j$. ``medmap_b`` (later): w = softmax(a),
    gradient through A, half of that.

    Args:
        latents: One per sequence, all present.
        weights: w as it is, perhaps negative.
        brain: Voxels compared.
        anchor_gradient: The later form.

    Returns:
        One value per case.

    Reference:
        The authors' public code (github.com/T-Y-Liu/MedMAP, April and July 2025), in our own words.
        We differ: distances are means over brain voxels (:func:`brain_distance`).
    """
    held = [latent if anchor_gradient else latent.detach() for latent in latents]
    anchor = torch.stack([w * z.float() for w, z in zip(weights.float(), held, strict=True)]).sum(0)
    distances = sequence_distances(latents, anchor, brain).mean(1)
    return 0.5 * distances if anchor_gradient else distances
