"""Random crops, flips and intensities: drawn in one step on the CPU, applied in another without chance.

The draws of a step are a pure function of (seed, step), so a resumed run sees what an uninterrupted one would have
seen, any augmentation can be replayed, and every device sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mindgap.batch import BACKGROUND, Float, brain_of
from mindgap.data.prepared import LOWEST_BRAIN
from mindgap.errors import SettingError

_BIAS_GRID = 3


@dataclass(frozen=True)
class Augmentation:
    """What may vary, and how far; a zero switches a kind off.

    Attributes:
        flip: Probability of reversing each axis.
        scale: Intensities above the background are multiplied by U(1-scale, 1+scale), per sequence.
        scale_probability: How often.
        gamma: Exponent exp(U(-gamma, gamma)) on intensities mapped to [0, 1], per sequence.
        shift: U(-shift, shift) is added, per sequence.
        bias: Largest log-amplitude of a smooth multiplicative field, per sequence.
        noise: Largest standard deviation of Gaussian noise, per sequence.

    Reference:
        Flips and scale 0.1 with probability 0.5 are ProtoKD's (public code).
        We differ: its scale multiplies the normalised value, so that it moves the background too; here the
        background stays and the distance from it is scaled.
    """

    flip: float = 0.5
    scale: float = 0.1
    scale_probability: float = 0.5
    gamma: float = 0.0
    shift: float = 0.0
    bias: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        values = (
            self.flip,
            self.scale,
            self.scale_probability,
            self.gamma,
            self.shift,
            self.bias,
            self.noise,
        )
        if any(not 0 <= value <= 1 for value in values):
            raise SettingError(f"every number of an augmentation lies in 0..1, and one of {values} does not.")


def paper_augmentation() -> Augmentation:
    """Flips and scale, as in the paper's base."""
    return Augmentation()


def strong_augmentation() -> Augmentation:
    """For few cases and unseen scanners: also gamma, shift, bias field and noise."""
    return Augmentation(scale=0.2, scale_probability=1.0, gamma=0.3, shift=0.1, bias=0.2, noise=0.08)


@dataclass(frozen=True)
class Draws:
    """Everything random about one batch; B rows, J sequences.

    Attributes:
        cases: Position of each row's case among the cases of the run.
        corner: In [0, 1)^3: where the crop lies in the free space of the case.
        foreground: Whether the crop is centred on a tumour voxel instead.
        voxel: Two numbers in [0, 1): which region that occurs (WT, TC, ET) and which of its voxels.
        flips: Which axes are reversed (B 3).
        scale: Factor on intensities above the background (B J).
        gamma: Exponent (B J).
        shift: Added (B J).
        bias: Log-amplitudes of the smooth field on a coarse grid (B J 3 3 3).
        noise: Standard deviation (B J).
        noise_seed: Seed of each row's noise field, which is made on the device.
        chance: A number in [0, 1) for each row, for what a method decides (which sequences it drops).
    """

    cases: NDArray[np.int64]
    corner: NDArray[np.float64]
    foreground: NDArray[np.bool_]
    voxel: NDArray[np.float64]
    flips: NDArray[np.bool_]
    scale: NDArray[np.float32]
    gamma: NDArray[np.float32]
    shift: NDArray[np.float32]
    bias: NDArray[np.float32]
    noise: NDArray[np.float32]
    noise_seed: NDArray[np.int64]
    chance: NDArray[np.float64]

    def rows(self, start: int, end: int) -> Draws:
        """The draws of some rows: what one of several processes cuts of a batch."""
        return Draws(**{field.name: getattr(self, field.name)[start:end] for field in fields(self)})


def draw(
    augmentation: Augmentation,
    *,
    seed: int,
    step: int,
    batch: int,
    cases: int,
    sequences: int,
    foreground: float = 0.0,
) -> Draws:
    """Draw one batch: each case once per epoch in a new order, then crops and intensities.

    Args:
        augmentation: How far things vary.
        seed: Of the run.
        step: Counted from 0.
        batch: Rows.
        cases: How many cases the run learns from.
        sequences: Columns.
        foreground: Share of crops centred on tumour.
    """
    rng = np.random.default_rng([seed, step, 1])
    signed = (2 * rng.random((4, batch, sequences)) - 1).astype(np.float32)
    scaled = rng.random((batch, sequences)) < augmentation.scale_probability
    bias = (2 * rng.random((batch, sequences, *(_BIAS_GRID,) * 3)) - 1).astype(np.float32)
    return Draws(
        cases=_epoch_order(seed, step * batch, batch, cases),
        corner=rng.random((batch, 3)),
        foreground=rng.random(batch) < foreground,
        voxel=rng.random((batch, 2)),
        flips=rng.random((batch, 3)) < augmentation.flip,
        scale=np.where(scaled, 1 + augmentation.scale * signed[0], 1).astype(np.float32),
        gamma=np.exp(augmentation.gamma * signed[1]),
        shift=augmentation.shift * signed[2],
        bias=augmentation.bias * bias,
        noise=augmentation.noise * np.abs(signed[3]),
        noise_seed=rng.integers(0, 2**62, batch),
        chance=rng.random(batch),
    )


def apply_intensities(image: Float[Tensor, "B J i j k"], draws: Draws, augmentation: Augmentation) -> Tensor:
    """Vary brightness and contrast inside the brain; the background stays, and brain stays above it.

    In the order of the scanner: smooth bias field and scale, contrast (gamma), shift, noise.

    Args:
        image: Prepared intensities; background -1.
        draws: From :func:`draw`.
        augmentation: The same as there: a kind that is off is not computed.
    """
    device = image.device
    brain = brain_of(image)

    def column(values: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)[:, :, None, None, None]

    level = image - BACKGROUND  # changed in place from here on: every new tensor is another pass over memory
    level.mul_(0.5 * column(draws.scale))  # brightness above the background, about 0..1
    if augmentation.bias:
        coarse = torch.from_numpy(draws.bias).to(device, non_blocking=True)
        level.mul_(F.interpolate(coarse, size=image.shape[2:], mode="trilinear", align_corners=True).exp_())
    if augmentation.gamma:
        level.clamp_min_(1e-4).pow_(column(draws.gamma))
    varied = level.mul_(2).add_(BACKGROUND)
    if augmentation.shift:
        varied.add_(column(draws.shift))
    if augmentation.noise:
        varied.add_(_noise_field(image, draws).mul_(column(draws.noise)))
    return torch.where(brain, varied.clamp_min_(LOWEST_BRAIN), image)


def _noise_field(image: Tensor, draws: Draws) -> Tensor:
    fields = []
    for seed in draws.noise_seed.tolist():
        generator = torch.Generator(image.device).manual_seed(seed)
        fields.append(torch.randn(image.shape[1:], generator=generator, device=image.device))
    return torch.stack(fields)


def _epoch_order(seed: int, first: int, count: int, cases: int) -> NDArray[np.int64]:
    """Entries first..first+count of the endless list "all cases in a new order, again and again"."""
    orders: dict[int, NDArray[np.int64]] = {}
    chosen = []
    for position in range(first, first + count):
        epoch, index = divmod(position, cases)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, epoch, 2]).permutation(cases)
        chosen.append(orders[epoch][index])
    return np.array(chosen, dtype=np.int64)
