"""A mask with its manifest: from which files, by which network, how, in what time, and what to beware of."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mindgap.data.case import AFFINE_TOLERANCE_MM, Case, CaseFiles, Source
from mindgap.data.folders import visible
from mindgap.data.masks import is_own_mask, write_label
from mindgap.data.naming import patients_apart
from mindgap.data.nifti import NIFTI_SUFFIXES, is_nifti, stem_of
from mindgap.data.volume import Volume, doubt_about_brains, doubt_about_grid
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import explain_unwritten, remove_leftovers, sha256_of, write_json
from mindgap.inference.confidence import Confidence, estimate
from mindgap.inference.estimate import NO_TUMOUR
from mindgap.inference.outputs import remove_probabilities
from mindgap.inference.predictor import Predictor, Segmentation
from mindgap.inference.selection import Choice
from mindgap.regions import LabelConvention
from mindgap.sequences import SEQUENCES, FileName, Sequence, format_subset, read_filenames

FORMAT = 1


@dataclass(frozen=True)
class Reading:
    """A case read for a network.

    Attributes:
        files: Where it lies.
        case: The sequences the network looks at, and no others.
        sha256: File -> SHA-256, of all that were opened.
        seconds: What reading and hashing took.
        raw: How raw scans were laid upon the atlas; empty for others.
        warnings: What came up on the way.
    """

    files: CaseFiles
    case: Case
    sha256: Mapping[Path, str]
    seconds: float
    raw: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A segmented case that was not written yet.

    Attributes:
        reading: The case as it was read.
        segmentation: What was found.
        seconds: What preparation, network and the way back took.
    """

    reading: Reading
    segmentation: Segmentation
    seconds: float


def check_mask_place(out: Path) -> None:
    """Refuse a file that is not to hold a mask, before anything is computed.

    Raises:
        SettingError: The name is not that of NIfTI, or something stands there that mindgap did not write.
    """
    if not out.name.endswith(NIFTI_SUFFIXES):
        raise SettingError(f"{out} has no NIfTI name: let it end in .nii.gz or .nii.")
    remove_leftovers(out.parent, of=(out.name, *(f"{stem_of(out)}{end}" for end in (".json", ".manifest.json"))))
    refuse_unwritable(out)
    if out.exists() and not is_own_mask(out):
        raise SettingError(
            f"{out} exists and is no mask as mindgap wrote it (an input, a reference, a corrected mask?): choose "
            "another output."
        )
    check_sidecar(out)


def refuse_unwritable(out: Path) -> None:
    """Refuse, before any work, a place where nothing can be written; folders are made with the first file.

    Raises:
        MindgapError: It cannot.
    """
    there = next((folder for folder in out.absolute().parents if folder.exists()), out.parent)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise MindgapError(explain_unwritten(out, error)) from error


def check_sidecar(mask: Path) -> None:
    """Refuse to write over a .json beside a mask, or what has the name of its manifest, that is not about it.

    Raises:
        SettingError: There is one.
    """
    about = mask.with_name(f"{stem_of(mask)}.json")
    manifest = manifest_of(mask)
    if manifest.exists() and '"mask"' not in manifest.read_text(encoding="utf-8", errors="replace"):
        raise SettingError(f"{manifest} exists and is no manifest of a mask: choose another name for {mask.name}.")
    if about.exists() and "LabelConvention" not in about.read_text(encoding="utf-8", errors="replace"):
        raise SettingError(f"{about} exists and is not about a mask of mindgap's: choose another name for {mask.name}.")


def read_for(predictor: Predictor, files: CaseFiles, *, force: bool = False) -> Reading:
    """Open the files a network looks at, and only these.

    Args:
        predictor: The network.
        files: The case on disk.
        force: Accept affines that disagree.

    Raises:
        InputError: The case lacks what the network needs, or cannot be used.
    """
    began = time.perf_counter()
    used = predictor.serve(files.case_id, files.sequences)
    case = files.load(used, force=force)
    sha256 = {path: sha256_of(path) for path in dict.fromkeys(files.images[s].path for s in used)}
    refuse_copies(files, sha256)
    refuse_same_voxels(files, case.images)
    return Reading(files, case, sha256, time.perf_counter() - began, warnings=doubts_about_case(case))


