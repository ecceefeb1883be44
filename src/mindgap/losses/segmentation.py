"""Losses against the reference classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.regions import ET_CLASS, NCR_CLASS
from mindgap.shapes import Float, Integer


def dice_loss(
    logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"], *, epsilon: float = 1e-5
) -> Float[Tensor, ""]:
    r"""Soft Dice over classes; couples the cases of a batch, so it returns the batch's value once.

    $L = \frac1C\sum_c 1 - \frac{2\sum p_c y_c + \epsilon}{\sum p_c^2 + \sum y_c^2 + \epsilon}$ with
    $p=\mathrm{softmax}(logits)$ and sums over batch and space together, background included.

    Args:
        logits: Class scores; the loss is computed in float32 whatever their type.
        target: Reference classes in 0..C-1.
        epsilon: Smoothing; a class absent from batch and prediction costs 0.

    Returns:
        A number in [0, 1]; 0 is agreement.

    Reference:
        Wang et al., ProtoKD, ICASSP 2023, https://arxiv.org/abs/2303.09830, and its public code.
    """
    with torch.autocast(logits.device.type, enabled=False):
        p = torch.softmax(_channel_after_channel(logits), dim=1)
        y = _one_hot(target, logits.shape[1])
        axes = (0, 2, 3, 4)
        overlap = (p * y).sum(axes)
        size = (p * p).sum(axes) + y.sum(axes)
        return (1 - (2 * overlap + epsilon) / (size + epsilon)).mean()


def weighted_cross_entropy(logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"]) -> Float[Tensor, ""]:
    r"""Cross-entropy with classes weighted by rarity in the batch; couples the cases of a batch.

    $L = \sum_v w_{y_v}(-\log p_{v,y_v}) / \sum_v w_{y_v}$ with $w_c = 1 - n_c/N$, $n_c$ voxels of class c in the batch.
    A batch of one class only has weight 0 everywhere (0/0): there the plain mean is returned.

    Args:
        logits: Class scores; computed in float32.
        target: Reference classes in 0..C-1.

    Returns:
        Nats per voxel, at least 0.

    Reference:
        ProtoKD's public code (as :func:`dice_loss`).
        We differ: the plain mean for a batch of one class, which is 0/0 in the release.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # no bincount: on a GPU it would wait for the largest class
        counts = torch.stack([(target == label).sum() for label in range(logits.shape[1])]).float()
        weights = 1 - counts / target.numel()
        cost = F.cross_entropy(_channel_after_channel(logits), target.long(), reduction="none")
        voxel_weights = weights[target.long()]
        total = voxel_weights.sum()
        alone = total <= 0
        weighted = (cost * voxel_weights).sum() / torch.where(alone, torch.ones_like(total), total)
        return torch.where(alone, cost.mean(), weighted)


def region_dice_loss(
    logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"], *, epsilon: float = 1.0
) -> Float[Tensor, ""]:
    r"""Soft Dice over the nested regions that are scored; couples the cases of a batch.

    $L = \frac13\sum_r 1 - \frac{2\sum p_r y_r + \epsilon}{\sum p_r + \sum y_r + \epsilon}$, $p_{ET}=p_1$,
    $p_{TC}=p_1+p_2$, $p_{WT}=p_1+p_2+p_3$, sums over batch and space. Where a sequence cannot tell ET from NCR, being
    right about both together still counts.

    Args:
        logits: Scores of the four classes; the loss is computed in float32 whatever their type.
        target: Reference classes.
        epsilon: Smoothing, in voxels.

    Returns:
        A number in [0, 1]; 0 is agreement.

    Reference:
        Region-based training: Isensee et al., nnU-Net for Brain Tumor Segmentation, 2020,
        https://arxiv.org/abs/2011.00848.
        We differ: regions are sums of a softmax, nested by construction, in place of three sigmoids.
    """
    with torch.autocast(logits.device.type, enabled=False):
        p = torch.softmax(_channel_after_channel(logits), dim=1)[:, 1:].cumsum(1)  # ET, TC, WT
        y = torch.stack([target == ET_CLASS, (target == ET_CLASS) | (target == NCR_CLASS), target > 0], dim=1).float()
        axes = (0, 2, 3, 4)
        return (1 - (2 * (p * y).sum(axes) + epsilon) / (p.sum(axes) + y.sum(axes) + epsilon)).mean()


def region_terms(
    logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"]
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy with all voxels alike, so that probabilities mean what they say, and Dice of the regions."""
    with torch.autocast(logits.device.type, enabled=False):
        cost = F.cross_entropy(_channel_after_channel(logits), target.long())
    return {"cross_entropy": cost, "dice": region_dice_loss(logits, target)}


def soft_target_loss(logits: Float[Tensor, "B C i j k"], taught: Float[Tensor, "B C i j k"]) -> Float[Tensor, ""]:
    r"""Kullback-Leibler divergence from what a teacher says, $\frac1N\sum_{v,c} q_{v,c}(\log q_{v,c} - \log p_{v,c})$.

    No gradient reaches the teacher.

    Args:
        logits: Class scores of the student; computed in float32.
        taught: Class scores of the teacher.

    Returns:
        Nats per voxel; 0 where both say the same.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531.
        We differ: temperature 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        log_p = torch.log_softmax(_channel_after_channel(logits), dim=1)
        log_q = torch.log_softmax(_channel_after_channel(taught.detach()), dim=1)
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * log_p.shape[1] / log_p.numel()


def segmentation_terms(
    logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"]
) -> dict[str, Float[Tensor, ""]]:
    """The two terms of the segmentation loss of the paper's base, each with weight 1."""
    return {"cross_entropy": weighted_cross_entropy(logits, target), "dice": dice_loss(logits, target)}


def _channel_after_channel(logits: Tensor) -> Tensor:
    """In float32 and in the layout of the targets: elementwise steps on two layouts are several times slower."""
    return logits.to(torch.float32, memory_format=torch.contiguous_format)


def _one_hot(target: Tensor, classes: int) -> Tensor:
    shape = (target.shape[0], classes, *target.shape[1:])
    return torch.zeros(shape, device=target.device).scatter_(1, target.long()[:, None], 1.0)
