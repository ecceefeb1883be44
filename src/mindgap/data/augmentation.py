"""Random crops, flips and intensities: drawn in one step on the CPU, applied in another without chance.

The draws of a step are a pure function of (seed, step), so a resumed run sees what an uninterrupted one would have
seen, any augmentation can be replayed, and every device sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mindgap.batch import brain_of
from mindgap.data.prepared import LOWEST_BRAIN
from mindgap.errors import SettingError
from mindgap.shapes import BACKGROUND, Float

_BIAS_GRID = 3
_ELASTIC_GRID = 4


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
        warp: Probability of bending a crop: it is rotated, zoomed and bent as the next three say.
        rotate: Largest angle about each axis, in radians.
        zoom: Lengths are multiplied by exp(U(-zoom, zoom)), along each axis by itself a third of that.
        elastic: Largest displacement by a smooth field, as a share of the side of the crop.
        blur: Probability, per sequence, of thick slices: resolution lost along one axis by a factor of 2 or 3.
        curve: How far a random increasing curve may bend intensities, per sequence: contrast of another protocol.
        slab: Probability of a missing end: beyond a random plane all sequences are background, as a short stack has it.
        transplant: Probability of a tumour of another case, laid into the crop with one of its voxels in the middle
            (docs/model.md).
        residue: Probability of skull left by the stripping: patches of a rim of one or two voxels around the brain, as
            bright in each sequence as chance has it.

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
    warp: float = 0.0
    rotate: float = 0.0
    zoom: float = 0.0
    elastic: float = 0.0
    blur: float = 0.0
    curve: float = 0.0
    slab: float = 0.0
    transplant: float = 0.0
    residue: float = 0.0

    def __post_init__(self) -> None:
        values = tuple(getattr(self, field.name) for field in fields(self))
        if any(not 0 <= value <= 1 for value in values):
            raise SettingError(f"every number of an augmentation lies in 0..1, and one of {values} does not.")


def paper_augmentation() -> Augmentation:
    """Flips and scale, as in the paper's base."""
    return Augmentation()


def strong_augmentation() -> Augmentation:
    """For few cases and unseen scanners: also gamma, shift, bias field and noise."""
    return Augmentation(scale=0.2, scale_probability=1.0, gamma=0.3, shift=0.1, bias=0.2, noise=0.08)


def wide_augmentation() -> Augmentation:
    """For scanners, sites and anatomies never seen: also bent in space, thick slices, other contrasts, short stacks."""
    return Augmentation(
        scale=0.2,
        scale_probability=1.0,
        gamma=0.3,
        shift=0.1,
        bias=0.25,
        noise=0.08,
        warp=0.4,
        rotate=0.25,
        zoom=0.15,
        elastic=0.04,
        blur=0.1,
        curve=0.12,
        slab=0.03,
    )


@dataclass(frozen=True, eq=False)
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
        warp: Whether the crop is bent (B).
        frame: Where the crop's axes point and how long they are, in the frame of the case (B 3 3).
        elastic: Displacements on a coarse grid, as shares of the side (B 3 4 4 4).
        blur: Factor by which resolution is lost (B J), and
        blur_axis: along which axis (B J).
        curve: What is added to intensities at a quarter, half and three quarters of their range (B J 3).
        slab: Share of the crop that is missing, 0 for most (B), and
        slab_end: at which of the six sides (B).
        donor: Position of the case whose tumour a row is given, -1 for most (B),
        donor_voxel: which region of it that occurs and which of its voxels comes to lie in the middle (B 2), and
        donor_flips: which of its axes are reversed (B 3).
        residue: Thickness in voxels of what is left of the skull, 0 for most (B),
        residue_field: where it is left: where this smooth field is above 0 (B 4 4 4), and
        residue_level: how bright it is (B J).
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
    warp: NDArray[np.bool_]
    frame: NDArray[np.float32]
    elastic: NDArray[np.float32]
    blur: NDArray[np.int64]
    blur_axis: NDArray[np.int64]
    curve: NDArray[np.float32]
    slab: NDArray[np.float32]
    slab_end: NDArray[np.int64]
    donor: NDArray[np.int64]
    donor_voxel: NDArray[np.float64]
    donor_flips: NDArray[np.bool_]
    residue: NDArray[np.int64]
    residue_field: NDArray[np.float32]
    residue_level: NDArray[np.float32]

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
    chosen = _epoch_order(seed, step * batch, batch, cases)
    signed = (2 * rng.random((4, batch, sequences)) - 1).astype(np.float32)
    scaled = rng.random((batch, sequences)) < augmentation.scale_probability
    bias = (2 * rng.random((batch, sequences, *(_BIAS_GRID,) * 3)) - 1).astype(np.float32)
    return Draws(
        cases=chosen,
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
        **_draw_wide(augmentation, np.random.default_rng([seed, step, 7]), batch, sequences),
        **_draw_foreign(augmentation, np.random.default_rng([seed, step, 8]), chosen, cases, sequences),
    )


