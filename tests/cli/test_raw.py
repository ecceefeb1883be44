"""Raw scans at the command line: each on a grid of its own, and the mask back on one of these."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main
from mindgap.data.nifti import read_volume, write_volume
from mindgap.data.phantom import write_cohort
from mindgap.data.registration import resample
from mindgap.data.volume import Volume
from mindgap.evaluation.metrics import dice

POSE = (9, (8, -12, 3))
ELSEWHERE = {
    "T1": ((-6, (-9, 7, 4)), (2, 2, 2), (126, 126, 96)),
    "T1ce": ((4, (3, -8, -6)), (2, 2, 3), (126, 126, 64)),
    "T2": (POSE, (2, 2, 3), (126, 126, 64)),
    "FLAIR": ((-11, (6, 9, -5)), (3, 2, 2), (84, 126, 96)),
}
"""Per sequence of an examination in which nothing lies where it lay: how the head is turned, spacing and shape."""


def _turned(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    a = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    matrix[:3, 3] = shift_mm
    return matrix


@pytest.fixture(scope="module")
def moved(journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLAIR image whose head was turned and shifted, on an oblique, anisotropic grid."""
    folder = tmp_path_factory.mktemp("raw")
    case = next(journey.cohort.glob("*GG/*"))
    scan = read_volume(next(case.glob("*_flair.nii.gz")), case="scan")
    grid = _turned(-7, (10, 250, 0)) @ np.diag([-3, -3, 4, 1])
    array = _stripped(scan, _turned(*POSE), (84, 84, 48), grid)
    write_volume(folder / "p_flair.nii.gz", array.astype(np.float32), grid)
    return folder


def _stripped(scan: Volume, pose: np.ndarray, shape: tuple[int, int, int], grid: np.ndarray) -> np.ndarray:
    """A scan on another grid, 0 outside of the brain."""
    brain = replace(scan, array=(scan.array > 0).astype(np.float32))
    inside = resample("scan", brain, pose, shape, grid)
    return np.where(inside >= 0.5, resample("scan", scan, pose, shape, grid) / np.maximum(inside, 0.5), 0)


