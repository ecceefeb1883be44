"""How much of a mask survives when scans come raw: moved, oblique, with thick slices, each on a grid of its own.

    python benchmarks/raw.py                     # a phantom at 1 mm
    python benchmarks/raw.py --case PATIENT --model RUN --subset T1ce+FLAIR

A case that is co-registered and stripped is taken apart: every head is turned and shifted by another pose and sampled
on an oblique grid with slices of its own thickness. ``--raw --already-stripped`` puts it together again. Dice between
its mask and that of the untouched case, whose probabilities are brought to the same grid by the true pose: first with
the reference left where it was, then with everything moved; and, beside it, what the change of grid costs by itself
(the same scans, laid upon each other by the true poses).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.brain import BrainSource
from mindgap.data.case import Case, CaseFiles
from mindgap.data.cohort import case_from_folder
from mindgap.data.nifti import write_volume
from mindgap.data.phantom import write_cohort
from mindgap.data.raw import RawOptions
from mindgap.data.registration import resample
from mindgap.data.volume import Volume
from mindgap.evaluation.metrics import dice
from mindgap.inference.predictor import Predictor
from mindgap.inference.raw import find_raw, read_raw
from mindgap.inference.shipped import model_folder
from mindgap.processor import keep_freed_memory
from mindgap.regions import REGIONS, region_mask
from mindgap.sequences import Sequence, format_subset, parse_subset

SLICES_MM = {Sequence.T1CE: 1.0, Sequence.T1: 3.0, Sequence.FLAIR: 4.0, Sequence.T2: 5.0}
"""Thickness per sequence; T1ce is the finest and becomes the reference."""
LARGEST_DEG, LARGEST_MM = 12.0, 15.0
EXTENT_MM = 260.0
Matrix = NDArray[np.float64]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=Path, help="a folder with co-registered, stripped images; a phantom by default")
    parser.add_argument("--model", type=Path, help="a model folder; the network in the box by default")
    parser.add_argument("--subset", default="all")
    parser.add_argument("--poses", type=int, default=3)
    words = parser.parse_args()
    keep_freed_memory()
    predictor = Predictor.load(model_folder(words.model), coverage="auto", engine="auto")
    print(f"{predictor.processor.kind}, {predictor.choice.name} {predictor.precision}, {predictor.folder.name}\n")
    print("| pose | what was moved | WT | TC | ET | true poses: WT | TC | ET |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        files = case_from_folder(words.case or write_cohort(out / "p", cases=1, seed=0, spacing_mm=1.0)[0], label=False)
        subset = files.sequences if words.subset == "all" else parse_subset(words.subset)
        case = files.load(subset)
        untouched = predictor.segment(case).probabilities
        rows: dict[str, list[list[float]]] = {}
        for number in range(words.poses):
            for what in ("all but the reference", "all"):
                place = out / f"{number}{len(what)}"
                found = round_trip(predictor, case, untouched, number, place, still=what != "all")
                rows.setdefault(what, []).append(found)
                print(f"| {number + 1} | {what} | {' | '.join(f'{value:.3f}' for value in found)} |", flush=True)
        for what, values in rows.items():
            medians = (statistics.median(column) for column in zip(*values, strict=True))
            print(f"| median | {what} | {' | '.join(f'{value:.3f}' for value in medians)} |")
    slices = ", ".join(f"{sequence} {mm:g}" for sequence, mm in SLICES_MM.items())
    print(f"\n{format_subset(subset)} of {files.case_id}; slices {slices} mm")


def round_trip(
    predictor: Predictor, case: Case, untouched: NDArray[np.float32], seed: int, folder: Path, *, still: bool
) -> list[float]:
    """Dice per region against the untouched case: found by registration, then with the true poses."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    first = min(case.images, key=lambda sequence: SLICES_MM[sequence])
    poses: dict[Sequence, Matrix] = {}
    grids: dict[Sequence, Volume] = {}
    for sequence, volume in case.images.items():
        keeps = still and sequence == first
        poses[sequence] = np.eye(4) if keeps else draw_pose(random, centre_of(volume))
        moved = volume if keeps else move(volume, poses[sequence], SLICES_MM[sequence], random)
        grids[sequence] = moved
        write_volume(folder / f"p_{str(sequence).lower()}.nii.gz", moved.array, moved.affine)
    files: CaseFiles = case_from_folder(folder, label=False)
    options = RawOptions(BrainSource(already_stripped=True), reference=first)
    found = find_raw(predictor, read_raw(predictor, files, options)).segmentation.target
    native = grids[first]
    truth = carried(predictor, untouched, case.reference, poses[first], native)
    back = {s: pulled(grids[s], np.linalg.inv(poses[s]).astype(np.float64), case.reference) for s in case.images}
    ideal = predictor.segment(Case(case.case_id, back)).probabilities
    known = carried(predictor, ideal, case.reference, poses[first], native)
    masks = ((found, truth), (known, truth))
    return [dice(region_mask(a, region), region_mask(b, region)) for a, b in masks for region in REGIONS]


