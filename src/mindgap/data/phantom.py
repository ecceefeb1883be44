"""The embedded cohort - real anatomy, grown tumours, signal equations - as a BraTS 2018 tree."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.anatomy import (
    Anatomy,
    AnatomyParameters,
    box_of,
    draw_anatomy,
    make_anatomy,
    smooth_field,
)
from mindgap.data.physics import PhysicsParameters, Tissue, acquire, draw_physics, fractions
from mindgap.data.template import Field
from mindgap.data.tumour import TumourParameters, draw_tumour, grow_tumour
from mindgap.errors import SettingError
from mindgap.files import read_json, write_json
from mindgap.regions import REGIONS, find_convention, label_from_target, region_mask
from mindgap.sequences import SEQUENCES, Sequence

SMALLEST_MM, LARGEST_MM = 0.5, 6.0
_BLOCK = 5  # of five consecutive cases exactly one has no enhancing tumour
_SUMMARY_EVERY_S = 2.0
SUMMARY_NAME = "phantom.json"


@dataclass(frozen=True)
class PhantomCase:
    """One made-up patient.

    Attributes:
        case_id: "Phantom_<seed>_<index>".
        images: Per sequence, voxels (i j k), whole numbers, 0 outside the brain: skull-stripped as in BraTS.
        target: Classes of :mod:`mindgap.regions` (0 background, 1 ET, 2 NCR, 3 ED).
        affine: Voxel index to mm; orientation LPS as in BraTS.
        parameters: Everything that was drawn, and what was measured on the result; JSON-able.
    """

    case_id: str
    images: dict[Sequence, NDArray[np.float32]]
    target: NDArray[np.uint8]
    affine: NDArray[np.float64]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class PhantomParameters:
    """Everything drawn about one case; the rest is deterministic."""

    anatomy: AnatomyParameters
    tumour: TumourParameters
    physics: PhysicsParameters


def draw_case(seed: int, index: int) -> PhantomParameters:
    """Draw one case; a pure function of its arguments, whatever else is drawn."""
    generator = np.random.default_rng([seed, index])
    spared = int(np.random.default_rng([seed, index // _BLOCK, _BLOCK]).integers(_BLOCK))
    return PhantomParameters(
        anatomy=draw_anatomy(generator),
        tumour=draw_tumour(generator, enhancing=index % _BLOCK != spared),
        physics=draw_physics(generator),
    )


def make_case(seed: int, index: int, *, spacing_mm: float = 2.0) -> PhantomCase:
    """Make one case in memory.

    Args:
        seed: Seed of the cohort, not negative.
        index: Number of the case in the cohort, not negative.
        spacing_mm: Voxel edge, 0.5 to 6; the same patient at every spacing.

    Raises:
        SettingError: A number is out of range.
    """
    _check(seed, index, spacing_mm)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # The matrix products are small: more threads only get in each other's (and other processes') way.
    with threadpool_limits(1, user_api="blas"):
        return _assemble(draw_case(seed, index), seed, index, spacing_mm)


def _assemble(drawn: PhantomParameters, seed: int, index: int, spacing_mm: float) -> PhantomCase:
    anatomy = make_anatomy(
        drawn.anatomy,
        spacing_mm=spacing_mm,
        seed_place=drawn.tumour.seed_place,
        mass_effect=drawn.tumour.mass_effect,
        radius_mm=drawn.tumour.push_radius_mm,
    )
    tumour = grow_tumour(drawn.tumour, anatomy)
    parts = fractions(anatomy, tumour)
    uptake = 0.8 + 0.35 * smooth_field(
        drawn.tumour.field_seed + 20, tumour.core.shape, spacing_mm=spacing_mm, length_mm=8.0
    )
    uptake = np.clip(uptake, 0.25, 1.6)
    images = {sequence: acquire(drawn.physics, sequence, parts, anatomy, uptake) for sequence in SEQUENCES}
    return PhantomCase(
        case_id=_case_id(seed, index),
        images={sequence: _on_grid(image, spacing_mm) for sequence, image in images.items()},
        target=_on_grid(tumour.target, spacing_mm),
        affine=affine_of(spacing_mm),
        parameters={
            "seed": seed,
            "index": index,
            "spacing_mm": spacing_mm,
            "grade": "HGG" if drawn.tumour.enhancing else "LGG",
            **_readable(drawn),
            "volume_ml": {
                str(region): float(region_mask(tumour.target, region).sum()) * spacing_mm**3 / 1000
                for region in REGIONS
            },
            "brain_ml": float(anatomy.brain.sum()) * spacing_mm**3 / 1000,
            "mean_signal": _mean_signal(images, parts, anatomy),
        },
    )


def affine_of(spacing_mm: float) -> NDArray[np.float64]:
    """Voxel index to mm in the BraTS grid: axes to the left, back and top, origin (0, 239, 0) at 1 mm.

    At other spacings the corner of the grid stays, so the middle of the first voxel moves.
    """
    affine = np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])
    offset = (spacing_mm - 1) / 2
    affine[:3, 3] = (-offset, 239 - offset, offset)
    return affine


def write_cohort(
    root: Path,
    *,
    cases: int,
    seed: int,
    spacing_mm: float = 2.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> list[Path]:
    """Write a BraTS 2018 tree: root/{HGG,LGG}/<case>/<case>_{t1,t2,t1ce,flair,seg}.nii.gz and phantom.json.

    A case whose five files and parameters are there is not made again, so a killed run goes on where it was.

    Args:
        root: Made when it does not exist.
        cases: How many.
        seed: Seed of the cohort.
        spacing_mm: Voxel edge, 0.5 to 6.
        workers: Processes; 1 works in this one.
        progress: Called with (done, all) after each case.
        first: Index of the first case.

    Returns:
        The folders of the cases, in order.

    Raises:
        SettingError: A number is out of range, or the folder holds phantoms of another spacing.
    """
    _check(seed, first, spacing_mm)
    if cases < 1 or workers < 1:
        raise SettingError(f"cases ({cases}) and workers ({workers}) have to be at least 1.")
    known = _read_known(root, spacing_mm)
    folders = [_folder(root, seed, index) for index in range(first, first + cases)]
    todo = [first + n for n, folder in enumerate(folders) if not _is_complete(folder, known)]
    done, written = cases - len(todo), time.monotonic()
    try:
        for parameters in _make_and_write([(root, seed, index, spacing_mm) for index in todo], workers):
            known[_case_id(parameters["seed"], parameters["index"])] = parameters
            done += 1
            if time.monotonic() - written > _SUMMARY_EVERY_S:
                _write_known(root, spacing_mm, known)
                written = time.monotonic()
            if progress is not None:
                progress(done, cases)
    finally:
        _write_known(root, spacing_mm, known)
    return folders


def _make_and_write(tasks: list[tuple[Path, int, int, float]], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1 or len(tasks) < 2:
        yield from map(_write_one, tasks)
        return
    # Spawned, not forked: the caller may hold threads (torch, BLAS) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context)
    try:
        for future in as_completed([pool.submit(_write_one, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write_one(task: tuple[Path, int, int, float]) -> dict[str, Any]:
    from mindgap.data.nifti import write_volume

    root, seed, index, spacing_mm = task
    case = make_case(seed, index, spacing_mm=spacing_mm)
    *image_paths, label_path = _files(_folder(root, seed, index))
    for sequence, path in zip(SEQUENCES, image_paths, strict=True):
        write_volume(path, case.images[sequence].astype(np.int16), case.affine)
    write_volume(label_path, label_from_target(case.target, find_convention("brats2017")), case.affine)
    return case.parameters


def _case_id(seed: int, index: int) -> str:
    return f"Phantom_{seed}_{index:03d}"


def _folder(root: Path, seed: int, index: int) -> Path:
    return root / ("HGG" if draw_case(seed, index).tumour.enhancing else "LGG") / _case_id(seed, index)


def _files(folder: Path) -> list[Path]:
    names = [str(sequence).lower() for sequence in SEQUENCES] + ["seg"]
    return [folder / f"{folder.name}_{name}.nii.gz" for name in names]


def _is_complete(folder: Path, known: dict[str, Any]) -> bool:
    return folder.name in known and all(path.is_file() for path in _files(folder))


def _read_known(root: Path, spacing_mm: float) -> dict[str, Any]:
    path = root / SUMMARY_NAME
    if not path.is_file():
        return {}
    summary = read_json(path)
    if summary["spacing_mm"] != spacing_mm:
        raise SettingError(
            f"{root} holds phantoms of {summary['spacing_mm']:g} mm, not {spacing_mm:g} mm: "
            f"choose another folder, or --spacing-mm {summary['spacing_mm']:g}."
        )
    return dict(summary["cases"])


def _write_known(root: Path, spacing_mm: float, known: dict[str, Any]) -> None:
    # Read again: another process may have added its share of the cohort meanwhile.
    merged = {**_read_known(root, spacing_mm), **known}
    summary = {"format": 1, "spacing_mm": spacing_mm, "cases": dict(sorted(merged.items()))}
    write_json(root / SUMMARY_NAME, summary)


def _check(seed: int, index: int, spacing_mm: float) -> None:
    if not SMALLEST_MM <= spacing_mm <= LARGEST_MM:
        raise SettingError(f"spacing {spacing_mm:g} mm is out of range: choose {SMALLEST_MM:g} to {LARGEST_MM:g} mm.")
    if seed < 0 or index < 0:
        raise SettingError(f"seed ({seed}) and case index ({index}) have to be 0 or more.")


def _on_grid(volume: NDArray[Any], spacing_mm: float) -> NDArray[Any]:
    grid, start, shape = box_of(spacing_mm)
    whole = np.zeros(grid, dtype=volume.dtype)
    whole[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))] = volume
    return whole


def _readable(drawn: PhantomParameters) -> dict[str, Any]:
    relaxation = {str(tissue): asdict(values) for tissue, values in drawn.physics.relaxation.items()}
    scans = {str(sequence): asdict(scan) for sequence, scan in drawn.physics.scans.items()}
    # Lists, not tuples: what is read back from JSON equals what was written.
    plain = json.loads(json.dumps({"anatomy": asdict(drawn.anatomy), "tumour": asdict(drawn.tumour)}))
    return {**plain, "contrast_mm": drawn.physics.contrast_mm, "relaxation": relaxation, "scans": scans}


def _mean_signal(
    images: dict[Sequence, Field], parts: dict[Tissue, Field], anatomy: Anatomy
) -> dict[str, dict[str, float]]:
    """Mean of each image over each tissue, weighted by its fraction squared (pure voxels count most)."""
    weights = {tissue: part**2 * anatomy.brain for tissue, part in parts.items()}
    return {
        str(sequence): {
            str(tissue): float((image * weight).sum() / weight.sum())
            for tissue, weight in weights.items()
            if weight.sum() > 0
        }
        for sequence, image in images.items()
    }
