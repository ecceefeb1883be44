import pytest
import torch

from mindgap.losses.segmentation import region_terms
from mindgap.networks.build import build_network
from mindgap.networks.ensemble import Ensemble
from mindgap.shapes import BACKGROUND

ARGUMENTS = {"sequences": 3, "latent_channels": 2, "width": 2, "own_share": 0.5}


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return build_network("fused_unet", {**ARGUMENTS, **changes})


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(3)
    image = torch.full((2, 3, 16, 16, 16), BACKGROUND)
    image[..., 2:14, 2:14, 2:14] = torch.rand((2, 3, 12, 12, 12), generator=generator) - 0.5
    return image


PRESENT = torch.tensor([[True, False, True], [False, True, False]])


@pytest.mark.parametrize(("each", "shared_norm"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("training", [True, False])
def test_what_stands_in_an_absent_sequence_changes_nothing(image, each, shared_norm, training):
    target = torch.randint(0, 4, (2, 16, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    results = []
    for filling in (BACKGROUND, float("nan"), 3.0):
        network = make(each=each, shared_norm=shared_norm).train(training)
        spoilt = torch.where(PRESENT[:, :, None, None, None], image, torch.tensor(filling))
        output = network(spoilt, PRESENT)
        torch.stack(list(region_terms(output.logits, target).values())).sum().backward()
        results.append([output.logits.detach(), *output.latents, *(p.grad for p in network.parameters())])
    for expected, *found in zip(*results, strict=True):
        assert all(torch.equal(expected, other) for other in found)
        assert bool(expected.isfinite().all())


def test_mean_and_variance_are_those_of_what_is_present(image):
    network = make().eval()
    latents = torch.cat(network(image, PRESENT).latents, dim=1)
    fused = network._fuse(latents, PRESENT)
    parts = latents.unflatten(1, (3, 2))
    both = parts[0, [0, 2]]
    assert torch.allclose(fused[0, :2], both.mean(0), atol=1e-6)
    assert torch.allclose(fused[0, 2:], both.var(0, correction=0), atol=1e-5)
    assert torch.allclose(fused[1, :2], parts[1, 1], atol=1e-6)
    assert torch.allclose(fused[1, 2:], torch.zeros(()), atol=1e-5), "one sequence has no variance"


def test_without_each_only_what_is_fused_is_seen(image):
    """Sequences that change places (with their encoders) look the same to a network that sees only what they share."""
    network = make(each=False).eval()
    present = torch.ones(2, 3, dtype=torch.bool)
    before = network(image, present).logits
    order = [2, 0, 1]
    with torch.no_grad():
        for layer in (network.embed, network.latent):
            layer.weight.copy_(layer.weight.unflatten(0, (3, 2))[order].flatten(0, 1))
        network.embed.bias.copy_(network.embed.bias.unflatten(0, (3, 2))[order].flatten())
    assert torch.allclose(network(image[:, order], present).logits, before, atol=1e-5)


def test_an_ensemble_is_the_mean_of_what_its_members_say(image):
    members = [make(seed).eval() for seed in (0, 1, 2)]
    together = Ensemble(members)(image, PRESENT)
    said = torch.stack([member(image, PRESENT).region_probabilities() for member in members]).mean(0)
    assert torch.allclose(together.region_probabilities(), said, atol=1e-5)
    assert not torch.allclose(said, members[0](image, PRESENT).region_probabilities(), atol=1e-3)


def test_an_ensemble_is_built_from_plain_numbers():
    network = build_network("ensemble", {"count": 2, "architecture": "fused_unet", "arguments": ARGUMENTS})
    assert sum(p.numel() for p in network.parameters()) == 2 * sum(p.numel() for p in make().parameters())
