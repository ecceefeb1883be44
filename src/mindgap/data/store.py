"""A prepared cohort on disk, and batches made from it on the device.

One file per case: 8-bit codes (J+1, i, j, k), sequences in canonical order and the target last, cropped to the brain.
Nothing here opens NIfTI, so a training machine needs only torch and numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mindgap.batch import Batch
from mindgap.data.augmentation import Augmentation, Draws, apply_intensities
from mindgap.data.prepared import Box, Preparation, PreparedCase, decode, encode, join_boxes
from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, sha256_of, write_aside, write_json
from mindgap.regions import CLASSES_OF_REGION, REGIONS
from mindgap.sequences import Subset, make_subset, sequence_from_alias

FORMAT = 1
INDEX = "store.json"
PARTS = ("train", "validation", "test")
_FOREGROUND_VOXELS = 4096


@dataclass(frozen=True)
class StoredCase:
    """What the index says about a prepared case.

    Attributes:
        case_id: Its name.
        sequences: Present sequences, the first axis of the file in order; the target follows.
        boxes: Brain box of each sequence within the stored crop.
        shape: Of the crop.
        spacing_mm: Voxel edges of the crop.
        sha256: Of the file.
        fingerprint: What it was made from; the same fingerprint means it need not be made again.
    """

    case_id: str
    sequences: Subset
    boxes: tuple[Box, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    sha256: str
    fingerprint: str

    def box_of(self, subset: Subset) -> Box:
        """Union of the brain boxes of those sequences of a subset that the case has."""
        return join_boxes([box for s, box in zip(self.sequences, self.boxes, strict=True) if s in subset])


@dataclass(frozen=True)
class Store:
    """The index of a prepared cohort (``store.json``).

    Attributes:
        folder: Where it lies.
        preparation: How its cases were prepared.
        cases: By name.
        failed: Cases that could not be prepared, with the reason.
        split: Name of the split and the case ids of train, validation and test.
        source: The data folder it was made from, as the user named it.
        convention: Label convention of the source.
    """

    folder: Path
    preparation: Preparation
    cases: Mapping[str, StoredCase]
    failed: Mapping[str, str]
    split: Mapping[str, Any]
    source: str
    convention: str

    @property
    def sequences(self) -> Subset:
        """Every sequence that any case has."""
        return make_subset(sequence for case in self.cases.values() for sequence in case.sequences)

    @property
    def fingerprint(self) -> str:
        """Hash of what a run learns from: preparation, split, and the bytes of training and validation cases."""
        learnt = sorted((case_id, self.cases[case_id].sha256) for n in PARTS[:2] for case_id in self.part(n))
        text = json.dumps([asdict(self.preparation), self.split["sha256"], learnt])
        return hashlib.sha256(text.encode()).hexdigest()

    def part(self, name: str) -> list[str]:
        """Case ids of "train", "validation" or "test" that are in the store."""
        return [case_id for case_id in self.split[name] if case_id in self.cases]

    def path_of(self, case_id: str) -> Path:
        """The file of a case."""
        return self.folder / "cases" / f"{case_id}.npy"

    def verify(self, entry: StoredCase) -> None:
        """Check that the file of a case is the one the index speaks of.

        Raises:
            MindgapError: It is missing, damaged, or was written by a later preparation that did not finish.
        """
        path = self.path_of(entry.case_id)
        if not path.is_file() or sha256_of(path) != entry.sha256:
            raise MindgapError(
                f"{path} is not the file that {self.folder / INDEX} speaks of (missing, damaged, or half of another "
                "preparation): run `mindgap prepare` again."
            )

    def read(self, case_id: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Memory-map the codes of a case (J+1, i, j, k).

        Raises:
            MindgapError: The file is missing or damaged.
        """
        path = self.path_of(case_id)
        try:
            codes: np.ndarray[Any, np.dtype[np.uint8]] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MindgapError(f"{path} cannot be read ({error}): run `mindgap prepare` again.") from error
        return codes


