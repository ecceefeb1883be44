"""A cohort for measurements, made in seconds: smooth random brains with a tumour, written as a store; no MRI needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mindgap.data.prepared import LOWEST_BRAIN, Box, Placement, Preparation, PreparedCase
from mindgap.data.store import Store, write_case, write_index
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS
from mindgap.sequences import SEQUENCES
from mindgap.shapes import BACKGROUND

SMALL, LARGE = (72, 86, 70), (140, 172, 140)
"""Boxes of a brain in voxels, at 2 mm and at 1 mm."""


def write_cohort(folder: Path, *, crop: int, cases: int) -> Path:
    """Write a store of training cases that are large enough for a crop.

    Args:
        folder: Where the store is made.
        crop: Side of the crops that will be cut.
        cases: How many.

    Returns:
        The folder.
    """
    shape = SMALL if crop <= min(SMALL) else LARGE
    names = [f"case{number:02d}" for number in range(cases)]
    entries = {
        name: write_case(folder, make_case(name, shape, seed), fingerprint=name) for seed, name in enumerate(names)
    }
    split = {"name": "benchmark", "sha256": "0" * 64, "train": names, "validation": [], "test": []}
    preparation = Preparation(spacing_mm=2.0 if shape == SMALL else 1.0)
    write_index(Store(folder, preparation, entries, {}, split, source="made for a benchmark", convention="brats2017"))
    return folder


def make_case(name: str, shape: tuple[int, int, int], seed: int) -> PreparedCase:
    """An ellipsoidal brain of smooth content that fills its box, with three nested ellipsoids for a tumour.

    Args:
        name: Of the case.
        shape: Of the box.
        seed: Of its content.
    """
    rng = np.random.default_rng(seed)
    brain = _ellipsoid(shape, centre=(0.5, 0.5, 0.5), radius=0.5)
    centre = tuple(rng.uniform(0.4, 0.6, 3).tolist())
    target = np.zeros(shape, dtype=np.uint8)
    for radius, class_ in ((0.16, ED_CLASS), (0.1, NCR_CLASS), (0.05, ET_CLASS)):
        target[_ellipsoid(shape, centre=centre, radius=radius)] = class_
    inside = torch.from_numpy(brain)
    level = _smooth(shape, seed) + 0.2 * torch.from_numpy(target).float()
    image = torch.where(inside, level.clamp(LOWEST_BRAIN, 1.0), torch.tensor(BACKGROUND))
    box: Box = ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    return PreparedCase(
        case_id=name,
        image=image.numpy(),
        sequences=SEQUENCES,
        boxes=(box,) * len(SEQUENCES),
        target=target,
        placement=Placement(shape, (0, 1, 2), (False, False, False), shape, box),
        spacing_mm=(2.0, 2.0, 2.0) if shape == SMALL else (1.0, 1.0, 1.0),
    )


def _smooth(shape: tuple[int, int, int], seed: int) -> Tensor:
    """Blobs about ten voxels wide, different in every sequence (J, i, j, k), with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, len(SEQUENCES), *(side // 10 for side in shape)), generator=generator)
    blobs = F.interpolate(coarse, size=shape, mode="trilinear")[0]
    return 0.3 * blobs + 0.05 * torch.randn(blobs.shape, generator=generator)


def _ellipsoid(shape: tuple[int, int, int], *, centre: tuple[float, ...], radius: float) -> NDArray[np.bool_]:
    """Voxels of an ellipsoid; centre and radius in shares of the box."""
    axes = np.meshgrid(*((np.arange(side) + 0.5) / side for side in shape), indexing="ij")
    squares = [(axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)]
    inside: NDArray[np.bool_] = sum(squares) <= radius**2
    return inside
