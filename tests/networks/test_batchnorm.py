import copy

import pytest
import torch
from torch import nn

from mindgap.networks.batchnorm import BatchNorm


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def maps(channels: int, side: int = 8) -> torch.Tensor:
    values = 3 * torch.randn(2, channels, side, side, side) + torch.arange(channels).view(1, -1, 1, 1, 1)
    return values.bfloat16().contiguous(memory_format=torch.channels_last_3d)


def both(channels: int) -> tuple[BatchNorm, nn.BatchNorm3d]:
    ours = BatchNorm(channels)
    nn.init.uniform_(ours.weight, 0.5, 2)
    nn.init.normal_(ours.bias)
    theirs = nn.BatchNorm3d(channels)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    return ours, theirs


@pytest.mark.parametrize("channels", [2, 4, 8, 16])
def test_narrow_maps_are_normalised_as_torch_does_forward_backward_and_running(channels):
    found = []
    image, gradient = maps(channels), torch.randn(2, channels, 8, 8, 8).bfloat16()
    for norm in both(channels):
        given = image.clone(memory_format=torch.preserve_format).requires_grad_()
        out = norm(given)
        out.backward(gradient)
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=torch.channels_last_3d)
        found.append((out, given.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))
        assert int(norm.num_batches_tracked) == 1
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=2e-2)
    # torch rounds less often than it could: against float64 ours is no further away than torch's
    exact = nn.functional.batch_norm(image.double(), None, None, training=True)
    plain = [nn.BatchNorm3d(channels, affine=True)(image).double(), BatchNorm(channels)(image).double()]
    far = [(value - exact).abs().max().item() for value in plain]
    assert far[1] <= far[0] + 1e-3


@pytest.mark.parametrize("channels", [4, 8, 16])
def test_gradients_are_exact_where_the_mean_is_many_times_the_spread(channels):
    image = (maps(channels).float() / 3 + 50).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    gradient = torch.randn(2, channels, 8, 8, 8).bfloat16()
    norm = BatchNorm(channels)
    norm(image).backward(gradient)
    exact = nn.BatchNorm3d(channels).double()
    exact(image.double()).backward(gradient.double())
    for ours, theirs in ((norm.weight.grad, exact.weight.grad), (norm.bias.grad, exact.bias.grad)):
        assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-3


def test_no_voxels_are_torchs_own_affair():
    ours, theirs = both(8)
    empty = torch.empty(0, 8, 4, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    assert ours.eval()(empty).shape == theirs.eval()(empty).shape


def test_its_output_may_be_changed_in_place_and_gradients_stay_right():
    ours, theirs = both(4)
    gradients = []
    image = maps(4)
    for norm in (ours, theirs):
        given = image.clone(memory_format=torch.preserve_format).requires_grad_()
        torch.relu_(norm(given)).sum().backward()
        gradients.append(norm.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=2e-2, atol=0.5)


@pytest.mark.parametrize(
    "image",
    [maps(4).float(), maps(4).contiguous(), maps(32), maps(8, side=3)],
    ids=["float32", "contiguous", "wide", "odd"],
)
def test_everything_else_is_torchs_own_to_the_bit(image):
    ours, theirs = both(image.shape[1])
    assert torch.equal(ours(image), theirs(image))
    assert torch.equal(ours.eval()(image), theirs.eval()(image))