def write_case(store_folder: Path, prepared: PreparedCase, *, fingerprint: str) -> StoredCase:
    """Write one prepared case and its entry, so that an interrupted preparation can go on."""
    assert prepared.target is not None
    codes = np.concatenate([encode(prepared.image).numpy(), prepared.target[None]])
    path = store_folder / "cases" / f"{prepared.case_id}.npy"
    with write_aside(path) as aside, aside.open("wb") as handle:
        np.save(handle, codes)
    shape = prepared.target.shape
    entry = StoredCase(
        case_id=prepared.case_id,
        sequences=prepared.sequences,
        boxes=prepared.boxes,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=prepared.spacing_mm,
        sha256=sha256_of(path),
        fingerprint=fingerprint,
    )
    write_json(path.with_suffix(".json"), _plain(entry))
    return entry


def read_entry(store_folder: Path, case_id: str, fingerprint: str) -> StoredCase | None:
    """The entry of a case that was already prepared from the same input in the same way and is undamaged."""
    path = store_folder / "cases" / f"{case_id}.npy"
    side = path.with_suffix(".json")
    if not (path.is_file() and side.is_file()):
        return None
    try:
        entry = _entry(read_json(side))
    except (MindgapError, KeyError, TypeError, ValueError):
        return None  # a damaged entry: the case is made again
    fresh = entry.fingerprint == fingerprint and entry.sha256 == sha256_of(path)
    return entry if fresh else None


def write_index(store: Store) -> None:
    """Write ``store.json``, last, when all cases are there."""
    write_json(
        store.folder / INDEX,
        {
            "format": FORMAT,
            "preparation": asdict(store.preparation),
            "source": store.source,
            "convention": store.convention,
            "split": dict(store.split),
            "failed": dict(store.failed),
            "cases": [_plain(case) for case in store.cases.values()],
        },
    )


def open_store(folder: Path) -> Store:
    """Read the index of a prepared cohort.

    Raises:
        SettingError: The folder is no store.
    """
    path = folder / INDEX
    if not path.is_file():
        raise SettingError(
            f"{folder} is no prepared cohort ({INDEX} is missing): make one with `mindgap prepare DATA -o {folder}`."
        )
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise SettingError(
            f"{path} has format {value.get('format')}, this version reads {FORMAT}: prepare the data again."
        )
    cases = [_entry(item) for item in value["cases"]]
    return Store(
        folder=folder,
        preparation=Preparation.from_plain(value["preparation"]),
        cases={case.case_id: case for case in cases},
        failed=value["failed"],
        split=value["split"],
        source=value["source"],
        convention=value["convention"],
    )


