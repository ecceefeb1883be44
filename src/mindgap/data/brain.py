"""Where the brain is in a raw scan: an installed hd-bet, a mask file, or nothing to do because it was stripped."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mindgap.data.nifti import read_volume, write_volume
from mindgap.data.volume import Volume, orientation_of
from mindgap.errors import InputError, SettingError
from mindgap.sequences import Sequence

_GRID_TOLERANCE_MM = 1e-2
_TIME_LIMIT_S = 3600
_SOFT = 0.45  # of the layer below: 0.64 to 0.95 where a mask cut the brain, 0.17 to 0.31 where that cut was blurred
_MOST_LAYERS = 3
_RUNNING: set[subprocess.Popen[str]] = set()
_STOPPING = threading.Event()


@dataclass(frozen=True)
class BrainSource:
    """How the brain is found; one way is set.

    Attributes:
        already_stripped: The brain is what lies above 0.
        mask: File with the brain above 0, on the grid of a present sequence, its axes in whichever order.
        hd_bet: The program hd-bet.
    """

    already_stripped: bool = False
    mask: Path | None = None
    hd_bet: Path | None = None

    @property
    def name(self) -> str:
        """For the manifest."""
        if self.already_stripped:
            return "already stripped"
        return f"mask {self.mask}" if self.mask is not None else f"hd-bet {self.hd_bet}"


def choose_brain(*, already_stripped: bool, mask: Path | None, hd_bet: Path | None) -> BrainSource:
    """What the user asked for, or hd-bet where it is installed.

    Raises:
        SettingError: More than one way was named, or none is there.
    """
    if sum((already_stripped, mask is not None, hd_bet is not None)) > 1:
        raise SettingError("give one of --already-stripped, --brain-mask and --hd-bet, not several.")
    if already_stripped or mask is not None:
        return BrainSource(already_stripped, mask)
    program = shutil.which(str(hd_bet or "hd-bet"))
    if program is None:
        missing = f"{hd_bet} is no program that can be run" if hd_bet else "raw scans show the skull, and no way is set"
        raise SettingError(
            f"{missing}. Three ways: install hd-bet in an environment of its own and name it with --hd-bet PATH (or "
            "have it on PATH); give --brain-mask FILE on the grid of one of the scans; or say --already-stripped when "
            "everything outside of the brain is 0."
        )
    return BrainSource(hd_bet=Path(program))


def strip_with_hd_bet(case: str, program: Path, volume: Volume) -> NDArray[np.bool_]:
    """The brain of an image, by hd-bet in a process of its own.

    Version 1 writes a mask beside the stripped image, version 2 the image alone unless it is asked: there the brain is
    what is not exactly 0, with its holes filled, since a scan may ring below 0 within the brain. What comes with its
    axes in another order or direction is turned back to those of the scan.

    Raises:
        InputError: hd-bet fails, finds nothing, or answers on another grid.
    """
    from scipy.ndimage import binary_fill_holes

    with tempfile.TemporaryDirectory(prefix="mindgap-brain-") as folder:
        scan, out = Path(folder) / "scan.nii.gz", Path(folder) / "brain.nii.gz"
        write_volume(scan, volume.array, volume.affine)
        command = [str(program), "-i", str(scan), "-o", str(out), "-device", "cpu"]
        failure = _run(command)
        if not out.is_file():
            raise InputError(
                case=f"{case}: {volume.path.name}",
                expected=f"a brain from {program}",
                found=f"none ({failure})",
                mend="run hd-bet by hand on this scan, or give --brain-mask FILE",
            )
        mask = out.with_name("brain_mask.nii.gz")
        found = read_volume(mask if mask.is_file() else out, case=case)
    brain = on_grid_of(replace(found, array=(found.array != 0).astype(np.float32)), volume)
    if brain is None or not brain.array.any():
        raise InputError(
            case=f"{case}: {volume.path.name}",
            expected=f"a brain from {program} on the grid of the scan, {_geometry(volume)}",
            found="no voxel of it" if brain is not None else _geometry(found),
            mend="look at the scan (is it a head?) and run hd-bet by hand, or give --brain-mask FILE",
        )
    filled: NDArray[np.bool_] = binary_fill_holes(brain.array > 0)
    return filled


def _run(command: list[str]) -> str:
    """Run hd-bet to its end, or until :func:`stop_hd_bet`; how it ended, in words."""
    if _STOPPING.is_set():
        return "stopped"
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            _RUNNING.add(child)
            if _STOPPING.is_set():
                child.kill()
            try:
                out, errors = child.communicate(timeout=_TIME_LIMIT_S)
            except BaseException:
                child.kill()
                raise
            finally:
                _RUNNING.discard(child)
            return f"exit code {child.returncode}: {(errors or out).strip()[-300:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def stop_hd_bet() -> None:
    """End what :func:`strip_with_hd_bet` started in other threads of this process, and let it start no other.

    The threads then remove the files they gave it; when they have ended, :func:`allow_hd_bet`.
    """
    _STOPPING.set()
    for child in tuple(_RUNNING):
        child.kill()


def allow_hd_bet() -> None:
    """Let hd-bet be started again."""
    _STOPPING.clear()


def brain_of_stripped(array: NDArray[np.float32]) -> tuple[NDArray[np.bool_], int]:
    """What lies above 0, less the outermost layers that are far dimmer than those below.

    A scan that was resampled after it was stripped has such a rim, and a network takes it for tissue.

    Args:
        array: A scan that is 0 outside of the brain.

    Returns:
        The brain, and how many layers were left out.
    """
    from scipy.ndimage import binary_erosion

    inside: NDArray[np.bool_] = array > 0
    for layers in range(_MOST_LAYERS):
        core = binary_erosion(inside)
        below = core & ~binary_erosion(core)
        if not below.any() or np.median(array[inside & ~core]) >= _SOFT * np.median(array[below]):
            return inside, layers
        inside = core
    return inside, _MOST_LAYERS


def given_brain(case_id: str, images: Mapping[Sequence, Volume], path: Path) -> tuple[Volume, Sequence]:
    """The brain mask a user gave, and the scan it lies on; looked at before anything is registered.

    Args:
        case_id: Name for messages.
        images: The scans.
        path: The mask, on the grid of one of them.

    Raises:
        InputError: It is empty, or lies on none of the scans.
    """
    mask = read_volume(path, case=case_id)
    owner = next((s for s, volume in images.items() if on_grid_of(mask, volume) is not None), None)
    if owner is None:
        raise InputError(
            case=f"{case_id}: {path.name}",
            expected="a mask on the grid of one of " + ", ".join(str(s) for s in images),
            found=f"shape {mask.array.shape}, on none of them",
            mend="draw or resample the mask on one of these scans",
        )
    if not (mask.array > 0).any():
        raise InputError(
            case=f"{case_id}: {path.name}",
            expected="a brain, as voxels above 0",
            found="an empty mask",
            mend="draw it again, or take --hd-bet",
        )
    return as_mask(mask, mask.array > 0), owner


def as_mask(volume: Volume, inside: NDArray[np.bool_]) -> Volume:
    """A volume of 0 and 1 on the grid of another."""
    return replace(volume, array=inside.astype(np.float32))


def lies_on(mask: Volume, volume: Volume) -> bool:
    """Whether a mask lies on the grid of an image, with its axes."""
    same = mask.array.shape == volume.array.shape
    return same and bool(np.abs(mask.affine - volume.affine).max() < _GRID_TOLERANCE_MM)


def on_grid_of(mask: Volume, volume: Volume) -> Volume | None:
    """A mask with the axes of an image whose grid it shares, in whichever order and direction; None on another grid."""
    wanted, own = (nib.orientations.io_orientation(one.affine) for one in (volume, mask))
    turn = nib.orientations.ornt_transform(own, wanted)
    array = nib.orientations.apply_orientation(mask.array, turn)
    affine = mask.affine @ nib.orientations.inv_ornt_aff(turn, mask.array.shape)
    turned = Volume(np.ascontiguousarray(array, np.float32), affine, mask.path, None)
    return turned if lies_on(turned, volume) else None


def _geometry(volume: Volume) -> str:
    """A grid in words."""
    spacing = " x ".join(f"{mm:.3g}" for mm in volume.spacing_mm)
    origin = ", ".join(f"{mm:.1f}" for mm in volume.affine[:3, 3])
    return f"shape {volume.array.shape}, axes {orientation_of(volume.affine)}, {spacing} mm, origin ({origin})"
