"""Masks and probabilities as NIfTI files: how they are written, and how what we wrote is known again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mindgap.data.nifti import READ_ERRORS, stem_of, unheard
from mindgap.data.volume import Volume
from mindgap.errors import InputError
from mindgap.files import write_aside, write_json
from mindgap.regions import LabelConvention, label_from_target

_COMMENT_EXTENSION = 6
_OWN_MASK = b"mindgap segmentation"
_OWN_PROBABILITIES = b"mindgap probabilities"
_VOXELS = "VoxelsBlake2b"
"""Of a mask as it was written, in its header: what an editor saves has other voxels under the same description."""


def write_label(path: Path, target: NDArray[np.uint8], *, like: Volume, convention: LabelConvention) -> None:
    """Write a segmentation in the grid of an input image, atomically.

    uint8, in the shape, affine, sform, qform and units of ``like``; what the numbers mean stands in a comment
    extension of the header, with a hash of the voxels, and in a sidecar ``<name>.json``.

    Args:
        path: Ends in .nii or .nii.gz.
        target: Classes (i j k) on the grid of ``like``.
        like: The image whose grid is kept.
        convention: How classes are numbered on disk.
    """
    if target.shape != like.array.shape:
        raise InputError(
            case=str(path),
            expected=f"shape {like.array.shape}",
            found=f"{target.shape}",
            mend="report this as a bug",
        )
    image, sidecar = label_image(target, like=like, convention=convention)
    with write_aside(path) as aside:
        nib.save(image, aside)
    write_json(path.with_name(stem_of(path) + ".json"), sidecar)


def label_image(target: NDArray[np.uint8], *, like: Volume, convention: LabelConvention) -> tuple[Any, dict[str, Any]]:
    """A segmentation as nibabel image in the grid of an input image, and what its numbers mean."""
    label = label_from_target(target, convention)
    image = _image_like(like, label, _OWN_MASK)
    names = {"0": "background", **{str(value): tissue for value, tissue in convention.tissues.items()}}
    sidecar = {"LabelConvention": convention.name, "Labels": names, "RegionsNested": "ET within TC within WT"}
    comment = json.dumps({**sidecar, _VOXELS: _hash_of(label)}).encode("utf-8")
    image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT_EXTENSION, comment))
    return image, sidecar


def write_probabilities(path: Path, probabilities: NDArray[np.float32], *, like: Volume, sidecar: Any) -> None:
    """Write probabilities in the grid of an input image, atomically, with a sidecar ``<name>.json``.

    float32, since a step of 8-bit codes (0.004) would round the small probabilities that expected volumes and
    uncertainty live on; most voxels are 0 and cost nothing once compressed.

    Args:
        path: Ends in .nii or .nii.gz.
        probabilities: 0 to 1 (i j k) or, with a channel for each region, (i j k R).
        like: The image whose grid is kept.
        sidecar: What the numbers mean.
    """
    image = probability_image(probabilities, like=like)
    with write_aside(path) as aside:
        nib.save(image, aside)
    write_json(path.with_name(stem_of(path) + ".json"), sidecar)


def probability_image(probabilities: NDArray[np.float32], *, like: Volume) -> Any:
    """Probabilities as nibabel image (float32) in the grid of an input image.

    Args:
        probabilities: 0 to 1 (i j k) or, with a channel for each region, (i j k R).
        like: The image whose grid is kept.
    """
    return _image_like(like, np.asarray(probabilities, np.float32), _OWN_PROBABILITIES)


def is_own_probabilities(path: Path) -> bool:
    """Whether a file was written by :func:`write_probabilities`, and may be written again."""
    return _description_of(path) == _OWN_PROBABILITIES


def is_own_mask(path: Path) -> bool:
    """Whether a file is a mask that :func:`write_label` wrote and nobody changed since: it may be written again.

    Editors keep the header, so that the voxels are compared with their hash in it. One whose voxels cannot be read was
    left by a crash and is nobody's work.
    """
    if not comes_from_mask(path):
        return False
    try:
        with unheard():
            image: Any = nib.load(path)
        known = [_comment(item).get(_VOXELS) for item in image.header.extensions]
        stored = np.asarray(image.dataobj)
    except (*READ_ERRORS, AttributeError):
        return True
    label = stored.astype(np.uint8)
    return bool((label == stored).all()) and _hash_of(label) in known


def comes_from_mask(path: Path) -> bool:
    """Whether a file is a mask that :func:`write_label` wrote, as it was or edited."""
    return _description_of(path) == _OWN_MASK


def _comment(extension: Any) -> dict[str, Any]:
    """What a header's extension says, where it is one of ours; nothing otherwise."""
    content = extension.get_content()
    text = content if isinstance(content, str) else bytes(content).decode("utf-8", errors="replace")
    try:
        said = json.loads(text.rstrip("\0"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _hash_of(label: NDArray[np.uint8]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(label).tobytes(), digest_size=16).hexdigest()


def _image_like(like: Volume, array: NDArray[Any], description: bytes) -> Any:
    header = _plain_header(like)
    header.set_data_dtype(array.dtype)
    header["descrip"] = description
    # sform, qform and their codes stay as they are in the header unless the affine is not the header's own.
    return nib.Nifti1Image(array, like.affine, header)


def _plain_header(like: Volume) -> Any:
    """The header of an image without texts, which may name the patient, and without what is said of its values."""
    known = like.header
    header = known.copy() if isinstance(known, nib.Nifti1Header) else nib.Nifti1Header.from_header(known)
    header.extensions.clear()
    header.set_slope_inter(1, 0)
    for name in ("cal_max", "cal_min", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[name] = 0
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):  # NIfTI-2 has not the last two
        if name in header:
            header[name] = b""
    return header


def _description_of(path: Path) -> bytes:
    try:
        with unheard():
            header: Any = nib.load(path).header
        return bytes(header["descrip"].tobytes().rstrip(b"\0"))
    except (*READ_ERRORS, KeyError, IndexError):
        return b""
