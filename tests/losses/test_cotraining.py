import math

import pytest
import torch

from mindgap.losses.cotraining import (
    adversarial_loss,
    consistency_loss,
    content_loss,
    gram_matrix,
    ramp,
    sigmoid_dice_loss,
    style_loss,
)


def noise(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits_of(*rows) -> torch.Tensor:
    """Logits (1 C 1 1 V) of a row of probabilities per class."""
    p = torch.tensor(rows)
    return torch.log(p / (1 - p))[None, :, None, None, :]


def test_the_ramp_rises_over_the_first_eight_per_cent_of_the_steps():
    assert 10 * ramp(0, 2500) == pytest.approx(10 * math.exp(-5))
    assert 10 * ramp(200, 2500) == 10
    assert ramp(2500, 2500) == 1
    assert ramp(100, 2500) == pytest.approx(math.exp(-5 * 0.5**2))
    values = [ramp(step, 2500) for step in range(201)]
    assert values == sorted(values)
    assert ramp(0, 2500, share=0.0) == 1
    assert ramp(20, 250, share=0.08) == 1  # the published 20 of 250 epochs


def test_dice_by_hand():
    logits = logits_of([0.75, 0.5], [0.25, 0.5])
    target = torch.tensor([1, 2], dtype=torch.uint8).view(1, 1, 1, 2)
    first = 2 * 0.75 / (0.75**2 + 0.5**2 + 1 + 1e-7)
    second = 2 * 0.5 / (0.25**2 + 0.5**2 + 1 + 1e-7)
    assert float(sigmoid_dice_loss(logits, target)) == pytest.approx(2 - first - second, rel=1e-5)
    apart = torch.cat([logits[..., :1], logits[..., 1:]])  # the same voxels as two cases
    both = target.view(2, 1, 1, 1)
    assert float(sigmoid_dice_loss(apart, both)) == pytest.approx(2 - first - second, rel=1e-5)


def test_dice_is_zero_in_agreement_and_finite_where_there_is_no_tumour():
    target = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    truth = torch.stack([target == label for label in (1, 2, 3)], dim=1)
    assert float(sigmoid_dice_loss(80 * (truth.float() - 0.5), target)) == pytest.approx(0, abs=1e-5)
    for logits in (noise(2, 3, 4, 4, 4), torch.full((2, 3, 4, 4, 4), -200.0)):
        logits.requires_grad_()
        loss = sigmoid_dice_loss(logits, torch.zeros_like(target))
        loss.backward()
        assert float(loss.detach()) == 3
        assert bool(logits.grad.isfinite().all())


def test_consistency_by_hand_and_for_both():
    one, other = logits_of([0.75, 0.5], [0.2, 0.9]), logits_of([0.25, 0.5], [0.3, 0.9])
    assert float(consistency_loss(one, other)) == pytest.approx((0.5**2 + 0.1**2) / 2, rel=1e-5)
    pair = [noise(3, 3, 2, 2, 2, seed=seed).requires_grad_() for seed in (0, 1)]
    loss = consistency_loss(*pair)
    assert loss.shape == (3,)
    loss.mean().backward()
    torch.testing.assert_close(*[x.grad.abs().sign() for x in pair])  # nobody is held fixed
    assert torch.equal(consistency_loss(pair[0], pair[0]).detach(), torch.zeros(3))


def test_content_is_a_mean_over_channels_and_voxels_of_each_case():
    one, other = noise(3, 4, 2, 2, 2), noise(3, 4, 2, 2, 2, seed=1)
    expected = [float(torch.nn.functional.mse_loss(a, b)) for a, b in zip(one, other, strict=True)]
    assert content_loss(one, other).tolist() == pytest.approx(expected, rel=1e-5)


def test_gram_matrices_are_symmetric_and_every_channel_of_every_case_is_a_row():
    style = noise(2, 3, 2, 3, 4)
    gram = gram_matrix(style)
    assert gram.shape == (6, 6)
    torch.testing.assert_close(gram, gram.t())
    by_hand = (style[1, 2] * style[0, 1]).sum() / style.numel()
    assert float(gram[5, 1]) == pytest.approx(float(by_hand), rel=1e-4)
    assert bool((torch.linalg.eigvalsh(gram.double()) > -1e-9).all())


def test_style_by_hand():
    one, other = noise(2, 3, 2, 3, 4), noise(2, 3, 2, 3, 4, seed=1)
    apart = (gram_matrix(one) - gram_matrix(other)).square().sum()
    assert float(style_loss(one, other)) == pytest.approx(float(apart) / (4 * 3**2 * (2 * 3) ** 2), rel=1e-5)
    assert float(style_loss(one, one)) == 0


def test_the_discriminator_calls_the_full_path_zero_and_the_missing_path_one():
    verdict = torch.tensor([-3.0, 0.0, 2.0])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    for called, label in (("full", 0.0), ("missing", 1.0)):
        expected = bce(verdict, torch.full((3,), label), reduction="none")
        torch.testing.assert_close(adversarial_loss(verdict, called=called), expected)
    assert adversarial_loss(torch.tensor([200.0]), called="full").isfinite().all()


def test_under_bf16_autocast_the_losses_are_computed_in_float32():
    one, other = (noise(2, 3, 4, 4, 4, seed=seed).bfloat16() for seed in (0, 1))
    target = torch.randint(0, 4, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    terms = (
        lambda a, b: sigmoid_dice_loss(a, target),
        consistency_loss,
        content_loss,
        style_loss,
        lambda a, b: adversarial_loss(a[:, 0, 0, 0, 0], called="full"),
    )
    for term in terms:
        expected = term(one.float(), other.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = term(one, other)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