class ResidentCases:
    """Cases of a store held in the memory of a device, from which batches are cut.

    Args:
        store: The prepared cohort.
        case_ids: Which cases, in order.
        subset: Sequences a network will see: crops come from the union of their brain boxes, so nothing of an
            absent sequence reaches them.
        device: Where the codes lie.
    """

    def __init__(
        self, store: Store, case_ids: Iterable[str], *, subset: Subset, device: torch.device | str = "cpu"
    ) -> None:
        self.store, self.subset, self.device = store, subset, torch.device(device)
        self.entries = [store.cases[case_id] for case_id in case_ids]
        self.sequences = store.sequences
        for entry in self.entries:
            store.verify(entry)
        self.codes = [torch.from_numpy(np.array(store.read(entry.case_id))).to(self.device) for entry in self.entries]
        self.available = torch.tensor([[s in entry.sequences for s in self.sequences] for entry in self.entries])
        self._foreground = [
            _foreground_voxels(codes[-1], entry.box_of(subset), index)
            for index, (codes, entry) in enumerate(zip(self.codes, self.entries, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """Memory the codes take."""
        return sum(codes.numel() for codes in self.codes)

    def batch(self, draws: Draws, augmentation: Augmentation, *, crop: int) -> Batch:
        """Cut and vary the crops of one step.

        Args:
            draws: What chance decided.
            augmentation: The settings the draws were made with.
            crop: Side in voxels.
        """
        rows = [self._cut(draws, row, crop) for row in range(len(draws.cases))]
        codes = torch.stack(rows)  # B J+1 i j k
        available = self.available[torch.from_numpy(draws.cases)]
        image = apply_intensities(decode(codes[:, :-1]), draws, augmentation)
        return Batch(
            image=image,
            sequences=self.sequences,
            available=available,
            present=available,
            target=codes[:, -1],
            case_ids=tuple(self.entries[case].case_id for case in draws.cases.tolist()),
        )

    def whole(self, index: int, *, multiple: int = 1) -> Batch:
        """One whole case as a batch of one, cropped to the box of the subset and padded to a multiple."""
        entry = self.entries[index]
        box = entry.box_of(self.subset)
        size = [-(-(end - start) // multiple) * multiple for start, end in box]
        codes = self._window(index, [start for start, _ in box], [end for _, end in box], size)[None]
        available = self.available[index : index + 1]
        return Batch(decode(codes[:, :-1]), self.sequences, available, available, codes[:, -1], (entry.case_id,))

    def _cut(self, draws: Draws, row: int, crop: int) -> Tensor:
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
        end_corner = [min(c + crop, end) for c, (_, end) in zip(corner, box, strict=True)]
        codes = self._window(index, corner, end_corner, [crop] * 3)
        axes = [axis + 1 for axis in range(3) if draws.flips[row, axis]]
        return codes.flip(axes) if axes else codes

    def _window(self, index: int, start: list[int], end: list[int], size: list[int]) -> Tensor:
        """Codes of a box in all columns (absent sequences 0), padded with background behind and in front."""
        entry = self.entries[index]
        (a0, b0, c0), (a1, b1, c1) = start, end
        inner = self.codes[index][:, a0:a1, b0:b1, c0:c1]
        pads = [(whole - have) for whole, have in zip(size, inner.shape[1:], strict=True)]
        result = inner.new_zeros((len(self.sequences) + 1, *size))
        place = tuple(slice(pad // 2, pad // 2 + have) for pad, have in zip(pads, inner.shape[1:], strict=True))
        columns = [self.sequences.index(sequence) for sequence in entry.sequences]
        result[[*columns, len(self.sequences)], place[0], place[1], place[2]] = inner
        return result

    def _pick_voxel(self, index: int, chance: np.ndarray[Any, np.dtype[np.float64]]) -> list[int] | None:
        regions = self._foreground[index]
        if not regions:
            return None
        voxels = regions[int(chance[0] * len(regions))]
        picked: list[int] = voxels[int(chance[1] * len(voxels))].tolist()
        return picked


def _foreground_voxels(target: Tensor, box: Box, seed: int) -> list[np.ndarray[Any, np.dtype[np.int16]]]:
    """For each region that occurs in a box, coordinates of at most 4,096 of its voxels, always the same ones."""
    inside = tuple(slice(start, end) for start, end in box)
    array = target.cpu().numpy()[inside]
    first = np.array([start for start, _ in box], dtype=np.int16)
    found = []
    for region in REGIONS:
        voxels = np.argwhere(np.isin(array, CLASSES_OF_REGION[region])).astype(np.int16) + first
        if len(voxels) > _FOREGROUND_VOXELS:
            voxels = voxels[np.random.default_rng([seed, 3]).choice(len(voxels), _FOREGROUND_VOXELS, replace=False)]
        if len(voxels):
            found.append(voxels)
    return found


def _plain(case: StoredCase) -> dict[str, Any]:
    return {**asdict(case), "sequences": [str(sequence) for sequence in case.sequences]}


def _entry(value: dict[str, Any]) -> StoredCase:
    sequences = [sequence_from_alias(name) for name in value["sequences"]]
    return StoredCase(
        case_id=value["case_id"],
        sequences=make_subset(sequence for sequence in sequences if sequence is not None),
        boxes=tuple(tuple(tuple(pair) for pair in box) for box in value["boxes"]),  # type: ignore[misc]
        shape=tuple(value["shape"]),
        spacing_mm=tuple(value["spacing_mm"]),
        sha256=value["sha256"],
        fingerprint=value["fingerprint"],
    )
