"""Raw scans at the command line: each on a grid of its own, and the mask back on one of these."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main
from mindgap.data.nifti import read_volume, write_volume
from mindgap.data.registration import resample


def _turned(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    matrix[:3, 3] = shift_mm
    return matrix


@pytest.fixture(scope="module")
def moved(journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLAIR image whose head was turned and shifted, on an oblique, anisotropic grid with RAS axes."""
    folder = tmp_path_factory.mktemp("raw")
    case = next(journey.cohort.glob("*GG/*"))
    scan = read_volume(next(case.glob("*_flair.nii.gz")), case="scan")
    grid = _turned(6, (-125, -130, -95)) @ np.diag([3, 3, 4, 1])
    write_volume(folder / "p_flair.nii.gz", resample("scan", scan, _turned(12, (10, 8, 0)), (84, 84, 48), grid), grid)
    return folder


def _segment(journey, source: Path, out: Path, *words: str) -> list[str]:
    return ["segment", str(source), "--model", str(journey.flair), "-o", str(out), *words]


def test_a_mask_comes_back_to_the_grid_of_the_scan(journey, moved, tmp_path) -> None:
    out = tmp_path / "raw.nii.gz"
    assert main(_segment(journey, moved, out, "--raw", "--already-stripped")) == 0
    scan, mask = nib.load(moved / "p_flair.nii.gz"), nib.load(out)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine)
    raw = json.loads((tmp_path / "raw.manifest.json").read_text())["raw"]
    assert raw["reference"] == raw["native"] == "FLAIR"
    assert raw["atlas"]["similarity_after"] > raw["atlas"]["similarity_before"]
    assert raw["brain_overlap"]["FLAIR"] > 0.75


def test_without_a_way_to_the_brain_the_three_are_named(journey, moved, tmp_path, fails, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--raw"))
    assert all(way in line for way in ("--hd-bet", "--brain-mask", "--already-stripped"))


def test_flags_of_raw_scans_need_raw_and_one_patient(journey, moved, tmp_path, fails) -> None:
    assert "add --raw" in fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--n4"))
    assert "not a cohort" in fails(_segment(journey, journey.cohort, tmp_path / "a", "--raw", "--already-stripped"))


def test_a_program_that_finds_no_brain_is_named(journey, moved, tmp_path, fails) -> None:
    program = tmp_path / "hd-bet"
    program.write_text("#!/bin/sh\necho no weights >&2\nexit 3\n")
    program.chmod(0o755)
    line = fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--raw", "--hd-bet", str(program)))
    assert "exit code 3: no weights" in line
    assert not (tmp_path / "a.nii.gz").exists()