def refuse_copies(files: CaseFiles, sha256: Mapping[Path, str]) -> None:
    """Refuse one image under two names, of which one is not the sequence it is said to be.

    Raises:
        InputError: Two files have the same bytes.
    """
    seen: dict[tuple[str, int | None], str] = {}
    for source in files.images.values():
        key = (sha256.get(source.path, str(source.path)), source.channel)
        if key in seen:
            raise _copies(files.case_id, seen[key], str(source))
        seen[key] = str(source)


def refuse_same_voxels(files: CaseFiles, images: Mapping[Sequence, Volume]) -> None:
    """Refuse one image in two files of other bytes: compressed anew, or once in memory.

    Args:
        files: Where the images come from.
        images: Those that were opened.

    Raises:
        InputError: Two have the same voxels.
    """
    for (one, first), (other, second) in combinations(images.items(), 2):
        thin = (slice(None, None, 4),) * 3  # tells nearly all images apart, in a fraction of the time
        if np.array_equal(first.array[thin], second.array[thin]) and np.array_equal(first.array, second.array):
            raise _copies(files.case_id, str(files.images[one]), str(files.images[other]))


def _copies(case_id: str, one: str, other: str) -> InputError:
    return InputError(
        case=case_id,
        expected="an image of its own for each sequence",
        found=f"{one} and {other}, which are copies of one another",
        mend="name the right file, or leave the absent sequence out",
    )


def doubts_about(volumes: Iterable[Volume]) -> tuple[str, ...]:
    """What makes it doubtful where volumes lie in space."""
    return tuple(doubt for doubt in map(doubt_about_grid, volumes) if doubt)


def doubts_about_case(case: Case) -> tuple[str, ...]:
    """What makes it doubtful where stripped images lie in space, and that they are of one head."""
    brains = doubt_about_brains({str(sequence): volume for sequence, volume in case.images.items()})
    return (*doubts_about(case.images.values()), *([brains] if brains else []))


def find_in(predictor: Predictor, reading: Reading, confidence: Confidence | None = None) -> Found:
    """Segment what was read, and say how far the mask can be trusted where something is known of the network."""
    began = time.perf_counter()
    segmentation = predictor.segment(reading.case)
    if confidence is not None:
        coverage, tta = segmentation.coverage, predictor.tta
        found = estimate(confidence, segmentation, reading.case, coverage=coverage, mirrored=tta)
        segmentation = replace(segmentation, confidence=found)
    return Found(reading, segmentation, time.perf_counter() - began)


