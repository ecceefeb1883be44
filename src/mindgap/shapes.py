"""What arrays and tensors share: words for their shapes, the value of the background, the stride of networks.

Axes are named B (case in the batch), J (sequence), C (channel or class), L (channel of a latent), R (region) and
i j k (voxel). Nothing here needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Integer, Shaped
    except ImportError:  # a bare training machine has torch and little else; shapes are then only read by people

        class _Anything:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Integer = Shaped = _Anything

__all__ = ["BACKGROUND", "STRIDE", "Bool", "Float", "Integer", "Shaped"]

BACKGROUND = -1.0
"""Value of every voxel outside the brain in a prepared image; brain voxels are strictly above it."""
STRIDE = 16
"""Voxels by which the sides of what a network is given are divided: its lowest resolution."""
