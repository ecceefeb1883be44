"""The engine torch: the network as it was trained, on a CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.inference.engines import EngineName, EnginePrecision
from mindgap.networks.blocks import channels_last
from mindgap.shapes import STRIDE, Bool, Float


class TorchEngine:
    """The network in torch, convolutions with channels last.

    Args:
        network: In eval mode; it is moved and laid out in place.
        device: "cpu" or "cuda".
        precision: bf16 by autocast, or fp32.
    """

    name: EngineName = "torch"

    def __init__(self, network: nn.Module, device: str, precision: EnginePrecision) -> None:
        self.device = torch.device(device)
        self.precision: EnginePrecision = precision
        self.network = channels_last(network, self.device).eval()

    @torch.inference_mode()
    def output(self, images: Float[NDArray[np.float32], "B J i j k"], present: Bool[NDArray[np.bool_], " J"]) -> Output:
        """All the network says, on the device."""
        tensor = (
            torch.from_numpy(np.ascontiguousarray(images))
            .to(self.device)
            .contiguous(memory_format=torch.channels_last_3d)
        )
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output: Output = self.network(tensor, torch.from_numpy(present).expand(len(tensor), -1))
        return output

    def __call__(
        self, images: Float[NDArray[np.float32], "B J i j k"], present: Bool[NDArray[np.bool_], " J"]
    ) -> Float[NDArray[np.float32], "B R i j k"]:
        """Probabilities of WT, TC, ET, in host memory."""
        probabilities: NDArray[np.float32] = self.output(images, present).region_probabilities().cpu().numpy()
        return probabilities

    def latents(
        self, images: Float[NDArray[np.float32], "1 J i j k"], present: Bool[NDArray[np.bool_], " J"]
    ) -> tuple[Float[NDArray[np.float32], "J C i j k"], Bool[NDArray[np.bool_], "i j k"]] | None:
        """Latents of every sequence of a case and the voxels that are brain in all; None where a network has none."""
        output = self.output(images, present)
        if not output.latents:
            return None
        latents = torch.stack([latent[0].float().cpu() for latent in output.latents])
        return latents.numpy(), output.features["brain"][0, 0].bool().cpu().numpy()


def outputs_per_voxel(network: nn.Module, sequences: int) -> float:
    """Numbers that all layers of a network put out for a voxel of the image, counted in one pass over a small cube.

    Args:
        network: In eval mode.
        sequences: J.
    """
    total = 0

    def count(module: nn.Module, given: object, made: object) -> None:
        nonlocal total
        total += made.numel() if isinstance(made, Tensor) and not next(module.children(), None) else 0

    device = next(network.parameters()).device
    hooks = [module.register_forward_hook(count) for module in network.modules()]
    cube = torch.zeros(1, sequences, *[2 * STRIDE] * 3, device=device)
    with torch.inference_mode():
        network(cube, torch.ones(1, sequences, dtype=torch.bool))
    for hook in hooks:
        hook.remove()
    return total / (2 * STRIDE) ** 3
