import pytest
import torch

from mindgap.losses.segmentation import segmentation_terms
from mindgap.networks.build import build_network
from mindgap.shapes import BACKGROUND


def make(weighted: bool = True, seed: int = 0):
    torch.manual_seed(seed)
    return build_network("aligned", {"sequences": 2, "latent_channels": 2, "width": 2, "weighted": weighted})


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(3)
    image = torch.full((3, 2, 16, 16, 16), BACKGROUND)
    image[:, 0, 2:14, 2:14, 2:14] = torch.rand((3, 12, 12, 12), generator=generator) - 0.5
    image[:, 1, 3:15, 2:14, 2:14] = torch.rand((3, 12, 12, 12), generator=generator) - 0.5
    return image


@pytest.fixture
def target():
    return torch.randint(0, 4, (3, 16, 16, 16), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def test_shapes_and_features(image):
    output = make().eval()(image, torch.ones(3, 2, dtype=torch.bool))
    assert output.logits.shape == (3, 4, 16, 16, 16)
    assert [tuple(z.shape) for z in output.latents] == [(3, 2, 16, 16, 16)] * 2
    assert set(output.features) == {"feature", "bottleneck", "brain", "sequence_weights", "anchor_weights"}


def test_brain_is_what_every_present_sequence_calls_brain(image):
    present = torch.tensor([[True, True], [True, False], [False, True]])
    brain = make().eval()(image, present).features["brain"][:, 0]
    assert torch.equal(brain[0], (image[0] > BACKGROUND).all(0))
    assert torch.equal(brain[1], image[1, 0] > BACKGROUND)
    assert torch.equal(brain[2], image[2, 1] > BACKGROUND)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_what_stands_in_an_absent_sequence_changes_nothing(image, target, weighted, training):
    present = torch.tensor([[True, True], [True, False], [False, True]])
    results = []
    for filling in (BACKGROUND, float("nan"), 3.0):
        network = make(weighted).train(training)
        spoilt = torch.where(present[:, :, None, None, None], image, torch.tensor(filling))
        output = network(spoilt, present)
        torch.stack(list(segmentation_terms(output.logits, target).values())).sum().backward()
        gradients = [p.grad for p in network.parameters()]
        results.append([output.logits.detach(), *output.latents, output.features["brain"], *gradients])
    for expected, *found in zip(*results, strict=True):
        assert all(torch.equal(expected, other) for other in found)
        assert bool(expected.isfinite().all())


@pytest.mark.parametrize("a", [[0.0, 0.0], [1.5, -2.0]])
def test_sequence_weights_sum_to_one(image, a):
    network = make().eval()
    with torch.no_grad():
        network.anchor_logits.copy_(torch.tensor(a))
    weights = network(image, torch.ones(3, 2, dtype=torch.bool)).features["sequence_weights"]
    assert float(weights.detach().sum()) == pytest.approx(1.0)
    assert torch.equal(weights.detach(), torch.softmax(torch.tensor(a), 0))


def test_equal_weights_are_the_network_without_weights(image):
    weighted, plain = make().eval(), make(weighted=False).eval()
    state = {n: v for n, v in weighted.state_dict().items() if n != "anchor_logits"}
    plain.load_state_dict(state)
    present = torch.ones(3, 2, dtype=torch.bool)
    assert torch.equal(weighted(image, present).logits, plain(image, present).logits)
    with torch.no_grad():
        weighted.anchor_logits.copy_(torch.tensor([1.0, -1.0]))
    assert not torch.allclose(weighted(image, present).logits, plain(image, present).logits)


def test_the_segmentation_loss_alone_reaches_the_anchor_weights(image, target):
    network = make().train()
    terms = segmentation_terms(network(image, torch.ones(3, 2, dtype=torch.bool)).logits, target)
    (terms["cross_entropy"] + terms["dice"]).backward()
    assert float(network.anchor_logits.grad.abs().max()) > 1e-7
    assert float(network.anchor_logits.grad.sum()) == pytest.approx(0, abs=1e-6)  # softmax
