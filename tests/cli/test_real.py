"""The main job on real cases; run where --brats names the folder."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main

CASE = "Brats18_CBICA_ABM_1"
RENAMED = {"flair": "t2f", "t1ce": "t1c", "t1": "t1n", "t2": "t2w"}


def _folder(brats: Path, tmp_path: Path, names: dict[str, str]) -> Path:
    """A case folder with only some of the files, under other names."""
    source = next(brats.glob(f"*GG/{CASE}"))
    folder = tmp_path / "BraTS-GLI-00001-000"
    folder.mkdir()
    for ending, name in names.items():
        shutil.copy(source / f"{CASE}_{ending}.nii.gz", folder / name)
    return folder


def _check(out: Path, image: Path) -> None:
    mask, source = nib.load(out), nib.load(image)
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert mask.shape == source.shape
    assert nib.aff2axcodes(mask.affine) == nib.aff2axcodes(source.affine)
    assert int(mask.header["sform_code"]) == int(source.header["sform_code"])
    assert int(mask.header["qform_code"]) == int(source.header["qform_code"])
    tumour, brain = (np.argwhere(np.asarray(image.dataobj) > 0) for image in (mask, source))
    assert len(tumour)
    # Of a network of a few steps the place is all that can be asked: nothing leaves the box of the file's brain.
    assert (tumour.min(0) >= brain.min(0)).all()
    assert (tumour.max(0) <= brain.max(0)).all()


@pytest.mark.real
@pytest.mark.parametrize("sequence", ["flair", "t1ce"])
def test_one_sequence_is_enough(sequence: str, brats: Path, journey, tmp_path: Path) -> None:
    name = f"{CASE}_{sequence}.nii.gz"
    folder = _folder(brats, tmp_path, {sequence: name})
    out = tmp_path / "seg.nii.gz"
    assert main(["segment", str(folder), "--model", str(getattr(journey, sequence)), "-o", str(out)]) == 0
    _check(out, folder / name)


@pytest.mark.real
def test_files_named_as_in_brats_2023(brats: Path, journey, tmp_path: Path) -> None:
    names = {ending: f"BraTS-GLI-00001-000-{new}.nii.gz" for ending, new in RENAMED.items()}
    folder = _folder(brats, tmp_path, names)
    out = tmp_path / "seg.nii.gz"
    words = ["segment", str(folder), "--model", str(journey.t1ce), "-o", str(out), "--labels", "brats2023"]
    assert main(words) == 0
    _check(out, folder / names["t1ce"])
    assert 4 not in np.unique(nib.load(out).dataobj)


@pytest.mark.real
def test_the_whole_release_is_found_with_the_published_split(
    brats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "brats"
    for name in ("Brats18_CBICA_AOZ_1", "Brats18_CBICA_AQP_1", CASE):
        source = next(brats.glob(f"*GG/{name}"))
        shutil.copytree(source, few / source.parent.name / name)
    capsys.readouterr()
    words = ["prepare", str(few), "-o", str(tmp_path / "store"), "--spacing-mm", "4", "--split", "protokd"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "3 cases" in text
    assert "split protokd" in text
