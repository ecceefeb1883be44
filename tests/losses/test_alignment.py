import pytest
import torch

from mindgap.losses.alignment import (
    align_by_precision,
    align_input_to_normal,
    align_literally,
    align_moments_to_normal,
    align_to_mixture,
    align_to_normal,
    align_to_released_mixture,
    align_to_sequence,
)
from mindgap.losses.distances import brain_distance, mixture_anchor, sequence_distances

SHAPE = (2, 3, 4, 4, 4)


def everywhere(rows: int = 2) -> torch.Tensor:
    return torch.ones(rows, 1, *SHAPE[2:], dtype=torch.bool)


def all_present(count: int, rows: int = 2) -> torch.Tensor:
    return torch.ones(rows, count, dtype=torch.bool)


def random_latents(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator).requires_grad_() for _ in range(count)]


def constants(*values: float) -> list[torch.Tensor]:
    return [torch.full((1, 1, 1, 1, 2), value) for value in values]


PAIR = torch.ones(1, 1, 1, 1, 2, dtype=torch.bool)


def test_distance_by_hand():
    latent = torch.tensor([[[1.0, 2.0, 9.0]], [[0.0, 4.0, 9.0]]]).view(1, 2, 1, 1, 3)
    anchor = torch.zeros(1, 2, 1, 1, 3)
    brain = torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    assert brain_distance(latent, anchor, brain).tolist() == [(1 + 4 + 0 + 16) / 4]


def test_only_brain_voxels_count_whatever_stands_outside():
    generator = torch.Generator().manual_seed(0)
    brain = torch.rand((2, 1, 4, 4, 4), generator=generator) > 0.5
    latents = [torch.where(brain, 0.5, float(j * 100)).expand(SHAPE).clone().requires_grad_() for j in range(3)]
    loss = align_to_mixture(latents, torch.full((3,), 1 / 3), all_present(3), brain)
    assert loss.detach().tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    moved = [latent + (j == 0) for j, latent in enumerate(latents)]
    align_to_mixture(moved, torch.full((3,), 1 / 3), all_present(3), brain).sum().backward()
    outside = ~brain.expand(SHAPE)
    assert bool((latents[0].grad[outside] == 0).all())
    assert bool((latents[0].grad[~outside] > 0).all())


def test_a_case_without_brain_costs_nothing_and_stays_finite():
    latents = random_latents(2)
    brain = everywhere()
    brain[0] = False
    loss = align_to_mixture(latents, torch.full((2,), 0.5), all_present(2), brain)
    loss.sum().backward()
    assert float(loss[0].detach()) == 0
    assert float(loss[1].detach()) > 0
    assert bool(latents[0].grad.isfinite().all())
    assert bool((latents[0].grad[0] == 0).all())


@pytest.mark.parametrize("loss", ["k", "mixture"])
def test_agreement_costs_nothing(loss):
    latent = random_latents(1)[0].detach()
    if loss == "k":
        value = align_to_sequence([latent] * 3, all_present(3), everywhere(), k=1)
    else:
        value = align_to_mixture([latent] * 3, torch.tensor([0.2, 0.5, 0.3]), all_present(3), everywhere())
    assert value.tolist() == pytest.approx([0, 0], abs=1e-10)


def test_anchor_k_by_hand():
    # k = 1 with value 1: (1-2)^2 for 3... the anchor itself is not averaged in
    loss = align_to_sequence(constants(3.0, 1.0, 0.0), all_present(3, 1), PAIR, k=1)
    assert loss.tolist() == [((3 - 1) ** 2 + (0 - 1) ** 2) / 2]
    two = align_to_sequence(constants(3.0, 1.0), all_present(2, 1), PAIR, k=1)
    assert two.tolist() == [4.0]


def test_anchor_k_over_present_sequences_only():
    latents = [z.repeat(3, 1, 1, 1, 1) for z in constants(3.0, 1.0, 0.0)]
    present = torch.tensor([[True, True, False], [True, False, True], [False, True, False]])
    brain = PAIR.repeat(3, 1, 1, 1, 1)
    assert align_to_sequence(latents, present, brain, k=1).tolist() == [4.0, 0.0, 0.0]


