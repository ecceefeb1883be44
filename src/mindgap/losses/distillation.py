"""Losses by which a student learns from a frozen teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.batch import Float, Integer

_LOWEST = 0.005
"""Probabilities are clipped from below here before a logarithm (PMKL's public code)."""


def regularised_distillation(
    student: Float[Tensor, "B C i j k"],
    teacher: Float[Tensor, "B C i j k"],
    target: Integer[Tensor, "B i j k"],
    *,
    temperature: float = 10.0,
) -> Float[Tensor, ""]:
    r"""PMKL's pixel term: imitate the teacher where it is right and better; couples the cases of a batch.

    $L = \sum_v m_v H_v / \sum_v m_v$, $H_v = -\sum_c q^t_{v,c}\log \mathrm{clip}(q^s_{v,c}, .005, 1)$ with
    $q=\mathrm{softmax}(logits/T)$, and the mask $m_v = \mathrm{relu}(CE^s_v - CE^t_v)\,[\arg\max t_v = y_v]$ at T=1,
    without gradient. Where the mask is empty the loss is 0 (0/0 in the release).

    Args:
        student: Logits of the student.
        teacher: Logits of the frozen teacher.
        target: Reference classes.
        temperature: T, above 0. There is no factor T^2.

    Returns:
        Nats, at least 0. It is a cross-entropy: its smallest value is the entropy of the teacher, not 0.

    Reference:
        Chen et al., Learning with Privileged Multimodal Knowledge for Unimodal Segmentation, IEEE TMI 2022,
        and its public code. We differ: the guard for an empty mask.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, target = student.float(), teacher.detach().float(), target.long()
        soft_student = torch.softmax(student / temperature, dim=1).clamp(_LOWEST, 1.0)
        entropy = -(torch.softmax(teacher / temperature, dim=1) * soft_student.log()).sum(1)
        mask = distillation_mask(student.detach(), teacher, target)
        return (entropy * mask).sum() / mask.sum().clamp_min(1e-12)


def distillation_mask(
    student: Float[Tensor, "B C i j k"],
    teacher: Float[Tensor, "B C i j k"],
    target: Integer[Tensor, "B i j k"],
) -> Float[Tensor, "B i j k"]:
    """PMKL's mask: how much better the teacher is, where its answer is right; 0 where it is wrong."""
    ahead = F.relu(_cross_entropy(student, target) - _cross_entropy(teacher, target))
    return ahead * (teacher.argmax(1) == target)


def contrastive_distillation(student: Float[Tensor, "B E"], teacher: Float[Tensor, "B E"]) -> Float[Tensor, ""]:
    r"""PMKL's image term: pull the embeddings of the same case together, push others apart; couples the batch.

    $L=\frac1{B^2}\sum_{i,j} [i=j]\,d_{ij}^2 + [i\ne j]\max(1-d_{ij},0)^2$, d the Euclidean distance between the
    student's embedding of case i and the teacher's of case j: B positives and B(B-1) negatives (4 and 12 for B=4).

    Args:
        student: Embeddings of length 1.
        teacher: Embeddings of length 1 (their head is trained too, the teacher below it is not).

    Returns:
        At least 0.

    Reference:
        Chen et al., IEEE TMI 2022, and its public code.
    """
    with torch.autocast(student.device.type, enabled=False):
        difference = student.float()[:, None] - teacher.float()[None]  # B B E
        squared = difference.square().sum(-1)
        distance = (squared + 1e-12).sqrt()  # the square root has no gradient at 0
        same = torch.eye(student.shape[0], device=student.device, dtype=torch.bool)
        return torch.where(same, squared, F.relu(1 - distance).square()).mean()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log clip(p_y, .005, 1) per voxel, at temperature 1."""
    p = torch.softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
    return -p.clamp(_LOWEST, 1.0).log()
