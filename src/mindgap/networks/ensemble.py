"""Several trained networks that answer as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.shapes import Bool, Float


class Ensemble(nn.Module):
    r"""The mean of what several networks of one kind say, $p = \frac1M \sum_m \mathrm{softmax}(z_m)$.

    Args:
        members: Networks with softmax heads and the same classes.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> Output.logits (B, classes, i, j, k), which are $\log p$; no latents.

    Reference:
        Isensee et al., nnU-Net, Nature Methods 2021: the networks of a cross-validation, averaged.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Output:
        """Ask every member, one after the other, and average."""
        total: Tensor | None = None
        for member in self.members:
            said = torch.softmax(member(image, present).logits.float(), dim=1)
            total = said if total is None else total + said
        assert total is not None
        return Output(torch.log((total / len(self.members)).clamp_min(1e-12)))