def test_the_anchor_of_k_gets_a_gradient_only_when_asked():
    for asked in (False, True):
        latents = random_latents(3)
        align_to_sequence(latents, all_present(3), everywhere(), k=2, anchor_gradient=asked).sum().backward()
        assert latents[0].grad is not None
        assert float(latents[0].grad.abs().sum()) > 0
        reached = latents[2].grad is not None and float(latents[2].grad.abs().sum()) > 0
        assert reached == asked


def test_mixture_by_hand():
    loss = align_to_mixture(constants(4.0, 0.0), torch.tensor([0.25, 0.75]), all_present(2, 1), PAIR)
    assert loss.tolist() == pytest.approx([((4 - 1) ** 2 + (0 - 1) ** 2) / 2])


def test_mixture_has_the_value_and_the_gradients_of_its_formula_written_out():
    generator = torch.Generator().manual_seed(3)
    brain = torch.rand(2, 1, *SHAPE[2:], generator=generator) > 0.4
    present = torch.tensor([[True, True, True], [True, False, True]])
    found = []
    for written_out in (False, True):
        latents, logits = random_latents(3), torch.tensor([0.3, -0.2, 0.9], requires_grad=True)
        weights = torch.softmax(logits, 0)
        if written_out:
            anchor = mixture_anchor(latents, weights, present)
            distances = sequence_distances(latents, anchor, brain) * present
            loss = distances.sum(1) / present.sum(1)
        else:
            loss = align_to_mixture(latents, weights, present, brain)
        (loss * torch.tensor([1.0, 2.5])).sum().backward()
        found.append((loss, logits.grad, *(latent.grad for latent in latents)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert found[0][1].abs().max() > 1e-3


def test_the_weights_of_the_present_sequences_are_renormalised():
    weights = torch.tensor([0.1, 0.3, 0.6])
    present = torch.tensor([[True, True, False]])
    anchor = mixture_anchor(constants(4.0, 0.0, 50.0), weights, present)
    assert anchor.flatten().tolist() == pytest.approx([1.0, 1.0])
    loss = align_to_mixture(constants(4.0, 0.0, 50.0), weights, present, PAIR)
    assert loss.tolist() == pytest.approx([(9 + 1) / 2])
    one = torch.tensor([[False, False, True]])
    assert align_to_mixture(constants(4.0, 0.0, 50.0), weights, one, PAIR).tolist() == pytest.approx([0.0])


def test_with_equal_weights_the_stop_gradient_changes_no_gradient():
    latents = random_latents(4)
    align_to_mixture(latents, torch.full((4,), 0.25), all_present(4), everywhere()).sum().backward()
    free = random_latents(4)
    anchor = torch.stack(free).mean(0)
    (sum(brain_distance(z, anchor, everywhere()) for z in free) / 4).sum().backward()
    for held, moved in zip(latents, free, strict=True):
        torch.testing.assert_close(held.grad, moved.grad)
    skewed = random_latents(4)
    weights = torch.tensor([0.7, 0.1, 0.1, 0.1])
    align_to_mixture(skewed, weights, all_present(4), everywhere()).sum().backward()
    assert not torch.allclose(skewed[0].grad, latents[0].grad)


def test_alignment_alone_draws_the_anchor_weights_to_equal():
    latents = [z.detach() for z in random_latents(3)]

    def cost(a):
        return align_to_mixture(latents, torch.softmax(a, 0), all_present(3), everywhere()).mean()

    a = torch.zeros(3, requires_grad=True)
    lowest = cost(a)
    lowest.backward()
    assert float(a.grad.abs().max()) < 1e-6
    a = torch.tensor([1.0, -1.0, 0.3], requires_grad=True)
    assert float(cost(a).detach()) > float(lowest.detach()) * 1.05
    optimiser = torch.optim.Adam([a], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        cost(a).backward()
        optimiser.step()
    assert torch.softmax(a.detach(), 0).tolist() == pytest.approx([1 / 3] * 3, abs=5e-3)


def test_distances_for_the_log():
    distances = sequence_distances(constants(3.0, 1.0, 0.0), constants(1.0)[0], PAIR)
    assert distances.tolist() == [[4.0, 0.0, 1.0]]


def test_under_bf16_autocast_the_losses_are_computed_in_float32():
    latents = [z.detach().bfloat16() for z in random_latents(3)]
    weights = torch.softmax(torch.tensor([0.3, -0.2, 0.1]), 0)
    floats = [z.float() for z in latents]
    mixture = align_to_mixture(floats, weights, all_present(3), everywhere())
    to_first = align_to_sequence(floats, all_present(3), everywhere(), k=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = align_to_mixture(latents, weights, all_present(3), everywhere())
        found_first = align_to_sequence(latents, all_present(3), everywhere(), k=0)
    assert found.dtype == found_first.dtype == torch.float32
    assert torch.equal(found, mixture)
    assert torch.equal(found_first, to_first)


def test_the_normal_anchor_is_the_divergence_from_the_standard_normal():
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn((2, 3, 4, 4, 4), generator=generator) for _ in range(2)]
    logs = torch.randn((2, 6, 4, 4, 4), generator=generator)
    brain = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    present = torch.tensor([[True, True], [True, False]])
    found = align_to_normal(means, logs, present, brain)
    expected = []
    for mean, log in zip(means, logs.chunk(2, dim=1), strict=True):
        given = torch.distributions.Normal(mean, (0.5 * log).exp())
        standard = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        expected.append(torch.distributions.kl_divergence(given, standard).mean((1, 2, 3, 4)))
    torch.testing.assert_close(found, torch.stack([(expected[0][0] + expected[1][0]) / 2, expected[0][1]]))
    zeros = [torch.zeros_like(mean) for mean in means]
    assert align_to_normal(zeros, torch.zeros_like(logs), present, brain).tolist() == [0.0, 0.0]


def test_the_drafts_normal_anchor_on_the_input_by_hand():
    image = torch.empty(2, 2, 2, 2, 2)
    image[:, 0], image[:, 1] = 3.0, 0.0
    image[1, 1] = float("nan")  # the second case lacks the second sequence
    present = torch.tensor([[True, True], [True, False]])
    mean, log_variance = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0).log().requires_grad_()
    found = align_input_to_normal(image, mean, log_variance, present)
    one, other = (4 / 2 + 2) / 2, (1 / 2 + 2) / 2  # ((m - x)^2 / v + v) / 2
    assert found.tolist() == pytest.approx([(one + other) / 2, one])
    found.sum().backward()
    slope = [-(3 - 1) / 2, (1 - 0) / 2]  # (m - x) / v
    assert float(mean.grad) == pytest.approx(sum(slope) / 2 + slope[0])


def test_moments_of_a_standard_normal_cost_nothing_though_nothing_is_paired():
    torch.manual_seed(0)
    latents = [torch.randn(1, 2, 24, 24, 24) for _ in range(3)]
    brain = torch.ones(1, 1, 24, 24, 24, dtype=torch.bool)
    assert float(align_moments_to_normal(latents, torch.ones(1, 3, dtype=torch.bool), brain)) < 1e-3
    shifted = [latent + 1 for latent in latents]
    cost = align_moments_to_normal(shifted, torch.ones(1, 3, dtype=torch.bool), brain)
    assert float(cost) == pytest.approx(0.5, abs=0.05)


def test_the_released_forms_by_hand():
    one, other = torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    brain = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    weights = torch.tensor([0.25, 0.75])  # A = .75: distances .5625 and .0625
    draft = align_to_released_mixture([one, other], weights, brain, anchor_gradient=False)
    later = align_to_released_mixture([one, other], weights, brain, anchor_gradient=True)
    assert float(draft) == pytest.approx(0.3125)
    assert float(later) == pytest.approx(0.15625)  # sum over J of d / (2 J); with four sequences the released /8


def test_the_literal_form_and_the_precision_form_by_hand():
    one, other = torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2)
    brain = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    both = torch.ones(1, 2, dtype=torch.bool)
    literal = align_literally([one, other], torch.tensor([-2.0, 5.0]), both, brain, k=1)
    assert float(literal) == pytest.approx(-2.0)
    lacking = torch.tensor([[True, False]])
    assert float(align_literally([one, other], torch.tensor([-2.0, 5.0]), lacking, brain, k=1)) == 0
    shares = torch.tensor([0.5, 0.5])
    assert float(align_by_precision([one, other], shares, both, brain)) == pytest.approx(0.5)
