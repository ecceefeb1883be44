import math

import pytest
import torch

from mindgap.losses.segmentation import (
    dice_loss,
    region_dice_loss,
    segmentation_terms,
    soft_target_loss,
    weighted_cross_entropy,
)


def logits_of(probabilities) -> torch.Tensor:
    """Logits (1 C 1 1 V) whose softmax is the table voxel x class."""
    return torch.tensor(probabilities).T[None, :, None, None, :].log()


def target_of(*classes: int) -> torch.Tensor:
    return torch.tensor(classes, dtype=torch.uint8).view(1, 1, 1, -1)


def test_dice_by_hand():
    logits = logits_of([[0.75, 0.25], [0.5, 0.5]])
    first = (2 * 0.75 + 1e-5) / (0.75**2 + 0.5**2 + 1 + 1e-5)
    second = (2 * 0.5 + 1e-5) / (0.25**2 + 0.5**2 + 1 + 1e-5)
    assert float(dice_loss(logits, target_of(0, 1))) == pytest.approx(1 - (first + second) / 2, rel=1e-6)


def test_dice_sums_over_the_batch_before_it_divides():
    logits = logits_of([[0.75, 0.25], [0.5, 0.5]])
    apart = torch.cat([logits[..., :1], logits[..., 1:]])  # the same two voxels as two cases
    target = torch.tensor([0, 1], dtype=torch.uint8).view(2, 1, 1, 1)
    assert float(dice_loss(apart, target)) == pytest.approx(float(dice_loss(logits, target_of(0, 1))))


def test_cross_entropy_by_hand():
    probabilities = [[0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.9, 0.05, 0.05], [0.2, 0.3, 0.5]]
    # classes 0, 0, 0, 2: w0 = 1 - 3/4, w2 = 1 - 1/4
    cost = -0.25 * (math.log(0.5) + math.log(0.7) + math.log(0.9)) - 0.75 * math.log(0.5)
    found = weighted_cross_entropy(logits_of(probabilities), target_of(0, 0, 0, 2))
    assert float(found) == pytest.approx(cost / (3 * 0.25 + 0.75), rel=1e-5)


def test_agreement_costs_nothing():
    target = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    logits = 40 * torch.nn.functional.one_hot(target.long(), 4).movedim(-1, 1).float()
    assert float(dice_loss(logits, target)) == pytest.approx(0, abs=1e-6)
    assert float(weighted_cross_entropy(logits, target)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-logits, target)) > 0.7


@pytest.mark.parametrize("class_", [0, 3])
def test_a_batch_of_one_class_has_a_finite_loss_and_gradient(class_):
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.full((2, 3, 3, 3), class_, dtype=torch.uint8)
    terms = segmentation_terms(logits, target)
    (terms["cross_entropy"] + terms["dice"]).backward()
    plain = torch.nn.functional.cross_entropy(logits.detach(), target.long())
    assert float(terms["cross_entropy"].detach()) == pytest.approx(float(plain))
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.abs().max()) > 0


def test_the_rare_class_weighs_more():
    target = target_of(0, 0, 0, 0, 0, 0, 0, 1)
    logits = torch.zeros(1, 4, 1, 1, 8, requires_grad=True)
    weighted_cross_entropy(logits, target).backward()
    pull = logits.grad.abs().sum(1).flatten()
    assert float(pull[7] / pull[0]) == pytest.approx(7)


def test_under_bf16_autocast_the_losses_are_computed_in_float32():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 8, 8, 8, generator=generator).bfloat16()
    target = torch.randint(0, 4, (2, 8, 8, 8), generator=generator, dtype=torch.uint8)
    expected = segmentation_terms(logits.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = segmentation_terms(logits, target)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value)


def test_regions_by_hand():
    # two voxels: ET with p = (0.2, 0.5, 0.2, 0.1), background with p = (0.7, 0.1, 0.1, 0.1)
    logits = logits_of([[0.2, 0.5, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    parts = [(p + 0.0, q) for p, q in ((0.5, 0.6), (0.7, 0.9), (0.8, 1.1))]  # of ET, TC, WT: overlap, sum of p
    expected = sum(1 - (2 * overlap + 1) / (total + 1 + 1) for overlap, total in parts) / 3
    assert float(region_dice_loss(logits, target_of(1, 0))) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_told_apart_within_a_region_costs_that_region_nothing():
    sure = logits_of([[1e-6, 0.5, 0.5, 1e-6], [1 - 3e-6, 1e-6, 1e-6, 1e-6]])  # ET or NCR, surely TC
    at_et, at_ncr = (float(region_dice_loss(sure, target_of(label, 0))) for label in (1, 2))
    assert at_et < 1 / 3
    assert at_ncr < 1 / 3


def test_a_soft_target_costs_nothing_where_both_say_the_same_and_teaches_only_the_student():
    teacher = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    assert float(soft_target_loss(teacher.detach() + 5.0, teacher)) == pytest.approx(0.0, abs=1e-6)
    student = torch.zeros(2, 4, 3, 3, 3, requires_grad=True)
    cost = soft_target_loss(student, teacher)
    q = teacher.softmax(1)
    expected = (q * (q.log() - math.log(0.25))).sum(1).mean()
    assert float(cost.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    cost.backward()
    assert teacher.grad is None
    assert bool(student.grad.abs().sum() > 0)
