import pytest
import torch
from torch import nn

from mindgap.losses.alignment import align_to_mixture
from mindgap.networks.encoders import SequenceEncoders, block_diagonal
from mindgap.networks.norms import BrainNorm, _BrainNormalise
from mindgap.shapes import BACKGROUND

J, C, SIDE = 3, 4, 8


def make_image(rows: int, seed: int = 0, offsets=(0.0, 0.3, -0.3)) -> torch.Tensor:
    """Brain in a box, background around it; each sequence with a brightness of its own."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((rows, J, SIDE, SIDE, SIDE), BACKGROUND)
    noise = torch.rand((rows, J, 5, 6, 5), generator=generator) - 0.5
    image[:, :, 2:7, 1:7, 1:6] = noise + torch.tensor(offsets).view(1, J, 1, 1, 1)
    return image


def make_encoders(seed: int = 0) -> SequenceEncoders:
    torch.manual_seed(seed)
    encoders = SequenceEncoders(J, channels=C)
    with torch.no_grad():  # running averages of a network that has seen something
        encoders.embed_norm.running_mean.normal_()
        encoders.embed_norm.running_var.uniform_(0.5, 2)
        encoders.embed_norm.weight.uniform_(0.5, 2)
        encoders.embed_norm.bias.normal_()
        encoders.norm.mean.normal_()
        encoders.norm.variance.uniform_(0.5, 2)
    return encoders


def by_rows(encoders, image, present):
    """The path taken where a sequence is absent, forced."""
    raw = torch.cat([encoders._encode_rows(image, present[:, j], j) for j in range(J)], dim=1)
    return encoders.norm(raw, image > BACKGROUND).split(C, dim=1)


@pytest.mark.parametrize("training", [True, False])
def test_the_grouped_path_and_the_path_by_rows_agree(training):
    image, present = make_image(3), torch.ones(3, J, dtype=torch.bool)
    results = []
    for path in (lambda e: e(image, present)[0], lambda e: by_rows(e, image, present)):
        encoders = make_encoders().train(training)
        latents = torch.stack(path(encoders))
        (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum().backward()
        buffers = {n: b for n, b in encoders.named_buffers() if "num_batches" not in n}
        results.append((latents.detach(), {n: p.grad for n, p in encoders.named_parameters()}, buffers))
    (latents, gradients, buffers), (other, other_gradients, other_buffers) = results
    torch.testing.assert_close(latents, other, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-3, atol=1e-3)
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer, other_buffers[name], rtol=1e-4, atol=1e-5)


def test_at_evaluation_a_latent_does_not_depend_on_the_other_sequences():
    encoders = make_encoders().eval()
    image = make_image(2)
    complete, _ = encoders(image, torch.ones(2, J, dtype=torch.bool))
    for j in range(J):
        present = torch.zeros(2, J, dtype=torch.bool)
        present[:, j] = True
        alone, brains = encoders(torch.where(present[:, :, None, None, None], image, torch.nan), present)
        torch.testing.assert_close(alone[j], complete[j], rtol=1e-4, atol=1e-5)
        for other in set(range(J)) - {j}:
            assert bool((alone[other] == 0).all())
            assert not bool(brains[other].any())


@pytest.mark.parametrize("training", [True, False])
def test_latents_are_zero_outside_the_brain(training):
    image = make_image(2)
    latents, brains = make_encoders().train(training)(image, torch.ones(2, J, dtype=torch.bool))
    for latent, brain in zip(latents, brains, strict=True):
        outside = ~brain.expand_as(latent)
        assert bool((latent[outside] == 0).all())
        assert bool((latent[~outside] != 0).any())


def test_in_training_the_spread_inside_the_brain_is_one_over_all_sequences_together():
    encoders = make_encoders().train()
    with torch.no_grad():
        latents, brains = encoders(make_image(3), torch.ones(3, J, dtype=torch.bool))
    inside = [z.movedim(1, -1)[b[:, 0]] for z, b in zip(latents, brains, strict=True)]  # voxels C
    pooled = torch.cat(inside)
    torch.testing.assert_close(pooled.mean(0), torch.zeros(C), rtol=0, atol=1e-4)
    torch.testing.assert_close(pooled.std(0, correction=0), torch.ones(C), rtol=1e-2, atol=0)
    centroids = torch.stack([voxels.mean(0) for voxels in inside])
    assert float(centroids.abs().max()) > 0.1, "statistics per sequence would have hidden the gap"


def test_absent_sequences_have_no_share_in_the_statistics():
    present = torch.tensor([[True, True, False], [True, True, True]])
    image = make_image(2)
    encoders = make_encoders().train()
    latents, brains = encoders(torch.where(present[:, :, None, None, None], image, torch.nan), present)
    pooled = torch.cat([z.movedim(1, -1)[b[:, 0]] for z, b in zip(latents, brains, strict=True)])
    torch.testing.assert_close(pooled.std(0, correction=0), torch.ones(C), rtol=1e-2, atol=0)
    assert bool((latents[2][0] == 0).all())


@pytest.mark.parametrize("filling", [float("nan"), 5.0])
def test_what_stands_in_an_absent_sequence_changes_no_latent_and_no_gradient(filling):
    present = torch.tensor([[True, True, False], [False, True, True], [True, True, True]])
    image, results = make_image(3), []
    for fill in (BACKGROUND, filling):
        encoders = make_encoders().train()
        spoilt = torch.where(present[:, :, None, None, None], image, torch.tensor(fill))
        latents = torch.stack(encoders(spoilt, present)[0])
        (latents * torch.linspace(-1, 1, latents.numel()).view_as(latents)).sum().backward()
        results.append([latents.detach(), *(p.grad for p in encoders.parameters()), *encoders.buffers()])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
        assert bool(found.isfinite().all())


def normalised_alignment(norm: nn.Module, raw, brain) -> float:
    latents = norm(torch.cat(list(raw), dim=1), brain.expand(-1, len(raw), -1, -1, -1)).split(raw[0].shape[1], dim=1)
    present = torch.ones(brain.shape[0], len(raw), dtype=torch.bool)
    return float(align_to_mixture(latents, torch.full((len(raw),), 1 / len(raw)), present, brain).mean())


@pytest.mark.parametrize(("factor", "epsilon", "tolerance"), [(1e-1, 1e-8, 1e-4), (1e-3, 1e-12, 1e-4)])
def test_shrinking_the_latents_is_not_alignment(factor, epsilon, tolerance):
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn((2, C, 6, 6, 6), generator=generator) for _ in range(J)]
    brain = torch.ones(2, 1, 6, 6, 6, dtype=torch.bool)
    whole = normalised_alignment(BrainNorm(C, epsilon=epsilon).train(), raw, brain)
    small = normalised_alignment(BrainNorm(C, epsilon=epsilon).train(), [factor * z for z in raw], brain)
    assert whole > 0.5
    assert small == pytest.approx(whole, rel=tolerance)


def test_a_latent_that_is_constant_inside_the_brain_does_not_score_as_aligned():
    """Nearly constant in each sequence, with a strong background that all share: BatchNorm is deceived, we are not."""
    brain = torch.zeros(1, 1, 10, 10, 10, dtype=torch.bool)
    brain[..., 3:6, 3:6, 3:6] = True
    raw = [torch.where(brain, 0.02 * j, 3.0).expand(1, C, 10, 10, 10).clone() for j in range(J)]
    assert normalised_alignment(BrainNorm(C).train(), raw, brain) > 0.8
    deceived = nn.BatchNorm3d(C, affine=False)
    every = deceived(torch.cat(raw)).split(1)
    present = torch.ones(1, J, dtype=torch.bool)
    assert float(align_to_mixture(every, torch.full((J,), 1 / J), present, brain)) < 0.01


def test_at_evaluation_the_running_averages_are_used():
    norm = BrainNorm(1, epsilon=0.0).eval()
    norm.mean.fill_(2.0)
    norm.variance.fill_(9.0)
    brain = torch.tensor([True, False]).view(1, 1, 1, 1, 2)
    latent = norm(torch.tensor([8.0, 8.0]).view(1, 1, 1, 1, 2), brain)
    assert latent.flatten().tolist() == [2.0, 0.0]
    assert (float(norm.mean), float(norm.variance)) == (2.0, 9.0)


def test_running_averages_follow_brain_voxels_only():
    norm = BrainNorm(1, momentum=0.25).train()
    brain = torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    norm(torch.tensor([2.0, 6.0, 1000.0]).view(1, 1, 1, 1, 3), brain)
    assert float(norm.mean) == pytest.approx(0.25 * 4)
    assert float(norm.variance) == pytest.approx(0.75 * 1 + 0.25 * 4)


def test_a_crop_without_brain_stays_finite_and_keeps_the_averages():
    encoders = make_encoders().train()
    mean, variance = encoders.norm.mean.clone(), encoders.norm.variance.clone()
    image = torch.full((2, J, SIDE, SIDE, SIDE), BACKGROUND)
    latents, _ = encoders(image, torch.ones(2, J, dtype=torch.bool))
    torch.stack(latents).sum().backward()
    assert bool((torch.stack(latents) == 0).all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in encoders.parameters())
    torch.testing.assert_close(encoders.norm.mean, mean)
    torch.testing.assert_close(encoders.norm.variance, variance)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("voxels", [0, 1, 9])
def test_the_gradient_of_the_normalisation_is_exact(voxels, shared):
    """Against finite differences, also where there is too little brain for statistics."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((2, 2, 3, 6), generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 2, 1, 6, dtype=torch.float64)
    mask.view(-1)[torch.randperm(24, generator=generator)[:voxels]] = 1
    shape = (3,) if shared else (2, 3)
    running = torch.randn(shape, generator=generator, dtype=torch.float64), torch.full(shape, 2.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: _BrainNormalise.apply(x, mask, *running, 1e-8, shared)[0], values)


