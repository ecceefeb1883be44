import itertools

import numpy as np
import pytest
import torch

from mindgap.losses.distillation import (
    contrastive_distillation,
    distillation_mask,
    regularised_distillation,
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def as_logits(table: np.ndarray) -> torch.Tensor:
    """Voxel x class -> (1 C 1 1 V)."""
    return torch.tensor(table.T[None, :, None, None, :], dtype=torch.float32)


def as_target(classes) -> torch.Tensor:
    return torch.tensor(classes, dtype=torch.uint8).view(1, 1, 1, -1)


def test_pixel_term_by_hand():
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.standard_normal((6, 4)), 6 * rng.standard_normal((6, 4))
    target = teacher.argmax(1)
    target[0] = (target[0] + 1) % 4  # the teacher is wrong here
    total = weight = 0.0
    for s, t, y in zip(student, teacher, target, strict=True):
        entropy = -(softmax(t / 10) * np.log(softmax(s / 10).clip(0.005, 1))).sum()
        ahead = -np.log(softmax(s)[y].clip(0.005, 1)) + np.log(softmax(t)[y].clip(0.005, 1))
        mask = max(ahead, 0) * (t.argmax() == y)
        total, weight = total + mask * entropy, weight + mask
    assert weight > 0
    found = regularised_distillation(as_logits(student), as_logits(teacher), as_target(target))
    assert float(found) == pytest.approx(total / weight, rel=1e-5)


def test_where_the_teacher_is_wrong_or_no_better_it_weighs_nothing():
    # right and better; right, but the student knows better; wrong; wrong, though less than the student
    teacher = np.array([[5.0, 0, 0, 0], [2.0, 0, 0, 0], [5.0, 0, 0, 0], [2.0, 1.9, 0, 0]])
    student = np.array([[0.0, 0, 0, 0], [9.0, 0, 0, 0], [0.0, 0, 0, 0], [5.0, 0, 0, 0]])
    target = as_target([0, 0, 1, 1])
    mask = distillation_mask(as_logits(student), as_logits(teacher), target.long()).flatten()
    assert float(mask[0]) > 0
    assert mask[1:].tolist() == [0.0, 0.0, 0.0]
    logits = as_logits(student).requires_grad_()
    regularised_distillation(logits, as_logits(teacher), target).backward()
    assert float(logits.grad[..., 0].abs().max()) > 0
    assert float(logits.grad[..., 1:].abs().max()) == 0


def test_an_empty_mask_costs_nothing_and_has_a_finite_gradient():
    student = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.zeros(2, 4, 2, 2, 2)
    teacher[:, 1] = 10
    loss = regularised_distillation(student, teacher, torch.zeros(2, 2, 2, 2, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((student.grad == 0).all())


def test_the_teacher_gets_no_gradient_and_the_mask_gives_none():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 4, 2, 2, 2, generator=generator).requires_grad_()
    teacher = (4 * torch.randn(1, 4, 2, 2, 2, generator=generator)).requires_grad_()
    target = teacher.detach().argmax(1).to(torch.uint8)
    regularised_distillation(student, teacher, target).backward()
    assert teacher.grad is None
    constant = student.detach().clone().requires_grad_()
    mask = distillation_mask(constant.detach(), teacher.detach(), target.long())
    q = torch.softmax(constant / 10, 1).clamp(0.005, 1)
    ((-(torch.softmax(teacher.detach() / 10, 1) * q.log()).sum(1) * mask).sum() / mask.sum()).backward()
    torch.testing.assert_close(student.grad, constant.grad)


def test_four_cases_make_four_positives_and_twelve_negatives():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.nn.functional.normalize(torch.randn(4, 16, generator=generator) + shift, dim=1) for shift in (0, 1)
    )
    positives, negatives = [], []
    for i, j in itertools.product(range(4), range(4)):
        d = float((student[i] - teacher[j]).norm())
        (positives if i == j else negatives).append(d * d if i == j else max(1 - d, 0) ** 2)
    assert (len(positives), len(negatives)) == (4, 12)
    expected = (sum(positives) + sum(negatives)) / 16
    assert float(contrastive_distillation(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_image_term_at_its_corners():
    apart = torch.eye(4, 16)
    assert float(contrastive_distillation(apart, apart)) == 0
    alike = apart[:1].repeat(4, 1)
    assert float(contrastive_distillation(alike, alike)) == pytest.approx(12 / 16, rel=1e-5)
    assert float(contrastive_distillation(-alike, alike)) == pytest.approx(4 * 2**2 / 16)


def test_image_term_has_a_finite_gradient_where_embeddings_coincide():
    student = torch.eye(1, 16).repeat(4, 1).requires_grad_()
    teacher = torch.eye(1, 16).repeat(4, 1).requires_grad_()
    contrastive_distillation(student, teacher).backward()
    assert bool(student.grad.isfinite().all())
    assert bool(teacher.grad.isfinite().all())


def test_under_bf16_autocast_the_losses_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 4, 4, 4, generator=generator).bfloat16() * 3 for _ in range(2))
    target = teacher.argmax(1).to(torch.uint8)
    a, b = (torch.randn(4, 16, generator=generator).bfloat16() / 4 for _ in range(2))
    pixel = regularised_distillation(student.float(), teacher.float(), target)
    image = contrastive_distillation(a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_pixel = regularised_distillation(student, teacher, target)
        found_image = contrastive_distillation(a, b)
    assert found_pixel.dtype == found_image.dtype == torch.float32
    assert torch.equal(found_pixel, pixel)
    assert torch.equal(found_image, image)
