"""The shared backbone: ProtoKD's VNet."""

from __future__ import annotations

from torch import Tensor, nn

from mindgap.batch import Output, fill_absent
from mindgap.networks.blocks import convolutions, downsampling, upsampling
from mindgap.regions import CLASS_COUNT
from mindgap.shapes import Bool, Float


class VNet(nn.Module):
    """Encoder-decoder with four halvings, additive skips, BatchNorm and ReLU.

    Stages have 1, 2, 3, 3, 3 convolutions with w, 2w, 4w, 8w, 16w channels on the way down (w = ``width``), and
    3, 3, 2, 1 on the way up. Unlike the original V-Net there are no residuals inside stages. With w = 16 and one
    input channel it has 9,446,820 parameters.

    Args:
        channels_in: Input channels.
        width: Channels at full resolution.

    Shapes:
        image (B, channels_in, i, j, k) -> Output.logits (B, 4, i, j, k), features "feature" (B, w, i, j, k)
        and "bottleneck" (B, 16w, i/16, j/16, k/16). Sides are multiples of 16.

    Reference:
        Wang et al., Prototype Knowledge Distillation for Medical Segmentation with Missing Modality, ICASSP 2023,
        https://arxiv.org/abs/2303.09830 (after Milletari et al., V-Net, 3DV 2016).
    """

    def __init__(self, channels_in: int, *, width: int = 16) -> None:
        super().__init__()
        w = width
        self.encode1 = convolutions(1, channels_in, w)
        self.down1, self.encode2 = downsampling(w, 2 * w), convolutions(2, 2 * w, 2 * w)
        self.down2, self.encode3 = downsampling(2 * w, 4 * w), convolutions(3, 4 * w, 4 * w)
        self.down3, self.encode4 = downsampling(4 * w, 8 * w), convolutions(3, 8 * w, 8 * w)
        self.down4, self.encode5 = downsampling(8 * w, 16 * w), convolutions(3, 16 * w, 16 * w)
        self.up1, self.decode1 = upsampling(16 * w, 8 * w), convolutions(3, 8 * w, 8 * w)
        self.up2, self.decode2 = upsampling(8 * w, 4 * w), convolutions(3, 4 * w, 4 * w)
        self.up3, self.decode3 = upsampling(4 * w, 2 * w), convolutions(2, 2 * w, 2 * w)
        self.up4, self.decode4 = upsampling(2 * w, w), convolutions(1, w, w)
        self.head = nn.Conv3d(w, CLASS_COUNT, kernel_size=1)

    def forward(self, image: Float[Tensor, "B C i j k"], present: Bool[Tensor, "B J"] | None = None) -> Output:
        """Segment a batch; where ``present`` (one column per channel) is False the content is ignored."""
        if present is not None:
            image = fill_absent(image, present)
        e1 = self.encode1(image)  # w, full resolution
        e2 = self.encode2(self.down1(e1))  # 2w, 1/2
        e3 = self.encode3(self.down2(e2))  # 4w, 1/4
        e4 = self.encode4(self.down3(e3))  # 8w, 1/8
        e5 = self.encode5(self.down4(e4))  # 16w, 1/16
        d1 = self.decode1(self.up1(e5) + e4)
        d2 = self.decode2(self.up2(d1) + e3)
        d3 = self.decode3(self.up3(d2) + e2)
        feature = self.decode4(self.up4(d3) + e1)
        return Output(logits=self.head(feature), features={"feature": feature, "bottleneck": e5})
