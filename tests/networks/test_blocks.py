import pytest
import torch

from mindgap.networks.blocks import channels_last, convolutions
from mindgap.processor import detect_processor


@pytest.mark.skipif(not detect_processor("cpu").native_bf16, reason="bf16 is never chosen here")
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (2, 3, 4), (3, 3, 2), (3, 3, 3), (4, 4, 4)])
def test_weight_gradients_in_bf16_are_those_of_fp32_for_small_maps(shape):
    torch.manual_seed(0)
    convolution = channels_last(convolutions(1, 32, 32)[0])
    image = torch.randn(4, 32, *shape).contiguous(memory_format=torch.channels_last_3d)
    gradients = {}
    for bf16 in (False, True):
        convolution.zero_grad()
        poison = [torch.full((32, 32, 3, 3, 3), float("nan")) for _ in range(20)]
        del poison  # freed memory that must not come back
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = convolution(image)
        (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients[bf16] = convolution.weight.grad.clone()
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert error < 0.02
