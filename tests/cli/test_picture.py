"""The picture of one mask: what is written above its planes."""

import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from mindgap.cli.picture import picture_of, write_picture
from mindgap.data.case import CaseFiles, Source
from mindgap.data.nifti import read_volume
from mindgap.data.prepared import Placement
from mindgap.inference.estimate import Estimate
from mindgap.inference.predictor import Segmentation
from mindgap.regions import REGIONS, Region
from mindgap.sequences import Sequence

SHAPE = (16, 16, 12)


def _found(folder: Path) -> tuple[Segmentation, CaseFiles]:
    head = np.zeros(SHAPE, np.float32)
    head[2:-2, 2:-2, 2:-2] = 50
    nib.save(nib.Nifti1Image(head, np.diag([2.0, 2, 2, 1])), folder / "t1.nii.gz")
    files = CaseFiles("p", {Sequence.T1: Source(folder / "t1.nii.gz")})
    target = np.zeros(SHAPE, np.uint8)
    target[4:8, 4:8, 4:8] = 3
    placement = Placement(SHAPE, (0, 1, 2), (False, False, False), SHAPE, tuple((0, length) for length in SHAPE))
    maps = np.zeros((3, *SHAPE), np.float32)
    like, volumes = read_volume(folder / "t1.nii.gz", case="p"), {Region.WT: 0.5, Region.TC: 0.0, Region.ET: 0.0}
    return Segmentation("p", (Sequence.T1,), target, like, volumes, maps, placement), files


def _estimate(*review: str, dice: float) -> Estimate:
    nothing = dict.fromkeys(REGIONS)
    return Estimate("T1", 12, 1.0, dict.fromkeys(REGIONS, dice), nothing, 0.9, None, review, ())


def test_the_estimate_stands_on_the_picture_where_there_is_one(tmp_path: Path) -> None:
    found, files = _found(tmp_path)
    plain = picture_of(found, files, "box")
    assert (plain.caption, plain.warning) == ("predicted WT 0.5 · TC 0.0 · ET 0.0 mL", "")
    judged = picture_of(replace(found, confidence=_estimate("one", "two", dice=0.712)), files, "box")
    assert judged.caption.endswith("expected Dice of WT 0.71")
    assert judged.warning == "one; two"
    unknown = picture_of(replace(found, confidence=_estimate(dice=math.nan)), files, "box")
    assert "Dice" not in unknown.caption
    write_picture(tmp_path / "new" / "seg.png", found, files, "box")
    assert (tmp_path / "new" / "seg.png").read_bytes().startswith(b"\x89PNG")