def draw_pose(random: np.random.Generator, centre: NDArray[np.float64]) -> Matrix:
    """A rigid move about the middle of the brain (RAS mm), from where the head is to where it was."""
    turn = rotation(random.uniform(-LARGEST_DEG, LARGEST_DEG, 3))
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = centre - turn @ centre + random.uniform(-LARGEST_MM, LARGEST_MM, 3)
    return pose


def rotation(degrees: NDArray[np.float64]) -> Matrix:
    """About x, then y, then z."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[a, a] = one[b, b] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    return turn


def centre_of(volume: Volume) -> NDArray[np.float64]:
    """The middle of the brain (RAS mm)."""
    middle = np.argwhere(volume.array > 0).mean(0)
    centre: NDArray[np.float64] = (volume.affine @ [*middle, 1.0])[:3]
    return centre


def move(volume: Volume, pose: Matrix, slice_mm: float, random: np.random.Generator) -> Volume:
    """The scan of a moved head, on an oblique grid with slices of a thickness."""
    spacing = np.array([1.0, 1.0, slice_mm])
    shape = tuple(round(EXTENT_MM / mm) for mm in spacing)
    affine = np.eye(4)
    affine[:3, :3] = rotation(random.uniform(-8, 8, 3)) @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    there = (np.linalg.inv(pose) @ [*centre_of(volume), 1.0])[:3]
    affine[:3, 3] = there - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    smoothed = replace(volume, array=thick(volume, slice_mm))
    return pulled(smoothed, pose, Volume(np.zeros(shape, np.float32), affine, volume.path, None))


def thick(volume: Volume, slice_mm: float) -> NDArray[np.float32]:
    """What a slice averages along the third axis, within the brain."""
    from scipy.ndimage import uniform_filter1d

    width = max(1, round(slice_mm / volume.spacing_mm[2]))
    inside = (volume.array > 0).astype(np.float32)
    weight = uniform_filter1d(inside, width, axis=2)
    mean = uniform_filter1d(volume.array.astype(np.float32), width, axis=2) / np.maximum(weight, 1e-3)
    averaged: NDArray[np.float32] = np.where(inside > 0, mean, 0).astype(np.float32)
    return averaged


def pulled(volume: Volume, way: Matrix, like: Volume) -> Volume:
    """A stripped scan on another grid; the cut around its brain stays sharp."""
    i, j, k = like.array.shape
    brain = replace(volume, array=(volume.array > 0).astype(np.float32))
    inside = resample("scan", brain, way, (i, j, k), like.affine)
    image = resample("scan", volume, way, (i, j, k), like.affine)
    array = np.where(inside >= 0.5, np.maximum(image / np.maximum(inside, 0.5), 1e-3), 0).astype(np.float32)
    return Volume(array, like.affine, volume.path, None)


def carried(
    predictor: Predictor, maps: NDArray[np.float32], like: Volume, pose: Matrix, native: Volume
) -> NDArray[np.uint8]:
    """The mask of probabilities that were found elsewhere, brought to a grid by the true pose."""
    i, j, k = native.array.shape
    parts = [
        resample("maps", Volume(part, like.affine, like.path, None), pose, (i, j, k), native.affine) for part in maps
    ]
    return predictor.classes(np.stack(parts))


if __name__ == "__main__":
    main()
