"""Segmentation as one call from Python: paths or nibabel images in, nibabel images and numbers out."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from mindgap.data.case import Case, CaseFiles, Source
from mindgap.data.cohort import case_from_files
from mindgap.data.masks import label_image, probability_image
from mindgap.data.nifti import read_volume, volume_from_image
from mindgap.data.volume import Volume
from mindgap.errors import InputError
from mindgap.files import PathLike, sha256_of
from mindgap.inference.confidence import read_confidence
from mindgap.inference.estimate import Estimate
from mindgap.inference.predictor import Coverage, Predictor
from mindgap.inference.record import (
    Reading,
    check_mask_place,
    doubts_about_case,
    find_in,
    refuse_copies,
    refuse_same_voxels,
    warnings_about,
    write_mask,
)
from mindgap.inference.selection import Answering, answering
from mindgap.inference.shipped import model_folder
from mindgap.regions import find_convention
from mindgap.sequences import Sequence, Subset

Image = PathLike | nib.spatialimages.SpatialImage


@dataclass(frozen=True)
class Result:
    """What was found in a patient.

    Attributes:
        segmentation: Labels in the patient's grid (uint8), numbered as ``labels`` says.
        probabilities: WT, TC, ET on the fourth axis (float32, 0 to 1), in the same grid.
        volumes_ml: WT, TC, ET in mL.
        subset: The sequences the network looked at.
        labels: Tissue of each label.
        warnings: What a reader of the mask should know.
        confidence: How far the result can be trusted, where the model can tell.
    """

    segmentation: nib.Nifti1Image = field(repr=False)
    probabilities: nib.Nifti1Image = field(repr=False)
    volumes_ml: Mapping[str, float]
    subset: Subset
    labels: Mapping[int, str]
    warnings: tuple[str, ...] = ()
    confidence: Estimate | None = None


def load(
    model: PathLike | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    coverage: Coverage = "auto",
    engine: str = "auto",
    tta: bool = False,
) -> Predictor:
    """Load a network once, for many calls of :func:`segment`.

    Args:
        model: Run folder or model folder of one network, or the name of one that comes with mindgap; the one in the
            box by default.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or int8.
        coverage: Half-overlapping tiles ("tiles"), the brain in one pass ("whole"), or "auto": the latter where an
            export found it as good and memory suffices.
        engine: auto, torch or openvino.
        tta: Average over the eight mirror images of the brain.

    Raises:
        MindgapError: The folder holds no whole network.
    """
    return Predictor.load(
        model_folder(model), device=device, precision=precision, coverage=coverage, engine=engine, tta=tta
    )


def segment(
    *,
    model: PathLike | Predictor | None = None,
    t1: Image | None = None,
    t2: Image | None = None,
    t1ce: Image | None = None,
    flair: Image | None = None,
    out: PathLike | None = None,
    labels: str = "brats2017",
    case: str | None = None,
    force: bool = False,
) -> Result:
    """Segment one patient from the sequences at hand, skull-stripped and on one grid.

    Nothing is printed, and nothing is written unless ``out`` is given. Images of sequences that the network does not
    use are not opened.

    Args:
        model: Run folder, or model folder of one network or several; the name of a network that comes with mindgap; by
            default the one in the box; or what :func:`load` gave, which is not read again.
        t1: T1, a .nii or .nii.gz file or a nibabel image.
        t2: T2.
        t1ce: Contrast-enhanced T1.
        flair: FLAIR.
        out: Also write the mask here (.nii or .nii.gz), with its sidecar and its manifest.
        labels: How labels are numbered.
        case: Name for messages and manifest; by default that of the files.
        force: Accept images whose affines disagree.

    Returns:
        The segmentation with its volumes.

    Raises:
        InputError: The images cannot be used, or one that the network needs is absent.
        SettingError: A setting cannot work.

    Example:
        >>> import mindgap
        >>> network = mindgap.load()  # the network in the box
        >>> found = mindgap.segment(flair="P1/P1_flair.nii.gz", model=network)
        >>> found.segmentation.ndim, sorted(found.volumes_ml)
        (3, ['ET', 'TC', 'WT'])
        >>> [str(sequence) for sequence in found.subset]
        ['FLAIR']
    """
    convention = find_convention(labels)
    place = None if out is None else Path(out)
    if place is not None:
        check_mask_place(place)
    given = {Sequence.T1: t1, Sequence.T2: t2, Sequence.T1CE: t1ce, Sequence.FLAIR: flair}
    images = {sequence: image for sequence, image in given.items() if image is not None}
    files = _as_files(images, case)
    if isinstance(model, Predictor):
        predictor, who = model, Answering(model.folder, read_confidence(model.folder, model.sha256))
    else:
        who = answering(model_folder(model), files.case_id, files.sequences)
        predictor = load(who.folder)
    found = find_in(predictor, _read(predictor, images, files, force=force), who.confidence)
    if place is not None:
        write_mask(place, found, predictor, convention=convention, force=force, choice=who.choice)
    segmentation = found.segmentation
    mask, _ = label_image(segmentation.target, like=segmentation.like, convention=convention)
    return Result(
        segmentation=mask,
        probabilities=probability_image(np.moveaxis(segmentation.probabilities, 0, -1), like=segmentation.like),
        volumes_ml={str(region): float(ml) for region, ml in segmentation.volumes_ml.items()},
        subset=segmentation.subset,
        labels=dict(convention.tissues),
        warnings=tuple(warnings_about(found)),
        confidence=segmentation.confidence,
    )


def _read(predictor: Predictor, images: Mapping[Sequence, Image], files: CaseFiles, *, force: bool) -> Reading:
    """The sequences the network looks at; an image in memory stands in the manifest with the hash of its voxels."""
    began = time.perf_counter()
    used = predictor.serve(files.case_id, files.sequences)
    volumes: dict[Sequence, Volume] = {}
    sha256: dict[Path, str] = {}
    for sequence in used:
        image, path = images[sequence], files.images[sequence].path
        if isinstance(image, nib.spatialimages.SpatialImage):
            volumes[sequence] = _in_memory(image, path, files.case_id)
            sha256[path] = _hash_of(volumes[sequence])
        else:
            volumes[sequence] = read_volume(path, case=files.case_id)
            sha256[path] = sha256_of(path)
    refuse_copies(files, sha256)
    case = Case(files.case_id, volumes, force=force)
    refuse_same_voxels(files, case.images)
    return Reading(files, case, sha256, time.perf_counter() - began, warnings=doubts_about_case(case))


def _as_files(images: Mapping[Sequence, Any], case: str | None) -> CaseFiles:
    seen: dict[int, Sequence] = {}
    for sequence, image in images.items():
        if isinstance(image, nib.spatialimages.SpatialImage) and id(image) in seen:
            raise InputError(
                case=case or "case",
                expected="an image of its own for each sequence",
                found=f"one image given for {seen[id(image)]} and for {sequence}",
                mend="give the right image, or leave the absent sequence out",
            )
        if not isinstance(image, (str, os.PathLike, nib.spatialimages.SpatialImage)):
            raise InputError(
                case=case or "case",
                expected=f"a path or a nibabel image for {sequence}",
                found=type(image).__name__,
                mend="put an array and its affine into nibabel.Nifti1Image(array, affine)",
            )
        seen[id(image)] = sequence
    paths = {s: Path(i) for s, i in images.items() if not isinstance(i, nib.spatialimages.SpatialImage)}
    named = case_from_files(paths, case) if paths else None
    sources = {s: Source(paths.get(s, Path(f"({s} in memory)"))) for s in images}
    return CaseFiles(named.case_id if named is not None else case or "case", sources)


def _in_memory(image: nib.spatialimages.SpatialImage, path: Path, case: str) -> Volume:
    """Any spatial image of nibabel, as NIfTI, so that the mask has a header to go home with."""
    if not isinstance(image, nib.Nifti1Pair):
        image = nib.Nifti1Image.from_image(image)
    return volume_from_image(image, path, case=case)


def _hash_of(volume: Volume) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.affine).tobytes())
    digest.update(np.ascontiguousarray(volume.array).tobytes())
    return digest.hexdigest()