def test_masked_statistics_are_those_of_the_masked_values():
    generator = torch.Generator().manual_seed(1)
    raw = 50 + torch.randn((2, 6, 4, 4, 4), generator=generator)
    brains = torch.rand((2, 2, 4, 4, 4), generator=generator) > 0.4
    norm = BrainNorm(3, momentum=1.0).train()
    latents = norm(raw, brains).view(2, 2, 3, -1)
    inside = [raw.view(2, 2, 3, -1)[:, :, c][brains.view(2, 2, -1)] for c in range(3)]
    torch.testing.assert_close(norm.mean, torch.stack([rows.mean() for rows in inside]))
    torch.testing.assert_close(norm.variance, torch.stack([rows.var(unbiased=False) for rows in inside]))
    expected = torch.where(
        brains.view(2, 2, 1, -1),
        (raw.view(2, 2, 3, -1) - norm.mean[:, None]) / norm.variance[:, None].sqrt(),
        torch.zeros(()),
    )
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_one_dense_convolution_is_the_encoders_side_by_side():
    encoders, image = make_encoders().eval(), make_image(2)
    dense = torch.nn.functional.conv3d(image, block_diagonal(encoders.embed.weight, J), padding=1)
    torch.testing.assert_close(dense, encoders.embed(image))
    with torch.autocast("cpu", torch.bfloat16):  # both convolutions dense
        latents = encoders._encode_all(image)
    torch.testing.assert_close(latents.float(), encoders._encode_all(image), rtol=0.05, atol=0.1)


