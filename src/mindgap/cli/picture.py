"""A mask to be looked at: three planes through the tumour, as mindgap segment draws them for one patient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mindgap.cli.terminal import say

if TYPE_CHECKING:
    from mindgap.data.case import CaseFiles
    from mindgap.data.volume import Volume
    from mindgap.inference.predictor import Segmentation
    from mindgap.report.scene import Picture
    from mindgap.sequences import Sequence


_MAKER = "mindgap segment"
_MARK = b"tEXtSoftware\0" + _MAKER.encode()
_HEAD = 1024
"""Bytes of a PNG file in which its texts stand."""


def check_picture_path(path: Path | None) -> None:
    """Refuse, before any work, a name that is none of a PNG file, a place that cannot be, or a file that is not ours.

    Raises:
        SettingError: It is one of these.
    """
    from mindgap.errors import SettingError

    if path is not None and path.suffix.lower() != ".png":
        raise SettingError(f"{path} has no name of a picture: let it end in .png.")
    if path is not None and path.is_dir():
        raise SettingError(f"{path} is a folder: name a file.")
    if path is not None and path.exists() and not _is_own(path):
        raise SettingError(f"{path} exists and was not drawn by --picture: move it, or choose another place.")


def write_picture(path: Path, found: Segmentation, files: CaseFiles, model: str) -> None:
    """Draw a mask on the images the network saw that lie on its grid, and say so.

    Args:
        path: The picture; one of ours that stands there is replaced.
        found: The mask.
        files: The case; of raw scans only the one whose grid the mask has can be drawn below it.
        model: Name of the network.
    """
    from mindgap.report.figures import draw_overlay, save_png

    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(draw_overlay(picture_of(found, files, model)), path, software=_MAKER)
    say(f"wrote {path}")


def picture_of(found: Segmentation, files: CaseFiles, model: str) -> Picture:
    """What is drawn: the mask, its volumes, and how far it can be trusted where that is known."""
    from mindgap.data.brain import on_grid_of
    from mindgap.regions import Region
    from mindgap.report.scene import Picture

    volumes = {str(sequence): _read(files, sequence) for sequence in found.subset}
    turned = {name: on_grid_of(volume, found.like) for name, volume in volumes.items()}
    images = {name: volume.array for name, volume in turned.items() if volume is not None}
    sizes = " · ".join(f"{region} {ml:.1f}" for region, ml in found.volumes_ml.items())
    caption = f"predicted {sizes} mL" if found.target.any() else "no tumour found"
    estimate = found.confidence
    warning = "" if estimate is None else "; ".join(estimate.review)
    if estimate is not None and math.isfinite(estimate.dice[Region.WT]):
        caption += f"  ·  expected Dice of WT {estimate.dice[Region.WT]:.2f}"
    return Picture(
        found.case_id, caption, model, tuple(volumes), images, None, found.target, found.like.affine, warning
    )


def _is_own(path: Path) -> bool:
    with path.open("rb") as handle:
        return _MARK in handle.read(_HEAD)


def _read(files: CaseFiles, sequence: Sequence) -> Volume:
    from mindgap.data.nifti import read_volume

    source = files.images[sequence]
    return read_volume(source.path, case=files.case_id, channel=source.channel)
