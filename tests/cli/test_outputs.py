"""mindgap segment --probabilities and --layout bids, as typed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main


@pytest.fixture
def flair(journey) -> Path:
    return next(journey.cohort.glob("*GG/*/*_flair.nii.gz"))


def test_probabilities_lie_beside_the_mask_and_agree_with_it(journey, flair: Path, tmp_path: Path) -> None:
    out = tmp_path / "seg.nii.gz"
    words = ["segment", "--flair", str(flair), "--model", str(journey.flair), "-o", str(out), "--coverage", "whole"]
    assert main(words) == 0
    assert not list(tmp_path.glob("*probabilities*"))
    assert main([*words, "--probabilities"]) == 0
    image, mask = nib.load(tmp_path / "seg_probabilities.nii.gz"), nib.load(out)
    probabilities = np.asarray(image.dataobj)
    assert probabilities.shape == (*mask.shape, 3)
    np.testing.assert_array_equal(image.affine, mask.affine)
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1 + 1e-6
    whole, core, enhancing = np.moveaxis(probabilities, -1, 0)
    assert (enhancing <= core + 1e-5).all()
    assert (core <= whole + 1e-5).all()
    tumour = np.asarray(mask.dataobj) > 0
    assert whole[tumour].min() > whole[~tumour].mean()
    assert json.loads((tmp_path / "seg_probabilities.json").read_text())["Channels"] == {
        "0": "WT",
        "1": "TC",
        "2": "ET",
    }


def test_a_new_mask_leaves_no_probabilities_of_another_patient_beside_it(journey, tmp_path: Path) -> None:
    one, other = sorted(journey.cohort.glob("*GG/*"))[:2]
    words = ["--model", str(journey.flair), "-o", str(tmp_path / "seg.nii.gz"), "--coverage", "whole"]
    assert main(["segment", str(one), *words, "--probabilities"]) == 0
    notes = tmp_path / "seg_probabilities.txt"
    notes.write_text("mine")
    assert main(["segment", str(other), *words]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "seg.json",
        "seg.manifest.json",
        "seg.nii.gz",
        notes.name,
    ]
    shutil.copy(next(one.glob("*_flair.nii.gz")), tmp_path / "seg_probabilities.nii.gz")
    assert main(["segment", str(one), *words]) == 0
    assert (tmp_path / "seg_probabilities.nii.gz").is_file(), "a file of somebody else stays"


def test_a_picture_replaces_one_of_ours_and_no_other_file(
    journey, flair: Path, tmp_path: Path, fails: Callable[[list[str]], str], capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "holiday.png", tmp_path / "seg.nii.gz"
    words = ["segment", "--flair", str(flair), "--model", str(journey.flair), "-o", str(out), "--coverage", "whole"]
    words += ["--picture", str(picture), "--yes"]
    picture.write_bytes(b"sand and sea")
    assert "holiday.png exists and was not drawn by --picture" in fails(words)
    assert picture.read_bytes() == b"sand and sea"
    assert not out.exists()
    picture.unlink()
    capsys.readouterr()
    assert [main(words), main(words)] == [0, 0]
    assert picture.stat().st_size > 1000
    assert "--yes does nothing here" in capsys.readouterr().out


def test_probabilities_are_not_written_over_another_file(
    journey, flair: Path, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    other = shutil.copy(flair, tmp_path / "seg_probabilities.nii.gz")
    content = Path(other).read_bytes()
    out = str(tmp_path / "seg.nii.gz")
    words = ["segment", "--flair", str(flair), "--model", str(journey.flair), "-o", out, "--probabilities"]
    assert "was not written by --probabilities" in fails(words)
    assert Path(other).read_bytes() == content


def test_one_subject_becomes_a_derivative_with_the_mask_it_has_alone(
    journey, flair: Path, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    anat = tmp_path / "raw" / "sub-7" / "anat"
    anat.mkdir(parents=True)
    shutil.copy(flair, anat / "sub-7_FLAIR.nii.gz")
    shutil.copy(flair, anat / "sub-7_run-1_T2w.nii.gz")
    words = ["segment", str(tmp_path / "raw" / "sub-7"), "--model", str(journey.flair), "--coverage", "whole", "-o"]
    assert main([*words, str(tmp_path / "alone.nii.gz")]) == 0
    assert main([*words, str(tmp_path / "out"), "--layout", "bids"]) == 0
    mask = tmp_path / "out" / "sub-7" / "anat" / "sub-7_space-FLAIR_desc-tumour_dseg.nii.gz"
    np.testing.assert_array_equal(
        np.asarray(nib.load(mask).dataobj), np.asarray(nib.load(tmp_path / "alone.nii.gz").dataobj)
    )
    shutil.copy(flair, anat / "sub-7_run-2_FLAIR.nii.gz")
    assert "sub-7_FLAIR.nii.gz, sub-7_run-2_FLAIR.nii.gz" in fails([*words, str(tmp_path / "again.nii.gz")])
    named = ["segment", "--flair", str(flair), "--model", str(journey.flair), "--layout", "bids"]
    assert "--layout bids takes a folder" in fails([*named, "-o", str(tmp_path / "x")])