def _draw_wide(augmentation: Augmentation, rng: np.random.Generator, batch: int, sequences: int) -> dict[str, Any]:
    """What came later, from a stream of its own: runs without it see the draws they always saw."""
    angles = augmentation.rotate * (2 * rng.random((batch, 3)) - 1)
    lengths = augmentation.zoom * (2 * rng.random((batch, 1)) - 1 + (2 * rng.random((batch, 3)) - 1) / 3)
    axes = _rotations(angles) * np.exp(-lengths)[:, None, :]
    rises = augmentation.curve * (2 * rng.random((batch, sequences, 3)) - 1)
    return {
        "warp": rng.random(batch) < augmentation.warp,
        "frame": axes.astype(np.float32),
        "elastic": (augmentation.elastic * (2 * rng.random((batch, 3, *(_ELASTIC_GRID,) * 3)) - 1)).astype(np.float32),
        "blur": np.where(rng.random((batch, sequences)) < augmentation.blur, rng.integers(2, 4, (batch, sequences)), 1),
        "blur_axis": rng.integers(0, 3, (batch, sequences)),
        "curve": rises.astype(np.float32),
        "slab": np.where(rng.random(batch) < augmentation.slab, 0.1 + 0.3 * rng.random(batch), 0).astype(np.float32),
        "slab_end": rng.integers(0, 6, batch),
    }


def _draw_foreign(
    augmentation: Augmentation, rng: np.random.Generator, chosen: NDArray[np.int64], cases: int, sequences: int
) -> dict[str, Any]:
    """What does not belong to a patient's brain: tumour of another one, skull. A stream of its own again."""
    batch = len(chosen)
    given, left = rng.random((2, batch))
    others = (chosen + rng.integers(1, max(cases, 2), batch)) % cases
    return {
        "donor": np.where((given < augmentation.transplant) & (others != chosen), others, -1),
        "donor_voxel": rng.random((batch, 2)),
        "donor_flips": rng.random((batch, 3)) < augmentation.flip,
        "residue": np.where(left < augmentation.residue, rng.integers(1, 3, batch), 0),
        "residue_field": (2 * rng.random((batch, *(_ELASTIC_GRID,) * 3)) - 1).astype(np.float32),
        "residue_level": rng.uniform(LOWEST_BRAIN, 1.0, (batch, sequences)).astype(np.float32),
    }


def _rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about the first, then the second, then the third axis (B 3) -> (B 3 3)."""
    result = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for axis in range(3):
        turn = np.zeros_like(result)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        cos, sin = np.cos(angles[:, axis]), np.sin(angles[:, axis])
        turn[:, axis, axis] = 1
        turn[:, first, first], turn[:, second, second] = cos, cos
        turn[:, first, second], turn[:, second, first] = -sin, sin
        result = turn @ result
    return result


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
    if augmentation.curve:
        level = _bend(level, torch.from_numpy(draws.curve).to(device, non_blocking=True))
    if augmentation.blur:
        _lose_resolution(level, draws)
    varied = level.mul_(2).add_(BACKGROUND)
    if augmentation.shift:
        varied.add_(column(draws.shift))
    if augmentation.noise:
        varied.add_(_noise_field(image, draws).mul_(column(draws.noise)))
    varied = torch.where(brain, varied.clamp_min_(LOWEST_BRAIN), image)
    if augmentation.residue:
        _leave_residue(varied, draws)
    if augmentation.slab:
        _cut_slabs(varied, draws)
    return varied


def _bend(level: Tensor, rises: Float[Tensor, "B J 3"]) -> Tensor:
    """A piecewise linear curve through (0, 0), (1, 1) and three points that moved; kept increasing by clamping."""
    knots = torch.tensor([0.25, 0.5, 0.75], device=level.device) + rises.clamp(-0.24, 0.24)
    knots = F.pad(knots.sort(-1).values, (1, 1))
    knots[..., 4] = 1.0
    slopes = (knots.diff(dim=-1) / 0.25)[..., None, None, None]  # B J 4 1 1 1
    bent = level * slopes[:, :, 0]
    for piece in range(1, 4):
        bent += (level - 0.25 * piece).clamp_min_(0) * (slopes[:, :, piece] - slopes[:, :, piece - 1])
    return bent


def _lose_resolution(level: Tensor, draws: Draws) -> None:
    """Average over thick slices along one axis, and interpolate between them again; in place."""
    for row, column in zip(*np.nonzero(draws.blur > 1), strict=True):
        maps, axis, factor = level[row, column], int(draws.blur_axis[row, column]), int(draws.blur[row, column])
        along = maps.movedim(axis, -1).flatten(0, 1)[:, None]  # side*side 1 side
        thick = F.avg_pool1d(along, factor, ceil_mode=True)
        again = F.interpolate(thick, size=along.shape[-1], mode="linear", align_corners=False)
        maps.copy_(again[:, 0].view(maps.movedim(axis, -1).shape).movedim(-1, axis))


def _cut_slabs(image: Tensor, draws: Draws) -> None:
    """Background beyond a plane, in place."""
    for row in np.nonzero(draws.slab)[0]:
        axis, far = divmod(int(draws.slab_end[row]), 2)
        side = image.shape[2 + axis]
        missing = int(side * draws.slab[row])
        image[row].narrow(1 + axis, side - missing if far else 0, missing).fill_(BACKGROUND)


def _leave_residue(image: Tensor, draws: Draws) -> None:
    """Patches of a rim around the brain, in every sequence that is there, in place."""
    for row in np.nonzero(draws.residue)[0]:
        maps, reach = image[row], int(draws.residue[row])
        brain = brain_of(maps)
        there = brain.flatten(1).any(1)
        if not bool(there.any()):
            continue
        inside = brain[there].any(0)
        around = F.max_pool3d(inside[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
        coarse = torch.from_numpy(draws.residue_field[row]).to(image.device)[None, None]
        field = F.interpolate(coarse, size=maps.shape[1:], mode="trilinear", align_corners=True)[0, 0]
        rim = around & ~inside & (field > 0)
        for column in there.nonzero()[:, 0].tolist():
            level = float(draws.residue_level[row, column])
            maps[column][rim] = (level + 0.5 * field[rim]).clamp_(LOWEST_BRAIN, 1.0)


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
