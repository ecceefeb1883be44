"""Losses by which a student learns from a frozen teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mindgap.regions import CLASS_COUNT
from mindgap.shapes import Float, Integer

_LOWEST = 0.005
"""Probabilities are clipped from below here before a logarithm (PMKL's public code)."""
_SMALL = 1e-5
"""Added to the voxels of a class, and the shortest length a vector is divided by (ProtoKD's public code)."""


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
    r"""PMKL's mask: how much better the teacher is, where its answer is right; 0 where it is wrong.

    $m_v = \mathrm{relu}(CE^s_v - CE^t_v)\,[\arg\max t_v = y_v]$ with $CE_v = -\log\mathrm{clip}(p_{v,y_v}, .005, 1)$.

    Args:
        student: Logits of the student.
        teacher: Logits of the frozen teacher.
        target: Reference classes.

    Returns:
        Nats per voxel, at least 0.

    Reference:
        As :func:`regularised_distillation`.
    """
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


def softened_distillation(
    student: Float[Tensor, "B C i j k"], teacher: Float[Tensor, "B C i j k"], *, temperature: float = 5.0
) -> Float[Tensor, " B"]:
    r"""KD-Net's pixel term: how far the student's softened probabilities are from the teacher's.

    $L = T^2\,\frac1{|V|}\sum_v\sum_c q^t_{v,c}\log(q^t_{v,c}/q^s_{v,c})$ with $q=\mathrm{softmax}(logits/T)$: summed
    over classes, mean over voxels. The factor $T^2$ keeps the size of the gradient the same for every T.

    Args:
        student: Logits of the student.
        teacher: Logits of the frozen teacher.
        temperature: T, above 0.

    Returns:
        Nats times T^2, one value per case, at least 0; 0 is agreement.

    Reference:
        Hu, Maillard et al., Knowledge Distillation from Multi-modal to Mono-modal Segmentation Networks, MICCAI 2020,
        https://arxiv.org/abs/2106.09564. No official code is known; the factor and the reduction are our reading.
    """
    return temperature**2 * _divergence(student, teacher, temperature).mean((1, 2, 3))


def bottleneck_distillation(
    student: Float[Tensor, "B C i j k"], teacher: Float[Tensor, "B C i j k"]
) -> Float[Tensor, " B"]:
    r"""KD-Net's latent term: how far the student's deepest features are from the teacher's, as channel distributions.

    $L = \frac1{|V|}\sum_v\sum_c p^t_{v,c}\log(p^t_{v,c}/p^s_{v,c})$ with $p=\mathrm{softmax}(feature)$ over the
    channels of each position.

    Args:
        student: Features at the bottleneck of the student.
        teacher: Those of the frozen teacher, with as many channels.

    Returns:
        Nats, one value per case, at least 0; 0 is agreement (up to a constant per position).

    Reference:
        As :func:`softened_distillation`.
        We differ: a mean over positions, not a sum, so that the weight of the term does not grow with the crop.
    """
    return _divergence(student, teacher, 1.0).mean((1, 2, 3))


def elementwise_distillation(
    student: Float[Tensor, "B C i j k"], teacher: Float[Tensor, "B C i j k"], *, temperature: float = 10.0
) -> Float[Tensor, " B"]:
    r"""ProtoKD's pixel term: as KD-Net's, but a mean over ALL elements, classes too, and without $T^2$.

    $L = \frac1{C\,|V|}\sum_v\sum_c q^t_{v,c}\log(q^t_{v,c}/q^s_{v,c})$ with $q=\mathrm{softmax}(logits/T)$: a C-th of
    the mean over voxels.

    Args:
        student: Logits of the student.
        teacher: Logits of the frozen teacher.
        temperature: T, above 0.

    Returns:
        Nats per element, one value per case, at least 0; 0 is agreement.

    Reference:
        Wang et al., ProtoKD, ICASSP 2023, https://arxiv.org/abs/2303.09830, and its public code.
    """
    return _divergence(student, teacher, temperature).mean((1, 2, 3)) / student.shape[1]


def prototype_distillation(
    student: Float[Tensor, "B C i j k"],
    teacher: Float[Tensor, "B D i j k"],
    target: Integer[Tensor, "B i j k"],
) -> Float[Tensor, ""]:
    r"""ProtoKD's prototype term: voxels lie to the class means as they do in the teacher; couples the batch.

    $L = \frac1{|K|\,B\,|V|}\sum_{c\in K}\sum_{b,v}(M^s_{b,c,v}-M^t_{b,c,v})^2$ over the classes K that EVERY case of
    the batch has, with $M_{b,c,v}=\cos(f_{b,v}, P_{b,c})$ and the prototype
    $P_{b,c}=\sum_{y_v=c}f_{b,v}/(n_c+10^{-5})$, of each network by itself; 0 where no class is in every case (the
    release fails there).

    Args:
        student: Full-resolution features of the student.
        teacher: Those of the frozen teacher; it may have other channels.
        target: Reference classes in 0..3; the background counts as one.

    Returns:
        A number in [0, 4]; 0 is agreement.

    Reference:
        As :func:`elementwise_distillation`. We differ: the guard for no class.
    """
    with torch.autocast(student.device.type, enabled=False):
        masks = torch.stack([target == label for label in range(CLASS_COUNT)], dim=1).flatten(2).float()  # B K V
        kept = (masks.sum(2) > 0).all(0).float()  # weights, not a choice: a GPU would be waited for to make one
        apart = similarity_maps(student, masks) - similarity_maps(teacher.detach(), masks)
        return (apart.square().mean((0, 2)) * kept).sum() / kept.sum().clamp_min(1.0)


def similarity_maps(feature: Float[Tensor, "B C i j k"], masks: Float[Tensor, "B K V"]) -> Float[Tensor, "B K V"]:
    """Cosine of every voxel's feature and the mean feature of each class of its case; 0 where a class is empty.

    Args:
        feature: Features, in float32 from here on.
        masks: 1 where a voxel is of class k, else 0; V = i j k.

    Returns:
        Cosines in [-1, 1].

    Reference:
        As :func:`prototype_distillation`, with 1e-5 where its public code has it.
    """
    f = feature.float().flatten(2)  # B C V
    prototypes = torch.einsum("bcv,bkv->bkc", f, masks) / (masks.sum(2, keepdim=True) + _SMALL)
    return torch.einsum("bkc,bcv->bkv", _unit(prototypes, dim=2), _unit(f, dim=1))


def _unit(x: Tensor, *, dim: int) -> Tensor:
    """Vectors of length 1, shorter where they were shorter than 1e-5; clamped first: a root has no gradient at 0."""
    return x * x.square().sum(dim, keepdim=True).clamp_min(_SMALL**2).rsqrt()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) over the channels of each voxel (B i j k), in float32."""
    with torch.autocast(student.device.type, enabled=False):
        ours = torch.log_softmax(student.float() / temperature, dim=1)
        theirs = torch.log_softmax(teacher.detach().float() / temperature, dim=1)
        return (theirs.exp() * (theirs - ours)).sum(1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log clip(p_y, .005, 1) per voxel, at temperature 1."""
    p = torch.softmax(logits, dim=1).gather(1, target[:, None]).squeeze(1)
    return -p.clamp(_LOWEST, 1.0).log()
