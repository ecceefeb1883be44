"""The outside comparator: MONAI's DynUNet (an nnU-Net style network) as a backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.errors import MindgapError
from mindgap.regions import CLASS_COUNT
from mindgap.shapes import Float

LEVELS = 5


class DynUNetBackbone(nn.Module):
    """MONAI ``DynUNet`` with five levels, InstanceNorm and leaky ReLU, no deep supervision.

    Args:
        channels_in: Input channels.
        width: Channels at full resolution; they double at each level, up to 320.

    Shapes:
        image (B, channels_in, i, j, k) -> Output.logits (B, classes, i, j, k); sides are multiples of 16.

    Raises:
        MindgapError: MONAI is not installed.

    Reference:
        MONAI, https://docs.monai.io/en/stable/networks.html#dynunet; Isensee et al., nnU-Net, Nature Methods 2021.
    """

    def __init__(self, channels_in: int, *, width: int = 16) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet
        except ImportError as error:
            raise MindgapError("the comparator dynunet needs MONAI: pip install monai") from error
        strides: list[Any] = [1, *[2] * (LEVELS - 1)]
        self.network = DynUNet(
            spatial_dims=3,
            in_channels=channels_in,
            out_channels=CLASS_COUNT,
            kernel_size=[3] * LEVELS,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(width * 2**level, 320) for level in range(LEVELS)],
        )

    def forward(self, image: Float[Tensor, "B C i j k"]) -> Output:
        """Segment."""
        return Output(logits=self.network(image))