def test_a_share_of_its_own_statistics_is_what_a_batch_of_two_meets():
    """Averages that are another row's, and half a share of one's own: what training does to the two together."""
    torch.manual_seed(0)
    values = torch.randn(2, 6, 5, 5, 5) * torch.tensor([1.0, 3.0])[:, None, None, None, None] + 0.7
    brains = torch.rand(2, 3, 5, 5, 5) > 0.3
    brains[1] = brains[0]  # as many voxels, so that both count alike
    together = BrainNorm(2)(values, brains)
    other = BrainNorm(2)
    other(values[1:], brains[1:])
    alone = BrainNorm(2, own_share=0.5).eval()
    inside = brains[1:, :, None].expand(1, 3, 2, 5, 5, 5)
    parts = values[1:].unflatten(1, (3, 2))
    for channel in range(2):
        picked = parts[:, :, channel][inside[:, :, channel]]
        alone.mean[channel], alone.variance[channel] = picked.mean(), picked.var(correction=0)
    assert torch.allclose(alone(values[:1], brains[:1]), together[:1], atol=1e-5)
    own = BrainNorm(2, own_share=1.0).eval()
    assert torch.allclose(own(values[:1], brains[:1]), BrainNorm(2)(values[:1], brains[:1]), atol=1e-5)


@pytest.mark.parametrize("own_share", [0.0, 0.5])
def test_statistics_of_its_own_are_those_of_a_sequence_that_is_alone(own_share):
    """In training, after it, and where a sequence is absent everywhere."""
    torch.manual_seed(0)
    values = torch.randn(2, 6, 5, 5, 5) * torch.tensor([1.0, 1.0, 3.0, 3.0, 9.0, 9.0])[:, None, None, None] + 0.7
    brains = torch.rand(2, 3, 5, 5, 5) > 0.3
    brains[1, 0], brains[:, 2] = False, False
    apart = BrainNorm(2, own_share=own_share, sequences=3)
    alone = [BrainNorm(2, own_share=own_share) for _ in range(3)]
    for training in (True, False):
        found = apart.train(training)(values, brains)
        each = [
            norm.train(training)(values[:, 2 * j : 2 * j + 2], brains[:, j : j + 1]) for j, norm in enumerate(alone)
        ]
        assert torch.allclose(found, torch.cat(each, dim=1), atol=1e-6)
    assert torch.allclose(apart.mean, torch.stack([norm.mean for norm in alone]))
    assert torch.equal(apart.variance[2], torch.ones(2)), "absent everywhere: nothing was learnt of it"


def test_shared_averages_are_taken_for_those_of_every_sequence():
    shared, apart = BrainNorm(2), BrainNorm(2, sequences=3)
    shared.mean.copy_(torch.tensor([1.0, 2.0]))
    apart.load_state_dict(shared.state_dict())
    assert torch.equal(apart.mean, torch.tensor([[1.0, 2.0]] * 3))
    with pytest.raises(RuntimeError, match="size mismatch"):
        shared.load_state_dict(apart.state_dict())
