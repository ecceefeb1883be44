"""Cases of a store where batches are cut: on the device, in host memory, or memory-mapped on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mindgap.batch import Batch
from mindgap.data.augmentation import Augmentation, Draws, apply_intensities
from mindgap.data.bending import bend
from mindgap.data.codes import CodeRange, decode
from mindgap.data.prepared import Box, shift_box, slices_of
from mindgap.data.store import Store
from mindgap.data.transplant import transplant
from mindgap.errors import SettingError
from mindgap.processor import available_memory_gib, cpu_count
from mindgap.regions import CLASSES_OF_REGION, REGIONS
from mindgap.sequences import Subset
from mindgap.shapes import Integer

Residence = Literal["auto", "device", "host", "disk"]

_FOREGROUND_VOXELS = 4096
_SHARE = 0.5  # of the free memory; the rest is for activations, gradients and the network


@dataclass(frozen=True)
class Place:
    """Where cases lie, and why.

    Attributes:
        residence: "device", "host" or "disk".
        reason: One line for a person.
    """

    residence: Residence
    reason: str


def choose_place(needed_gib: float, device: torch.device, *, asked: Residence = "auto", processes: int = 1) -> Place:
    """Choose where cases lie from what they need and what is free; at most half of a memory is taken.

    Args:
        needed_gib: Size of the codes.
        device: Where batches are needed. On a CPU "device" and "host" are the same memory.
        asked: A place a user insists on, or "auto".
        processes: Training processes on this machine that each hold the cases in host memory.

    Raises:
        SettingError: The place asked for is too small.
    """
    host_gib = available_memory_gib("cpu") / processes
    free = {"device": available_memory_gib(device.type) if device.type != "cpu" else host_gib, "host": host_gib}
    names = {"device": "GPU memory" if device.type != "cpu" else "memory", "host": "host memory"}
    for residence in ("device", "host"):
        if asked not in ("auto", residence):
            continue
        if needed_gib <= free[residence] * (_SHARE if asked == "auto" else 1.0):
            return Place(residence, f"{needed_gib:.2f} GiB in {names[residence]} ({free[residence]:.1f} GiB free)")
        if asked == residence:
            raise SettingError(
                f"the cases need {needed_gib:.1f} GiB and {free[residence]:.1f} GiB of {names[residence]} are free: "
                "use --residence auto or disk."
            )
    return Place("disk", f"{needed_gib:.2f} GiB mapped from the disk ({host_gib:.1f} GiB of memory free), read ahead")


class ResidentCases:
    """Cases of a store from which batches are cut.

    On the "device" everything happens there. In "host" memory and on "disk" windows are cut on the CPU, the next
    batch in a thread while the present one is learnt from (:meth:`prefetch`), and intensities vary on the device.
    Batches are the same wherever the cases lie.

    Args:
        store: The prepared cohort.
        case_ids: Which cases, in order.
        subset: Sequences a network will see: crops come from the union of their brain boxes, so nothing of an
            absent sequence reaches them.
        device: Where batches are needed.
        residence: Where the codes lie; "auto" asks the memories.
        processes: As in :func:`choose_place`.

    Raises:
        MindgapError: A file is missing or damaged.
    """

    def __init__(
        self,
        store: Store,
        case_ids: Iterable[str],
        *,
        subset: Subset,
        device: torch.device | str = "cpu",
        residence: Residence = "auto",
        processes: int = 1,
    ) -> None:
        self.store, self.subset, self.device = store, subset, torch.device(device)
        self.entries = [store.cases[case_id] for case_id in case_ids]
        self.sequences = store.sequences
        with ThreadPoolExecutor(min(cpu_count(), 8)) as pool:
            list(pool.map(store.verify, self.entries))
            needed = sum(store.path_of(entry.case_id).stat().st_size for entry in self.entries)
            self.place = choose_place(needed / 2**30, self.device, asked=residence, processes=processes)
            loaded = list(pool.map(self._load, range(len(self.entries))))
        self.codes = [codes for codes, _ in loaded]
        self._foreground = [foreground for _, foreground in loaded]
        self.available = torch.tensor([[s in entry.sequences for s in self.sequences] for entry in self.entries])
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Draws, int, Future[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """Size of the codes, wherever they lie."""
        return sum(codes.nbytes for codes in self.codes)

    def prefetch(self, draws: Draws, *, crop: int) -> None:
        """Begin to cut a batch that will be asked for next; nothing to do where the cases lie on the device."""
        if self.place.residence == "disk" or (self.place.residence == "host" and self.device.type != "cpu"):
            self._ahead = (draws, crop, self._reader.submit(self._cut, draws, crop))

    def batch(self, draws: Draws, augmentation: Augmentation, *, crop: int) -> Batch:
        """Cut and vary the crops of one step.

        Args:
            draws: What chance decided.
            augmentation: The settings the draws were made with.
            crop: Side in voxels.
        """
        codes = self._cut_or_fetch(draws, crop)  # B J+1 i j k
        available = self.available[torch.from_numpy(draws.cases)]
        image = apply_intensities(decode(codes[:, :-1]), draws, augmentation)
        return Batch(
            image=image,
            sequences=self.sequences,
            available=available,
            present=available,
            target=codes[:, -1].to(torch.uint8),
            case_ids=self.case_ids(draws),
            chance=tuple(draws.chance.tolist()),
        )

    def case_ids(self, draws: Draws) -> tuple[str, ...]:
        """Names of the cases of a batch."""
        return tuple(self.entries[case].case_id for case in draws.cases.tolist())

    def whole(self, index: int, *, shown: Subset | None = None, multiple: int = 1) -> Batch:
        """One whole case as a batch of one, cropped to the box of a subset and padded to a multiple.

        Args:
            index: Of the case.
            shown: Sequences that decide on the crop, of those the case has; the subset of all batches when None.
            multiple: Of which each side is.
        """
        entry = self.entries[index]
        box = entry.box_of(shown or self.subset)
        size = [-(-(end - start) // multiple) * multiple for start, end in box]
        codes = self._window(index, [start for start, _ in box], [end for _, end in box], size)[None].to(self.device)
        available = self.available[index : index + 1]
        target = codes[:, -1].to(torch.uint8)
        return Batch(decode(codes[:, :-1]), self.sequences, available, available, target, (entry.case_id,))

    def spread(
        self, index: int, found: Integer[NDArray[np.uint8], "i j k"], shown: Subset
    ) -> Integer[NDArray[np.uint8], "x y z"]:
        """What was found in the crop of some sequences, on that of the subset of all batches; 0 around it."""
        entry = self.entries[index]
        inner, outer = entry.box_of(shown), entry.box_of(self.subset)
        spread = np.zeros([end - start for start, end in outer], found.dtype)
        spread[slices_of(shift_box(inner, outer))] = found
        return spread

    def _load(self, index: int) -> tuple[Tensor, list[NDArray[np.int16]]]:
        entry = self.entries[index]
        codes = self._mapped(entry.case_id)
        foreground = _foreground_voxels(codes[-1], entry.box_of(self.subset), index)
        if self.place.residence != "disk":
            codes = codes.clone()
        return (codes.to(self.device) if self.place.residence == "device" else codes), foreground

    def _mapped(self, case_id: str) -> Tensor:
        """The codes of a case, mapped from its file; writing to them stays in memory.

        NumPy keeps a file open for as long as it is mapped, and a process may hold about a thousand open.
        """
        mapped, path = self.store.read(case_id), self.store.path_of(case_id)
        kind = torch.from_numpy(np.empty(0, mapped.dtype)).dtype
        place: Any = os.fsencode(path)  # text would have to be UTF-8
        whole = torch.from_file(place, shared=False, size=path.stat().st_size, dtype=torch.uint8)
        return whole[mapped.offset :].view(kind).reshape(mapped.shape)

    def _cut_or_fetch(self, draws: Draws, crop: int) -> Tensor:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is draws and ahead[1] == crop:
            codes = ahead[2].result()
        else:
            codes = self._cut(draws, crop)
        return codes.to(self.device, non_blocking=True)

    def _cut(self, draws: Draws, crop: int) -> Tensor:
        codes = torch.stack([self._cut_row(draws, row, crop) for row in range(len(draws.cases))])
        return codes.pin_memory() if self.device.type == "cuda" and codes.device.type == "cpu" else codes

    def _cut_row(self, draws: Draws, row: int, crop: int) -> Tensor:
        index = int(draws.cases[row])
        box = self.entries[index].box_of(self.subset)
        corner = []
        centre = self._pick_voxel(index, draws.voxel[row]) if draws.foreground[row] else None
        for axis, (start, end) in enumerate(box):
            free = max(end - start - crop, 0)
            offset = int(draws.corner[row, axis] * (free + 1))
            if centre is not None:
                offset = min(max(centre[axis] - start - crop // 2, 0), free)
            corner.append(start + offset)
        margin = crop // 4 if draws.warp[row] else 0  # what turns in from outside the crop
        begin = [max(c - margin, start) for c, (start, _) in zip(corner, box, strict=True)]
        end_corner = [min(c + crop + margin, end) for c, (_, end) in zip(corner, box, strict=True)]
        pads = [
            margin - (c - b) + max(crop - (end - start), 0) // 2
            for c, b, (start, end) in zip(corner, begin, box, strict=True)
        ]
        codes = self._window(index, begin, end_corner, [crop + 2 * margin] * 3, pads)
        if margin:
            codes = bend(codes, draws, row, crop=crop)
        codes = _flip(codes, draws.flips[row])
        if draws.donor[row] >= 0:
            codes = transplant(codes, self._donor(draws, row, crop))
        return codes

    def _donor(self, draws: Draws, row: int, crop: int) -> Tensor:
        """A crop of another case with a voxel of its tumour in the middle, background beyond the box of its brain."""
        index = int(draws.donor[row])
        box = self.entries[index].box_of(self.subset)
        centre = self._pick_voxel(index, draws.donor_voxel[row]) or [(start + end) // 2 for start, end in box]
        corner = [voxel - crop // 2 for voxel in centre]
        start = [max(at, low) for at, (low, _) in zip(corner, box, strict=True)]
        end = [min(at + crop, high) for at, (_, high) in zip(corner, box, strict=True)]
        pads = [a - b for a, b in zip(start, corner, strict=True)]
        return _flip(self._window(index, start, end, [crop] * 3, pads), draws.donor_flips[row])

    def _window(
        self, index: int, start: list[int], end: list[int], size: list[int], pads: list[int] | None = None
    ) -> Tensor:
        """Codes of a box in all columns (absent sequences background), with background around it.

        Args:
            index: Of the case.
            start: First voxel of the box.
            end: One after its last.
            size: Of the window.
            pads: Voxels of background in front of the box; it lies in the middle when None.
        """
        entry = self.entries[index]
        (a0, b0, c0), (a1, b1, c1) = start, end
        inner = self.codes[index][:, a0:a1, b0:b1, c0:c1]
        if list(inner.shape[1:]) == size and entry.sequences == self.sequences:
            return inner
        result = inner.new_full((len(self.sequences) + 1, *size), CodeRange.of(inner).background)
        result[-1] = 0
        pads = pads or [(whole - have) // 2 for whole, have in zip(size, inner.shape[1:], strict=True)]
        place = tuple(slice(pad, pad + have) for pad, have in zip(pads, inner.shape[1:], strict=True))
        columns = [*(self.sequences.index(sequence) for sequence in entry.sequences), len(self.sequences)]
        for row, column in enumerate(columns):
            result[column][place] = inner[row]
        return result

    def _pick_voxel(self, index: int, chance: NDArray[np.float64]) -> list[int] | None:
        regions = self._foreground[index]
        if not regions:
            return None
        voxels = regions[int(chance[0] * len(regions))]
        picked: list[int] = voxels[int(chance[1] * len(voxels))].tolist()
        return picked


def _flip(codes: Tensor, flips: NDArray[np.bool_]) -> Tensor:
    axes = [axis + 1 for axis in range(3) if flips[axis]]
    return codes.flip(axes) if axes else codes


def _foreground_voxels(target: Tensor, box: Box, seed: int) -> list[NDArray[Any]]:
    """For each region that occurs in a box, coordinates of at most 4,096 of its voxels, always the same ones."""
    inside = tuple(slice(start, end) for start, end in box)
    array = target.numpy()[inside]
    first = np.array([start for start, _ in box], dtype=np.int16)
    found = []
    for region in REGIONS:
        voxels = np.argwhere(np.isin(array, CLASSES_OF_REGION[region])).astype(np.int16) + first
        if len(voxels) > _FOREGROUND_VOXELS:
            voxels = voxels[np.random.default_rng([seed, 3]).choice(len(voxels), _FOREGROUND_VOXELS, replace=False)]
        if len(voxels):
            found.append(voxels)
    return found