@pytest.fixture(scope="module")
def examination(journey, write_dicom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom as four DICOM series; T2 on an oblique grid of its own, the head turned and shifted."""
    case = next(journey.cohort.glob("*GG/*"))
    return _examine(case, tmp_path_factory.mktemp("dicom"), write_dicom, {"T2": (POSE, (3, 3, 4), (84, 84, 48))})


def _examine(case: Path, folder: Path, write_dicom, moved: dict[str, tuple]) -> Path:
    """The four images of a patient as DICOM series; some on oblique grids of their own, the head turned and shifted."""
    for number, kind in enumerate(("T1", "T1ce", "T2", "FLAIR"), start=2):
        scan = read_volume(next(case.glob(f"*_{kind.lower()}.nii.gz")), case=kind)
        array, grid = scan.array, scan.affine
        if kind in moved:
            pose, (i, j, k), shape = moved[kind]
            grid = _turned(-7, (10, 250, 0)) @ np.diag([-i, -j, k, 1])
            array = _stripped(scan, _turned(*pose), shape, grid)
        write_dicom(folder / kind, np.rint(array), np.diag([-1, -1, 1, 1]) @ grid, kind=kind, SeriesNumber=number)
    return folder


def test_a_series_on_a_grid_of_its_own_is_refused_and_taken_as_raw(journey, examination, tmp_path, fails) -> None:
    out, seg = tmp_path / "raw.nii.gz", tmp_path / "raw.dcm"
    words = ["segment", str(examination), "--model", str(journey.teacher), "-o", str(out), "--yes"]
    assert "--raw" in fails(words)
    assert not out.exists()
    raw = ["--raw", "--already-stripped", "--reference", "T1", "--dicom-seg", str(seg)]
    assert main([*words, *raw]) == 0
    assert nib.load(out).shape == (60, 60, 39)
    assert seg.exists()
    record = json.loads((tmp_path / "raw.manifest.json").read_text())["raw"]
    assert (record["reference"], record["native"]) == ("T1", "T1")
    error = _turned(*POSE) @ np.array(record["transforms"]["T2"]["matrix_ras_mm"])
    middle = np.array([-120, 120, 78, 1])
    assert np.linalg.norm((error @ middle - middle)[:3]) < 1.5  # voxels of 4 mm
    assert np.degrees(np.arccos((np.trace(error[:3, :3]) - 1) / 2)) < 1.5


def test_raw_dicom_finds_the_tumour_of_the_untouched_run(write_dicom, tmp_path) -> None:
    """The network in the box, at 2 mm; every scan on an oblique grid of its own, of a head turned and shifted anew."""
    case = write_cohort(tmp_path / "cohort", cases=1, seed=3, spacing_mm=2.0, workers=1)[0]
    _examine(case, tmp_path / "exam", write_dicom, ELSEWHERE)
    plain, raw = tmp_path / "plain.nii.gz", tmp_path / "raw.nii.gz"
    assert main(["segment", str(case), "-o", str(plain)]) == 0
    words = ["segment", str(tmp_path / "exam"), "--yes", "--raw", "--already-stripped", "--reference", "T1"]
    picture = tmp_path / "raw.png"
    assert main([*words, "-o", str(raw), "--picture", str(picture)]) == 0
    truth, found = (read_volume(path, case="p") for path in (plain, raw))
    assert dice(found.array > 0, _seen(truth, ELSEWHERE["T1"][0], found)) >= 0.95
    assert (truth.array > 0).sum() > 1000
    pixels = matplotlib.image.imread(picture)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.1
    record = json.loads((tmp_path / "raw.manifest.json").read_text())
    assert {"dcm2niix", "pydicom", "SimpleITK"} <= set(record["versions"])


def _seen(mask: Volume, pose: tuple, there: Volume) -> np.ndarray:
    """A tumour on the grid of a scan of the turned head."""
    tumour = replace(mask, array=(mask.array > 0).astype(np.float32))
    return resample("p", tumour, _turned(*pose), there.array.shape, there.affine) >= 0.5


def _segment(journey, source: Path, out: Path, *words: str) -> list[str]:
    return ["segment", str(source), "--model", str(journey.flair), "-o", str(out), *words]


def test_a_mask_comes_back_to_the_grid_of_the_scan(journey, moved, tmp_path) -> None:
    """By the network in the box: one of a few steps finds something else on every grid."""
    plain, out = tmp_path / "plain.nii.gz", tmp_path / "raw.nii.gz"
    (tmp_path / "p").mkdir()
    shutil.copy(next(next(journey.cohort.glob("*GG/*")).glob("*_flair.nii.gz")), tmp_path / "p" / "p_flair.nii.gz")
    assert main(["segment", str(tmp_path / "p"), "-o", str(plain)]) == 0
    assert main(["segment", str(moved), "-o", str(out), "--raw", "--already-stripped"]) == 0
    truth, found = (read_volume(path, case="p") for path in (plain, out))
    assert (truth.array > 0).sum() > 1000
    assert dice(found.array > 0, _seen(truth, POSE, found)) >= 0.9
    scan, mask = nib.load(moved / "p_flair.nii.gz"), nib.load(out)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine)
    raw = json.loads((tmp_path / "raw.manifest.json").read_text())["raw"]
    assert raw["reference"] == raw["native"] == "FLAIR"
    assert raw["transforms"]["atlas"]["similarity_after"] > raw["transforms"]["atlas"]["similarity_before"]
    assert raw["brain_overlap"]["atlas"] > 0.75


def test_without_a_way_to_the_brain_the_three_are_named(journey, moved, tmp_path, fails, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    line = fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--raw"))
    assert all(way in line for way in ("--hd-bet", "--brain-mask", "--already-stripped"))


def test_flags_of_raw_scans_need_raw(journey, moved, tmp_path, fails) -> None:
    assert "add --raw" in fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--n4"))


@pytest.fixture(scope="module")
def raw_cohort(moved, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The moved scan, and a patient whose scan is empty."""
    root = tmp_path_factory.mktemp("cohort")
    scan = next(moved.glob("*_flair.nii.gz"))
    for name in ("a", "empty"):
        (root / name).mkdir()
        shutil.copy(scan, root / name / f"{name}_flair.nii.gz")
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), root / "empty" / "empty_flair.nii.gz")
    return root


