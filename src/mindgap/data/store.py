"""A prepared cohort on disk.

One file per case: codes (J+1, i, j, k), sequences in canonical order and the target last, cropped to the brain. Codes
are 8-bit, or float16 where that was asked for; the file says which. Nothing here opens NIfTI, so a training machine
needs only torch and numpy.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindgap.data.codes import CodeKind, encode
from mindgap.data.prepared import Box, Preparation, PreparedCase, join_boxes
from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, sha256_of, write_aside, write_json
from mindgap.sequences import Subset, make_subset, subset_from_names

FORMAT = 1
INDEX = "store.json"
PARTS = ("train", "validation", "test")


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
        split: Name of the split, the case ids of train, validation and test, and the cohorts that joined those that
            train.
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
    def joined(self) -> set[str]:
        """Cases of other cohorts, such as phantoms, that train only."""
        return {case_id for cohort in self.split.get("joined", ()) for case_id in cohort["cases"]}

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

    def read(self, case_id: str) -> np.memmap[Any, Any]:
        """Memory-map the codes of a case (J+1, i, j, k), uint8 or float16; writing to them stays in memory.

        Raises:
            MindgapError: The file is missing or damaged.
        """
        path = self.path_of(case_id)
        try:
            codes: np.memmap[Any, Any] = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise MindgapError(f"{path} cannot be read ({error}): run `mindgap prepare` again.") from error
        return codes


def write_case(
    store_folder: Path, prepared: PreparedCase, *, fingerprint: str, codes: CodeKind = "uint8"
) -> StoredCase:
    """Write one prepared case and its entry, so that an interrupted preparation can go on."""
    assert prepared.target is not None
    image = encode(prepared.image, codes)
    array = np.concatenate([image, prepared.target[None].astype(image.dtype)])
    path = store_folder / "cases" / f"{prepared.case_id}.npy"
    buffer = io.BytesIO()
    np.save(buffer, array)
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getbuffer())
    shape = prepared.target.shape
    entry = StoredCase(
        case_id=prepared.case_id,
        sequences=prepared.sequences,
        boxes=prepared.boxes,
        shape=(shape[0], shape[1], shape[2]),
        spacing_mm=prepared.spacing_mm,
        sha256=hashlib.sha256(buffer.getbuffer()).hexdigest(),  # of what was meant, not of what came back from the disk
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
        SettingError: The folder is no store, or one of another format or with other sequences.
    """
    path = folder / INDEX
    if not path.is_file():
        raise SettingError(
            f"{folder} is no prepared cohort ({INDEX} is missing): make one with `mindgap prepare DATA -o STORE`, and "
            "name STORE."
        )
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise SettingError(
            f"{path} has format {value.get('format')}, this version reads {FORMAT}: prepare the data again."
        )
    try:
        cases = [_entry(item) for item in value["cases"]]
    except SettingError as error:
        raise SettingError(f"{path}: {error} Prepare the data again, or update mindgap.") from error
    return Store(
        folder=folder,
        preparation=Preparation.from_plain(value["preparation"]),
        cases={case.case_id: case for case in cases},
        failed=value["failed"],
        split=value["split"],
        source=value["source"],
        convention=value["convention"],
    )


def _plain(case: StoredCase) -> dict[str, Any]:
    return {**asdict(case), "sequences": [str(sequence) for sequence in case.sequences]}


def _entry(value: dict[str, Any]) -> StoredCase:
    return StoredCase(
        case_id=value["case_id"],
        sequences=subset_from_names(value["sequences"]),
        boxes=tuple(tuple(tuple(pair) for pair in box) for box in value["boxes"]),  # type: ignore[misc]
        shape=tuple(value["shape"]),
        spacing_mm=tuple(value["spacing_mm"]),
        sha256=value["sha256"],
        fingerprint=value["fingerprint"],
    )
