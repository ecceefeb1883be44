import pytest
import torch

from mindgap.networks.vnet import VNet
from mindgap.shapes import BACKGROUND, STRIDE


def loss_and_gradients(network, image, present):
    """A number that depends on every logit, and the gradient of every parameter."""
    network.zero_grad()
    logits = network(image, present).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), [p.grad.clone() for p in network.parameters()]


@pytest.fixture
def batch():
    """Four cases with two channels; the second case lacks the first channel, the third lacks the second."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((4, 2, 16, 16, 16), generator=generator) * 1.9 - 0.95
    present = torch.tensor([[True, True], [False, True], [True, False], [True, True]])
    return image, present


def test_the_published_size():
    assert sum(p.numel() for p in VNet(1).parameters()) == 9_446_820


def test_shapes_and_named_features():
    output = VNet(3, width=2).eval()(torch.zeros(2, 3, 32, 16, 48))
    assert output.logits.shape == (2, 4, 32, 16, 48)
    assert {name: tuple(f.shape) for name, f in output.features.items()} == {
        "feature": (2, 2, 32, 16, 48),
        "bottleneck": (2, 32, 2, 1, 3),
    }
    assert output.latents == ()


@torch.no_grad()
def test_regions_of_the_output_are_nested():
    torch.manual_seed(0)
    wt, tc, et = VNet(1, width=2).eval()(torch.randn(1, 1, 16, 16, 16)).region_probabilities()[0]
    assert bool((et <= tc).all())
    assert bool((tc <= wt).all())
    assert float(wt.max()) <= 1
    assert float(et.min()) >= 0


@pytest.mark.parametrize("side", [8, 24, 17])
def test_a_side_that_is_no_multiple_of_the_stride_fails(side):
    assert STRIDE == 16
    with pytest.raises(RuntimeError):
        VNet(1, width=1).eval()(torch.zeros(1, 1, 16, 16, side))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("filling", [float("nan"), float("inf"), 7.0])
def test_what_stands_in_an_absent_channel_changes_neither_logits_nor_gradients(batch, training, filling):
    image, present = batch
    torch.manual_seed(1)
    network = VNet(2, width=2).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    expected = loss_and_gradients(network, image, present)
    after = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(before)
    spoilt = torch.where(present[:, :, None, None, None], image, torch.tensor(filling))
    logits, gradients = loss_and_gradients(network, spoilt, present)
    assert torch.equal(logits, expected[0])
    assert bool(logits.isfinite().all())
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert all(torch.equal(value, after[name]) for name, value in network.state_dict().items())


def test_an_absent_channel_is_background_and_a_present_one_is_read(batch):
    image, present = batch
    torch.manual_seed(1)
    network = VNet(2, width=2).eval()
    shown = network(image, present).logits
    filled = torch.where(present[:, :, None, None, None], image, torch.tensor(BACKGROUND))
    assert torch.equal(shown, network(filled).logits)
    assert not torch.equal(shown[1], network(image).logits[1])