def test_a_cohort_of_raw_scans_is_what_its_patients_are_alone(journey, moved, raw_cohort, tmp_path, capsys, fails):
    alone, out = tmp_path / "alone.nii.gz", tmp_path / "masks"
    raw = ("--raw", "--already-stripped")
    assert main(_segment(journey, moved, alone, *raw)) == 0
    assert main(_segment(journey, raw_cohort, out, *raw)) == 1
    said = capsys.readouterr().out
    assert "1 segmented, 1 failed" in said
    assert "only zeros" in said
    mask = nib.load(out / "a" / "a_seg.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(alone).dataobj))
    assert json.loads((out / "a" / "a_seg.manifest.json").read_text())["raw"]["native"] == "FLAIR"
    assert (out / "overlays.png").stat().st_size > 10_000
    assert main(_segment(journey, raw_cohort, out, *raw, "--resume")) == 1
    assert "0 segmented, 1 done before, 1 failed" in capsys.readouterr().out
    other = _segment(journey, raw_cohort, out, *raw, "--n4", "--resume")
    assert "masks made otherwise: raw" in fails(other)
    assert "masks made otherwise: raw" in fails(_segment(journey, raw_cohort, out, "--resume"))


def test_one_brain_mask_is_refused_for_a_cohort(journey, moved, raw_cohort, tmp_path, fails) -> None:
    mask = next(moved.glob("*_flair.nii.gz"))
    assert "one patient" in fails(_segment(journey, raw_cohort, tmp_path / "masks", "--raw", "--brain-mask", str(mask)))
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize("brain", ["--already-stripped", "--brain-mask"])
def test_a_segmentation_is_no_raw_scan(journey, moved, tmp_path, fails, brain) -> None:
    scan = nib.load(next(moved.glob("*_flair.nii.gz")))
    labels = (np.asarray(scan.dataobj) > 0).astype(np.uint8)
    (tmp_path / "p").mkdir()
    nib.save(nib.Nifti1Image(labels * 2, scan.affine), tmp_path / "p" / "p_flair.nii.gz")
    nib.save(nib.Nifti1Image(labels, scan.affine), tmp_path / "mask.nii.gz")
    way = [brain] if brain == "--already-stripped" else [brain, str(tmp_path / "mask.nii.gz")]
    assert "as in a label map" in fails(_segment(journey, tmp_path / "p", tmp_path / "a.nii.gz", "--raw", *way))


def test_one_sequence_is_the_reference(journey, moved, tmp_path, fails) -> None:
    words = _segment(journey, moved, tmp_path / "a.nii.gz", "--raw", "--already-stripped", "--reference", "T1+T2")
    assert "--reference and --native take one" in fails(words)


def test_a_program_that_finds_no_brain_is_named(journey, moved, tmp_path, fails) -> None:
    program = tmp_path / "hd-bet"
    program.write_text("#!/bin/sh\necho no weights >&2\nexit 3\n")
    program.chmod(0o755)
    line = fails(_segment(journey, moved, tmp_path / "a.nii.gz", "--raw", "--hd-bet", str(program)))
    assert "exit code 3: no weights" in line
    assert not (tmp_path / "a.nii.gz").exists()
