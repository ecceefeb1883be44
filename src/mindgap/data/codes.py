"""Codes of a store: packed in host memory, unpacked as tensors where a training cuts its batches, and what they mean.

Packing needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mindgap.data.prepared import LOWEST_BRAIN
from mindgap.shapes import BACKGROUND, Float, Shaped

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CodeKind = Literal["uint8", "float16"]
"""How intensities lie in a store."""


def encode(image: Float[NDArray[np.float32], "*axes"], kind: CodeKind = "uint8") -> Shaped[NDArray[Any], "*axes"]:
    """Pack prepared intensities: 8 bits (0 outside the brain, 1..255 inside), or float16 as they are.

    Half a step of the 8-bit codes is 0.004 of a range of 2; ``benchmarks/store_codes.py`` measures what that costs.
    """
    if kind == "float16":
        return image.astype(np.float16)
    codes = np.rint((image + 1) * 127.5).clip(1, 255)
    return np.where(image > BACKGROUND, codes, 0).astype(np.uint8)


def decode(codes: Tensor) -> Float[Tensor, "*axes"]:
    """Unpack :func:`encode`, whichever kind: background is exactly -1, brain strictly above."""
    if codes.is_floating_point():
        return codes.float()
    return codes.float().div_(127.5).sub_(1.0)


@dataclass(frozen=True)
class CodeRange:
    """What codes of a kind stand for: background, and the darkest and the brightest brain.

    Attributes:
        background: Code of what is no brain.
        lowest: Of the darkest brain.
        highest: Of the brightest.
    """

    background: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, codes: Tensor) -> CodeRange:
        """Of 8-bit codes, or of those that are intensities themselves."""
        return cls(0.0, 1.0, 255.0) if not codes.is_floating_point() else cls(BACKGROUND, LOWEST_BRAIN, 1.0)

    def fit(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers as codes: whole ones for 8 bits."""
        return (values if dtype.is_floating_point else values.round()).to(dtype)
