import pytest
import torch
from torch import nn

from mindgap.networks.blocks import channels_last, convolutions
from mindgap.networks.layout import hand_over, take_back


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return channels_last(convolutions(1, 4, 3))


def test_handed_over_maps_lie_as_the_network_wants_them_and_gradients_come_back_as_they_went(network):
    maps = torch.randn(2, 4, 6, 5, 4, requires_grad=True)
    handed = hand_over(maps, network)
    assert handed.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(handed, maps)
    (handed * torch.arange(4.0).view(1, 4, 1, 1, 1)).sum().backward()
    assert maps.grad.is_contiguous()
    assert torch.equal(maps.grad, torch.arange(4.0).view(1, 4, 1, 1, 1).expand_as(maps))


def test_under_autocast_maps_are_rounded_once_as_the_convolution_would(network):
    maps = torch.randn(2, 4, 6, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        handed = hand_over(maps, network)
        assert handed.dtype == torch.bfloat16
        assert torch.equal(network(handed), network(maps))


def test_a_network_laid_out_channel_after_channel_gets_maps_as_they_are():
    maps = torch.randn(2, 4, 6, 5, 4)
    assert hand_over(maps, convolutions(1, 4, 3)) is maps


def test_taken_back_maps_are_contiguous_float32_and_their_gradient_is_laid_out_as_they_were():
    maps = torch.randn(2, 4, 6, 5, 4).bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    taken = take_back(maps)
    assert taken.dtype == torch.float32
    assert taken.is_contiguous()
    assert torch.equal(taken, maps.float())
    (2 * taken).sum().backward()
    assert maps.grad.dtype == torch.bfloat16
    assert maps.grad.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(maps.grad, torch.full_like(maps, 2))
