"""Losses of SMU-Net: two paths, one that sees every sequence and one that lacks some, learn together."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.shapes import Float, Integer

_EPSILON = 1e-7
"""Added to the denominator of the soft Dice (SMU-Net's public code)."""


def ramp(step: int, steps: int, *, share: float = 0.08) -> float:
    r"""How much of the consistency counts at a step: $e^{-5(1-t)^2}$, $t=\min(step / (share\cdot steps), 1)$.

    Two networks that know nothing would only agree on nothing, so that the term starts small.

    Args:
        step: Finished steps, from 0.
        steps: Of the whole run.
        share: Of the run during which it rises; 0 for none.

    Returns:
        From exp(-5) at the start to 1.

    Reference:
        Azad et al., SMU-Net, MIDL 2022, https://arxiv.org/abs/2204.02961: 20 of 250 epochs.
        We differ: it is counted in steps, so that it scales with the length of a run.
    """
    rise = share * steps
    t = min(step / rise, 1.0) if rise > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)


def sigmoid_dice_loss(logits: Float[Tensor, "B C i j k"], target: Integer[Tensor, "B i j k"]) -> Float[Tensor, ""]:
    r"""Soft Dice summed over tumour classes with a sigmoid each; couples the cases of a batch.

    $L = \sum_{c=1}^{C} 1 - \frac{2\sum s_c y_c}{\sum s_c^2 + \sum y_c^2 + 10^{-7}}$ with $s=\mathrm{sigmoid}(logits)$
    and sums over batch and space together. The classes are the disjoint ones (ET, NCR, ED), not the nested regions,
    and there is no background.

    Args:
        logits: Channel c - 1 is class c; computed in float32.
        target: Reference classes in 0..C, 0 is background.

    Returns:
        A number in [0, C]; 0 is agreement. A class that the batch lacks costs 1 whatever is predicted, without
        gradient.

    Reference:
        Azad et al., SMU-Net, MIDL 2022, https://arxiv.org/abs/2204.02961, and its public code.
    """
    with torch.autocast(logits.device.type, enabled=False):
        s = torch.sigmoid(logits.float())
        y = torch.stack([target == label for label in range(1, logits.shape[1] + 1)], dim=1).float()
        axes = (0, 2, 3, 4)
        overlap = (s * y).sum(axes)
        size = (s * s).sum(axes) + y.sum(axes)
        return (1 - 2 * overlap / (size + _EPSILON)).sum()


def consistency_loss(one: Float[Tensor, "B C i j k"], other: Float[Tensor, "B C i j k"]) -> Float[Tensor, " B"]:
    r"""Mean squared difference of two paths' probabilities, summed over classes.

    $L = \sum_c \frac1{|V|}\sum_v (s_{c,v} - s'_{c,v})^2$ with $s=\mathrm{sigmoid}(logits)$; the gradient reaches both.

    Args:
        one: Logits of one path.
        other: Logits of the other.

    Returns:
        One value per case in [0, C]; 0 is agreement.

    Reference:
        As :func:`sigmoid_dice_loss`.
    """
    with torch.autocast(one.device.type, enabled=False):
        apart = torch.sigmoid(one.float()) - torch.sigmoid(other.float())
        return apart.square().mean((2, 3, 4)).sum(1)


def content_loss(one: Float[Tensor, "B C i j k"], other: Float[Tensor, "B C i j k"]) -> Float[Tensor, " B"]:
    r"""Mean squared difference of two paths' content, $\frac1{C|V|}\sum(c-c')^2$; the gradient reaches both.

    Args:
        one: Content of one path.
        other: Content of the other.

    Returns:
        One value per case, at least 0.

    Reference:
        As :func:`sigmoid_dice_loss`.
    """
    with torch.autocast(one.device.type, enabled=False):
        return (one.float() - other.float()).square().mean((1, 2, 3, 4))


def gram_matrix(style: Float[Tensor, "B C i j k"]) -> Float[Tensor, "BC BC"]:
    r"""Products of all channels of all cases, $G = XX^\top/(B\,C\,|V|)$ with one row of X per channel of a case.

    Rows of different cases meet, so that the matrix couples the batch.

    Args:
        style: Maps of all cases.

    Returns:
        One symmetric matrix for the batch.

    Reference:
        As :func:`sigmoid_dice_loss`.
    """
    with torch.autocast(style.device.type, enabled=False):
        x = style.float().flatten(2).flatten(0, 1)  # BC V
        return x @ x.t() / x.numel()


def style_loss(one: Float[Tensor, "B C i j k"], other: Float[Tensor, "B C i j k"]) -> Float[Tensor, ""]:
    r"""Squared difference of two paths' Gram matrices; couples the cases of a batch.

    $L = \frac{1}{4\,C^2\,(ij)^2}\sum (G - G')^2$ with :func:`gram_matrix`. The divisor takes two of the three sides, as
    in the release; the term is so small that it hardly counts.

    Args:
        one: Style of one path.
        other: Style of the other.

    Returns:
        At least 0; 0 is agreement.

    Reference:
        As :func:`sigmoid_dice_loss`.
    """
    channels, area = one.shape[1], one.shape[2] * one.shape[3]
    apart = gram_matrix(one) - gram_matrix(other)
    return apart.square().sum() / (4 * channels**2 * area**2)


def adversarial_loss(verdict: Float[Tensor, " B"], *, called: Literal["full", "missing"]) -> Float[Tensor, " B"]:
    r"""Binary cross-entropy of a discriminator: $\log(1+e^{z})$ where a map is called full, else $\log(1+e^{-z})$.

    The full path's maps are 0, the missing path's 1. The discriminator learns to call each what it is, the missing path
    to be called full.

    Args:
        verdict: Logits z that a map is the missing path's.
        called: What it ought to be called.

    Returns:
        Nats, one value per case.

    Reference:
        As :func:`sigmoid_dice_loss`.
    """
    with torch.autocast(verdict.device.type, enabled=False):
        z = verdict.float()
        return F.softplus(z if called == "full" else -z)
