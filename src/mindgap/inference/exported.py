"""What was measured when a trained network was exported: whether int8 and whole-brain passes are as good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mindgap.errors import MindgapError
from mindgap.files import read_json, sha256_of, write_json

FORMAT = 1
RECORD = "exported.json"
"""In the model folder."""
QUANTISED = "int8"
"""Folder of the quantised graph, in the model folder."""
GRAPH = "network.xml"
MOST_LOST = 0.005
"""Largest loss of mean Dice in any region that a gate lets through."""


@dataclass(frozen=True)
class Gate:
    """A way to compute beside the one it is measured against.

    Attributes:
        passed: Whether mean Dice is no more than :data:`MOST_LOST` lower in any region.
        reason: In words.
        dice: Mean Dice per region, of the way and of what it was measured against.
        mutual_dice: Mean Dice between the masks of both.
        cases: How many were segmented, each on every subset that was tried.
    """

    passed: bool
    reason: str
    dice: Mapping[str, Mapping[str, float]]
    mutual_dice: Mapping[str, float]
    cases: int


@dataclass(frozen=True)
class Exported:
    """The gates of a model folder; one that was not measured is None.

    Attributes:
        whole: One pass over the brain beside half-overlapping tiles.
        int8: Quantised beside fp32.
        int8_sha256: Of the quantised graph that was measured; another one is not used.
        outputs_per_voxel: What a pass over the brain takes (``torch_engine.outputs_per_voxel``), so that who loads the
            network need not try it; None where it was not counted.
    """

    whole: Gate | None = None
    int8: Gate | None = None
    int8_sha256: str | None = None
    outputs_per_voxel: float | None = None


def judge(
    name: str, dice: Mapping[str, float], reference: str, reference_dice: Mapping[str, float], **rest: Any
) -> Gate:
    """Whether a way to compute loses no more than :data:`MOST_LOST` of mean Dice in any region.

    Args:
        name: Of the way.
        dice: Region -> its mean Dice against the labels.
        reference: Name of what it is measured against.
        reference_dice: Region -> the mean Dice of that.
        rest: ``mutual_dice`` and ``cases``.
    """
    worst = max(reference_dice, key=lambda region: reference_dice[region] - dice[region])
    lost = reference_dice[worst] - dice[worst]
    passed = lost <= MOST_LOST
    said = f"{name} loses {lost:.4f} of mean Dice in {worst}" if lost > 0 else f"{name} loses no mean Dice"
    reason = f"{said} against {reference}; at most {MOST_LOST} is let through"
    return Gate(passed, reason, {name: dict(dice), reference: dict(reference_dice)}, **rest)


def read_exported(folder: Path, sha256: str) -> Exported | None:
    """The gates in a model folder; None where nothing was exported, or what was is of other weights (:func:`is_stale`).

    Args:
        folder: Of the model.
        sha256: Of its weights.

    Raises:
        MindgapError: They are of a newer format.
    """
    path = folder / RECORD
    if not path.is_file() or is_stale(folder, sha256):
        return None
    value = read_json(path)
    if value.get("format") != FORMAT:
        raise MindgapError(f"{path} has format {value.get('format')}; this version reads {FORMAT}. Update mindgap.")
    gates = {name: None if value[name] is None else Gate(**value[name]) for name in ("whole", "int8")}
    return Exported(**gates, int8_sha256=value.get("int8_sha256"), outputs_per_voxel=value.get("outputs_per_voxel"))


def is_stale(folder: Path, sha256: str) -> bool:
    """Whether a model folder was exported with other weights than it holds now, as when its training went on."""
    path = folder / RECORD
    return path.is_file() and read_json(path).get("weights_sha256") != sha256


def write_exported(folder: Path, sha256: str, exported: Exported) -> Exported:
    """Write the gates beside the weights and the quantised graph they were measured with; returns what was written."""
    told = replace(exported, int8_sha256=quantised_sha256(folder) if exported.int8 is not None else None)
    write_json(folder / RECORD, {"format": FORMAT, "weights_sha256": sha256, **asdict(told)})
    return told


def quantised_file(folder: Path) -> Path:
    """Where the quantised graph of a model folder lies, its numbers in a .bin beside it."""
    return folder / QUANTISED / GRAPH


def quantised_sha256(folder: Path) -> str | None:
    """Hash of the quantised graph with its numbers; None where there is none."""
    files = [quantised_file(folder), quantised_file(folder).with_suffix(".bin")]
    if not all(file.is_file() for file in files):
        return None
    return hashlib.sha256(" ".join(map(sha256_of, files)).encode()).hexdigest()
