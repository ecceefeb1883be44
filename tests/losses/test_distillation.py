import itertools

import numpy as np
import pytest
import torch

from mindgap.losses.distillation import (
    bottleneck_distillation,
    contrastive_distillation,
    distillation_mask,
    elementwise_distillation,
    prototype_distillation,
    regularised_distillation,
    similarity_maps,
    softened_distillation,
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


def divergence(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """KL of the softened rows of two tables, per row."""
    q, p = softmax(teacher / temperature), softmax(student / temperature)
    return (q * np.log(q / p)).sum(-1)


def test_softened_term_by_hand_with_its_factor():
    rng = np.random.default_rng(1)
    student, teacher = 3 * rng.standard_normal((6, 4)), 6 * rng.standard_normal((6, 4))
    for temperature in (1.0, 5.0):
        expected = temperature**2 * divergence(student, teacher, temperature).mean()
        found = softened_distillation(as_logits(student), as_logits(teacher), temperature=temperature)
        assert found.shape == (1,)
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_the_gradient_of_the_softened_term_hardly_depends_on_the_temperature():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, 3, 3, generator=generator) for _ in range(2))
    sizes = []
    for temperature in (20.0, 40.0):
        logits = student.clone().requires_grad_()
        softened_distillation(logits, teacher, temperature=temperature).mean().backward()
        sizes.append(float(logits.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_bottleneck_term_by_hand():
    rng = np.random.default_rng(2)
    student, teacher = rng.standard_normal((5, 6)), rng.standard_normal((5, 6))
    found = bottleneck_distillation(as_logits(student), as_logits(teacher))
    assert float(found) == pytest.approx(divergence(student, teacher, 1.0).mean(), rel=1e-4)


def test_protokds_reduction_is_the_mean_over_all_elements():
    rng = np.random.default_rng(3)
    student, teacher = 3 * rng.standard_normal((6, 4)), 6 * rng.standard_normal((6, 4))
    q, p = softmax(teacher / 10), softmax(student / 10)
    elements = q * np.log(q / p)
    assert elements.shape == (6, 4)
    found = elementwise_distillation(as_logits(student), as_logits(teacher))
    assert float(found) == pytest.approx(elements.mean(), rel=1e-4)
    voxelwise = softened_distillation(as_logits(student), as_logits(teacher), temperature=10.0)
    assert float(found) == pytest.approx(float(voxelwise) / (4 * 100), rel=1e-4)


@pytest.mark.parametrize("term", [softened_distillation, bottleneck_distillation, elementwise_distillation])
def test_divergences_are_zero_in_agreement_positive_else_and_one_value_per_case(term):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 2, 2, 2, generator=generator) for _ in range(2))
    assert torch.equal(term(student, student), torch.zeros(3))
    mixed = term(torch.cat([student[:2], teacher[2:]]), teacher)
    assert mixed.shape == (3,)
    assert bool((mixed[:2] > 0).all())
    assert float(mixed[2]) == 0
    student.requires_grad_()
    teacher.requires_grad_()
    term(student, teacher).mean().backward()
    assert teacher.grad is None
    assert float(student.grad.abs().max()) > 0


def labels_of(*rows) -> torch.Tensor:
    """Cases of a few voxels along one axis."""
    return torch.tensor(np.array(rows), dtype=torch.uint8).view(len(rows), 1, 1, -1)


def test_prototype_term_by_hand():
    rng = np.random.default_rng(4)
    student, teacher = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 7, 5))  # other channels
    target = np.array([[0, 0, 1, 3, 3], [1, 0, 3, 3, 0]])  # nobody has class 2

    def maps(f, label):
        found = []
        for feature, classes in zip(f, target, strict=True):
            prototype = feature[:, classes == label].sum(1) / ((classes == label).sum() + 1e-5)
            lengths = np.linalg.norm(feature, axis=0) * np.linalg.norm(prototype)
            found.append(prototype @ feature / lengths)
        return np.array(found)

    expected = np.mean([(maps(student, label) - maps(teacher, label)) ** 2 for label in (0, 1, 3)])
    as_map = lambda x: torch.tensor(x, dtype=torch.float32)[:, :, None, None]  # noqa: E731
    found = prototype_distillation(as_map(student), as_map(teacher), labels_of(*target))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_class_that_one_case_lacks_is_skipped():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 1, 1, 6, generator=generator) for _ in range(2))
    both = labels_of([0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1])
    lacking = labels_of([0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1])
    for target, kept in ((both, [0, 1]), (lacking, [0, 1])):
        masks = torch.stack([target == label for label in range(4)], dim=1).flatten(2).float()
        apart = (similarity_maps(student, masks) - similarity_maps(teacher, masks)).square()
        found = prototype_distillation(student, teacher, target)
        assert float(found) == pytest.approx(float(apart[:, kept].mean()), rel=1e-5)


def test_without_a_class_that_all_cases_have_the_prototype_term_is_zero_with_a_finite_gradient():
    student = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    target[1] = 3
    loss = prototype_distillation(student, torch.ones(2, 3, 2, 2, 2), target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert bool((student.grad == 0).all())


def test_features_of_length_zero_give_a_finite_gradient():
    """What a ReLU leaves of many voxels."""
    student = torch.randn(2, 3, 2, 2, 4, generator=torch.Generator().manual_seed(0)).relu()
    student[:, :, 0] = 0
    student.requires_grad_()
    target = torch.arange(4, dtype=torch.uint8).expand(2, 2, 2, 4)
    loss = prototype_distillation(student, torch.zeros(2, 3, 2, 2, 4), target)
    loss.backward()
    assert float(loss.detach()) > 0
    assert bool(student.grad.isfinite().all())


def test_the_prototype_term_agrees_with_itself_at_any_scale_and_leaves_the_teacher_alone():
    student = torch.randn(2, 3, 2, 2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.arange(4, dtype=torch.uint8).expand(2, 2, 2, 4)
    teacher = (7 * student.detach()).requires_grad_()
    loss = prototype_distillation(student, teacher, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-8)
    assert teacher.grad is None


def test_under_bf16_autocast_the_divergences_and_prototypes_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 4, 4, 4, generator=generator).bfloat16() * 3 for _ in range(2))
    target = torch.randint(0, 4, (2, 4, 4, 4), generator=generator, dtype=torch.uint8)
    terms = (
        softened_distillation,
        bottleneck_distillation,
        elementwise_distillation,
        lambda s, t: prototype_distillation(s, t, target),
    )
    for term in terms:
        expected = term(student.float(), teacher.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = term(student, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
