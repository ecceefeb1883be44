"""One backbone for every subset: absent sequences are background, and maps say which are present."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mindgap.batch import Output, fill_absent
from mindgap.shapes import Bool, Float


class MaskedNetwork(nn.Module):
    """A backbone on the sequences, filled with background where absent, and a constant 0/1 map for each.

    Args:
        backbone: Takes 2 J channels, or J without maps.
        maps: Whether the backbone is told which sequences are present.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> the backbone's Output.
    """

    def __init__(self, backbone: nn.Module, *, maps: bool = True) -> None:
        super().__init__()
        self.backbone, self.maps = backbone, maps

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Segment a batch whose rows may lack different sequences."""
        given = fill_absent(image, present)
        if self.maps:
            shown = present.to(image.device, image.dtype, non_blocking=True)[:, :, None, None, None]
            given = torch.cat([given, shown.expand_as(image)], dim=1)  # 2 J
        output: Output = self.backbone(given)
        return output