def write_mask(
    path: Path,
    found: Found,
    predictor: Predictor,
    *,
    convention: LabelConvention,
    force: bool = False,
    choice: Choice | None = None,
    brain_mask: Path | None = None,
) -> dict[str, Any]:
    """Write a mask with its sidecar and, last, its manifest ``<name>.manifest.json``.

    Probabilities of the mask that stood there before are removed first: they are those of another result.

    A manifest speaks of the mask whose SHA-256 it holds; after a kill between the two files it is that of the mask
    before.

    Args:
        path: The mask.
        found: What is written.
        predictor: Whose it is.
        convention: How classes are numbered on disk.
        force: Whether what is doubtful was let through.
        choice: Why this network of a set answered.
        brain_mask: The file that said where the brain of raw scans is.

    Returns:
        What the manifest holds.
    """
    began = time.perf_counter()
    remove_probabilities(path)
    write_label(path, found.segmentation.target, like=found.segmentation.like, convention=convention)
    mask = {"file": path.name, "sha256": sha256_of(path), "labels": convention.name}
    seconds = {"read": found.reading.seconds, "compute": found.seconds, "write": time.perf_counter() - began}
    record = {
        "format": FORMAT,
        "case": found.reading.files.case_id,
        "mask": mask,
        **_describe_input(found, predictor),
        **_describe_network(predictor),
        **({} if choice is None else {"chosen": choice.to_plain()}),
        "force": force,
        "coverage": found.segmentation.coverage,
        "volumes_ml": {str(region): round(ml, 3) for region, ml in found.segmentation.volumes_ml.items()},
        "confidence": None if found.segmentation.confidence is None else found.segmentation.confidence.to_plain(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        **({"raw": found.reading.raw} if found.reading.raw else {}),
        **({} if brain_mask is None else {"brain_mask": {"file": str(brain_mask), "sha256": sha256_of(brain_mask)}}),
        "warnings": warnings_about(found),
        "versions": _versions(found, predictor),
    }
    write_json(manifest_of(path), record)
    return record


def manifest_of(mask: Path) -> Path:
    """Where the manifest of a mask lies."""
    return mask.with_name(f"{stem_of(mask)}.manifest.json")


def warnings_about(found: Found) -> list[str]:
    """What a reader of the mask should know: files not understood, affines let through, a tumour that was not found."""
    case, files = found.reading.case, found.reading.files
    lines = [*files.doubts, *found.reading.warnings]
    absent = [sequence for sequence in SEQUENCES if sequence not in files.images]
    if absent and files.left_alone:
        names, more = ", ".join(files.left_alone[:4]), len(files.left_alone) - 4
        lines.append(
            f"{format_subset(absent)} absent, and files were left alone whose names end in no sequence: {names}"
            f"{f' and {more} more' if more > 0 else ''} (rename them, or name each by its sequence, if they are these)"
        )
    read = {sequence: _name_of(source, files.case_id) for sequence, source in files.images.items()}
    for sequence, name in read.items():
        if name is not None and name.sequence not in (None, sequence):
            lines.append(f"{files.images[sequence]} was given as {sequence}, and its name says {name.sequence}")
    parts = {str(sequence): name.case for sequence, name in read.items() if name is not None}
    patients = sorted({part.strip("_-. ") for part in parts.values()})
    alike = len(patients) > 1 and len({re.sub(r"\d+", "#", patient) for patient in patients}) == 1
    if alike or patients_apart(parts) is not None:
        lines.append(f"names speak of {' and '.join(patients)}: these may be of different patients or series")
    for sequence, volume in case.images.items():
        shift_mm = float(np.abs(volume.affine - case.reference.affine).max())
        if shift_mm > AFFINE_TOLERANCE_MM:
            lines.append(
                f"the affine of {sequence} differs from that of {case.sequences[0]} by {shift_mm:.3g} mm; the grid of "
                f"{case.sequences[0]} was taken for both (--force)"
            )
    if not found.segmentation.target.any():
        lines.append(NO_TUMOUR)
    return lines


def _describe_input(found: Found, predictor: Predictor) -> dict[str, Any]:
    """Which sequences were used and from which files, which the network misses, and which were left unopened."""
    images, used = found.reading.files.images, found.segmentation.subset
    origins = found.reading.files.origins
    return {
        "subset": format_subset(used),
        "inputs": {
            str(sequence): {
                "file": place_of(images[sequence].path),
                "channel": images[sequence].channel,
                "sha256": found.reading.sha256[images[sequence].path],
                **(origins[sequence].to_plain() if sequence in origins else {}),  # the series
            }
            for sequence in used
        },
        "missing": [str(sequence) for sequence in SEQUENCES if sequence not in images],
        "missing_for_network": [str(sequence) for sequence in predictor.card.sequences if sequence not in images],
        "not_opened": [str(sequence) for sequence in images if sequence not in used],
    }


def _name_of(source: Source, case_id: str) -> FileName | None:
    stem = stem_of(source.path)
    return read_filenames([stem], case_id).get(stem) if source.channel is None and is_nifti(source.path) else None


def place_of(path: Path) -> str:
    """Where a file lies, by the name of its link where it is one; an image given in memory has a name instead."""
    return str(path) if path.name == str(path) and not path.is_file() else str(visible(path))


def _describe_network(predictor: Predictor) -> dict[str, Any]:
    return {
        "model": {
            "folder": predictor.folder.resolve().name,
            "sha256": predictor.sha256,
            "architecture": predictor.card.architecture,
            "method": predictor.card.method,
            "takes": format_subset(predictor.card.sequences),
            "any_subset": predictor.card.any_subset,
        },
        "engine": predictor.choice.name,
        "precision": predictor.precision,
        "mirrored": predictor.tta,
        "processor": predictor.processor.kind,
    }


def _versions(found: Found, predictor: Predictor) -> dict[str, str]:
    """Of whatever took part."""
    took_part = {
        "torch": predictor.choice.name == "torch",
        "openvino": predictor.choice.name == "openvino",
        "SimpleITK": bool(found.reading.raw),
        "dcm2niix": bool(found.reading.files.origins),
        "pydicom": bool(found.reading.files.origins),
    }
    return {
        "mindgap": importlib.metadata.version("mindgap"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "nibabel": nib.__version__,
        **{package: importlib.metadata.version(package) for package, there in took_part.items() if there},
    }
