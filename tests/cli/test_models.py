"""A mask without naming a model."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mindgap
from mindgap.cli import main
from mindgap.files import read_json
from mindgap.inference.shipped import DEFAULT, shipped
from mindgap.sequences import SUBSETS, format_subset

_WITHOUT_TORCH = """
import sys
from mindgap.cli import main

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} was asked for")

sys.meta_path.insert(0, NoTorch())
sys.exit(main(sys.argv[1:]))
"""


def _flair(journey) -> Path:
    return sorted(journey.cohort.rglob("*flair.nii.gz"))[0]


def test_segment_takes_the_box_and_says_so(journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "seg.nii.gz"
    assert main(["segment", "--flair", str(_flair(journey)), "-o", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "the network in the box" in said
    assert "expected Dice" in said
    assert nib.load(out).shape == nib.load(_flair(journey)).shape
    assert (np.asarray(nib.load(out).dataobj) > 0).any()
    assert read_json(tmp_path / "seg.manifest.json")["model"]["sha256"] == shipped()[DEFAULT].sha256


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_the_box_in_openvino_needs_no_torch(journey, tmp_path: Path) -> None:
    words = ["segment", "--flair", str(_flair(journey)), "--device", "cpu", "-o"]
    assert main([*words, str(tmp_path / "a.nii.gz")]) == 0  # where bf16 is native, this translates it for the next
    command = [sys.executable, "-c", _WITHOUT_TORCH, *words, str(tmp_path / "b.nii.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) for name in "ab")
    np.testing.assert_array_equal(first, second)


def test_a_cohort_takes_the_box(journey, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for folder in sorted(path.parent for path in journey.cohort.rglob("*flair.nii.gz"))[:2]:
        (few / folder.name).symlink_to(folder)
    assert main(["segment", str(few), "-o", str(tmp_path / "masks"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "masks").glob("*/*_seg.nii.gz"))) == 2


def test_from_python_without_a_model(journey) -> None:
    found = mindgap.segment(flair=_flair(journey), model=mindgap.load(device="cpu"))
    assert found.confidence is not None
    assert found.confidence.n == 28
    assert found.segmentation.shape == nib.load(_flair(journey)).shape


def test_advice_without_a_model(journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "patient"
    folder.mkdir()
    (folder / "patient_flair.nii.gz").symlink_to(_flair(journey))
    assert main(["advise", str(folder)]) == 0
    said = capsys.readouterr().out
    assert all(sequence in said for sequence in ("T1ce", "T2", "T1"))
    assert main(["advise", "--flair", str(_flair(journey))]) == 0
    assert capsys.readouterr().out == said


def test_advice_says_how_a_patient_is_named(
    tmp_path: Path, write_dicom: Callable[..., list[Path]], fails: Callable[[list[str]], str]
) -> None:
    write_dicom(tmp_path / "exam", np.ones((4, 4, 3)), np.eye(4))
    line = fails(["advise", str(tmp_path / "exam")])
    assert "expected a folder of NIfTI files, found DICOM" in line
    assert "--t1ce" in line
    assert "not both" in fails(["advise", str(tmp_path), "--t1", str(tmp_path / "t1.nii.gz")])
    assert "no sequence is given" in fails(["advise"])


def test_models_are_listed_and_described(capsys: pytest.CaptureFixture[str], fails: Callable[[list[str]], str]) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "box (default)" in listed
    assert shipped()[DEFAULT].sha256[:12] in listed
    assert main(["models", DEFAULT]) == 0
    said = capsys.readouterr().out
    first, header, *rows = said.splitlines()
    assert "Dice to expect" in first
    assert header.split()[:2] == ["sequences", "n"]
    assert [row.split()[0] for row in rows[:15]] == [format_subset(subset) for subset in SUBSETS]
    assert "trained on  28 cases of BraTS 2018" in said
    assert all(
        fact in said for fact in ("4 x fused_unet", "Apache-2.0", "research use only", shipped()[DEFAULT].sha256)
    )
    assert "# box" not in said, "the card is asked for"
    assert len(said.splitlines()) < 30
    assert main(["models", DEFAULT, "--card"]) == 0
    assert shipped()[DEFAULT].text.rstrip() in capsys.readouterr().out
    assert "--card says nothing" in fails(["models", "--card"])
    assert "there is no network 'none'" in fails(["models", "none"])


def test_a_name_that_is_no_network_is_refused(journey, fails: Callable[[list[str]], str]) -> None:
    line = fails(["segment", "--flair", str(_flair(journey)), "--model", "bx", "-o", "x.nii.gz"])
    assert "neither the folder" in line
    assert "box" in line
