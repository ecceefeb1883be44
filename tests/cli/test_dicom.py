"""A folder of DICOM series at the command line: shown, confirmed, segmented, and the mask as DICOM SEG."""

import gzip
import hashlib
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main
from mindgap.data.dicom import read_series
from mindgap.data.dicom_convert import convert_series
from mindgap.data.dicom_seg import SEGMENTS, to_frames
from mindgap.data.dicom_stack import stack_of

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

NUMBERS = {"T1": 2, "T1ce": 9, "T2": 4, "FLAIR": 6}


def _grid() -> np.ndarray:
    """An oblique grid of 4 mm (LPS+), turned by 17 and 11 degrees."""
    a, b = np.deg2rad([17, 11])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    grid = np.eye(4)
    grid[:3, :3] = 4 * about_x @ about_z
    grid[:3, 3] = (-80.5, -91.25, -60)
    return grid


@pytest.fixture(scope="module")
def made(journey, write_dicom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One phantom as four DICOM series on an oblique grid."""
    folder = tmp_path_factory.mktemp("dicom")
    case = next(journey.cohort.glob("*GG/*"))
    for kind, number in NUMBERS.items():
        voxels = np.asarray(nib.load(next(case.glob(f"*_{kind.lower()}.nii.gz"))).dataobj)
        write_dicom(folder / f"S{number}", voxels, _grid(), kind=kind, SeriesNumber=number)
    return folder


@pytest.fixture
def examination(made: Path, tmp_path: Path) -> Path:
    """The same, to be changed by a test."""
    return shutil.copytree(made, tmp_path / "exam")


def _segment(journey, source: object, out: Path, *words: object, model: str = "flair") -> list[str]:
    return ["segment", str(source), "--model", str(getattr(journey, model)), "-o", str(out), *map(str, words)]


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("model", ["teacher", "flair"])
def test_dicom_gives_the_mask_of_the_converted_files_and_takes_it_home(model, journey, examination, tmp_path) -> None:
    out, seg, again = tmp_path / "a.nii.gz", tmp_path / "a.dcm", tmp_path / "b.nii.gz"
    assert main(_segment(journey, examination, out, "--yes", "--dicom-seg", seg, model=model)) == 0
    stacks, words = {}, []
    for series in read_series(examination):
        kind = next(kind for kind, number in NUMBERS.items() if number == series.number)
        stacks[kind] = convert_series(series, tmp_path / f"{kind}.nii.gz")
        words += [f"--{kind.lower()}", str(tmp_path / f"{kind}.nii.gz")]
    assert main(["segment", *words, "--model", str(getattr(journey, model)), "-o", str(again)]) == 0
    mask = _voxels(out)
    assert mask.any()
    np.testing.assert_array_equal(mask, _voxels(again))
    np.testing.assert_array_equal(nib.load(out).affine, nib.load(again).affine)
    target = np.select([mask == 4, mask == 1, mask == 2], [1, 2, 3]).astype(np.uint8)  # ET, NCR, ED
    first = stacks["T1" if model == "teacher" else "FLAIR"]
    frames = to_frames(target, nib.load(out).affine, first)
    read = highdicom.seg.segread(seg).get_volume(combine_segments=True)
    found = np.zeros_like(frames)
    for place in np.ndindex(read.shape):
        if read.array[place]:
            column, row, slice_ = np.rint(np.linalg.inv(_grid()) @ read.affine @ (*place, 1))[:3].astype(int)
            found[slice_, row, column] = SEGMENTS[read.array[place] - 1][1]
    np.testing.assert_array_equal(found, frames)


def test_the_table_says_what_each_series_is_and_why(journey, examination, write_dicom, tmp_path, capsys) -> None:
    write_dicom(examination / "S1", np.ones((6, 6, 3)), _grid(), SeriesNumber=1, SeriesDescription="localizer [x]")
    assert main(_segment(journey, examination, tmp_path / "m.nii.gz", "--yes")) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "9 AX T1 SE" in text
    assert "T1ce called T1, short TE and TR (TE 9, TR 500 ms); agent Gadobutrol" in text
    assert "localizer [x] 3 - a localizer" in text
    assert "for this model: FLAIR = series 6 (AX FLAIR)" in text
    assert "skull-stripped" in text


def test_no_name_of_the_patient_gets_into_mask_table_or_picture(journey, examination, tmp_path, capsys) -> None:
    out = tmp_path / "m.nii.gz"
    assert main(_segment(journey, examination, out, "--yes")) == 0
    assert "Phantom" not in capsys.readouterr().out
    assert b"Phantom" not in gzip.decompress(out.read_bytes())
    assert not list(Path(tmp_path).glob("*.part*"))


def test_an_archive_gives_the_same_mask_and_a_mask_beside_the_series_does_not_hide_them(
    journey, examination, tmp_path
) -> None:
    archive, out = tmp_path / "exam.zip", tmp_path / "a.nii.gz"
    with zipfile.ZipFile(archive, "w") as made:
        for path in sorted(examination.rglob("IM*")):
            made.write(path, path.relative_to(examination))
    assert main(_segment(journey, archive, out, "--yes")) == 0
    taken = json.loads((tmp_path / "a.manifest.json").read_text())["inputs"]["FLAIR"]
    assert taken["file"] == str(archive), "the converted file is gone"
    assert (taken["series"]["number"], taken["series"]["images"] > 1) == (NUMBERS["FLAIR"], True)
    assert len(taken["other_series"]) == 3
    images = [path.read_bytes() for path in sorted((examination / "S6").iterdir())]
    assert taken["sha256"] == hashlib.sha256(b"".join(images)).hexdigest()
    for _ in range(2):
        assert main(_segment(journey, examination, examination / "seg.nii.gz", "--yes")) == 0
    np.testing.assert_array_equal(_voxels(out), _voxels(examination / "seg.nii.gz"))


def test_series_of_two_frames_of_reference_are_said_and_kept_in_the_manifest(
    journey, examination, tmp_path, capsys
) -> None:
    for path in (examination / "S6").iterdir():
        image = pydicom.dcmread(path)
        image.FrameOfReferenceUID = "1.2.3"
        image.save_as(path)
    assert main(_segment(journey, examination, tmp_path / "m.nii.gz", "--yes", model="teacher")) == 0
    said = "series 2 (AX T1 SE) and series 6 (AX FLAIR) have frames of reference of their own"
    assert f"beware: {said}" in capsys.readouterr().out
    (line,) = json.loads((tmp_path / "m.manifest.json").read_text())["warnings"]
    assert line.startswith(said)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_confirms_and_without_one_yes_is_needed(journey, examination, tmp_path, fails, monkeypatch) -> None:
    words = _segment(journey, examination, tmp_path / "m.nii.gz")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert "--yes" in fails(words)
    for answer in ("n\n", "\n", ""):
        monkeypatch.setattr(sys, "stdin", _Terminal(answer))
        assert "not confirmed" in fails(words)
    assert not (tmp_path / "m.nii.gz").exists()
    monkeypatch.setattr(sys, "stdin", _Terminal("y\n"))
    assert main(words) == 0


def test_two_series_that_look_alike_have_to_be_decided(journey, examination, tmp_path, fails, capsys) -> None:
    for path in (examination / "S4").iterdir():
        image = pydicom.dcmread(path)
        image.SeriesDescription, image.ScanningSequence = "COR FLAIR", ["SE", "IR"]
        image.EchoTime, image.RepetitionTime, image.InversionTime = 110, 9000, 2400
        image.save_as(path)
    words = _segment(journey, examination, tmp_path / "m.nii.gz", "--yes")
    both = "series 4 (COR FLAIR) and series 6 (AX FLAIR) both look like FLAIR: choose with --series-flair"
    assert both in fails(words)
    assert "expected series of FLAIR" in fails([*words, "--series-flair", "none"])
    uid = next(one.uid for one in read_series(examination) if one.number == 4)
    for word, number in (("6", 6), (uid, 4)):
        assert main([*words, "--series-flair", word]) == 0
        assert f"FLAIR = series {number}" in capsys.readouterr().out
    words = _segment(journey, examination, tmp_path / "m.nii.gz", "--yes", model="t1ce")
    assert main(words) == 0  # what this model does not use need not be decided


def test_an_unclear_series_is_asked_about_also_where_any_sequences_do(
    journey, examination, tmp_path, fails, capsys
) -> None:
    for path in (examination / "S9").iterdir():
        image = pydicom.dcmread(path)
        image.SeriesDescription, image.ContrastBolusAgent = "AX T1-C", ""
        image.save_as(path)
    words = ["segment", str(examination), "-o", str(tmp_path / "m.nii.gz"), "--yes"]  # the network in the box
    line = fails(words)
    assert "series 9 (AX T1-C) may be T1ce, and its headers do not tell: say --series-t1ce 9, or that" in line
    assert "(--series-t1ce none)" in line
    assert "for this model" not in capsys.readouterr().out
    flair = _segment(journey, examination, tmp_path / "f.nii.gz", "--yes")  # what uses FLAIR alone does not ask
    assert main(flair) == 0
    assert main([*words, "--series-t1ce", "9"]) == 0
    assert "T1ce = series 9 (AX T1-C)" in capsys.readouterr().out
    for number, path in enumerate(sorted((examination / "S4").iterdir())):
        image = pydicom.dcmread(path)
        image.EchoTime = (20, 100)[number % 2]
        image.save_as(path)
    line = fails([*words, "--series-t1ce", "9"])
    assert "series 4 (AX T2 TSE) may be T2" in line


def test_who_names_every_series_is_not_asked_to_confirm(journey, examination, tmp_path, fails) -> None:
    words = _segment(journey, examination, tmp_path / "m.nii.gz")
    assert "--yes" in fails([*words, "--series-t2", "4"])
    assert main([*words, "--series-flair", "6"]) == 0


def test_what_is_missing_for_the_model_or_has_a_gap_is_refused(journey, examination, tmp_path, fails) -> None:
    files = {series.number: stack_of(series).files for series in read_series(examination)}
    files[4][5].unlink()  # of T2, which this model does not open
    words = _segment(journey, examination, tmp_path / "m.nii.gz", "--yes")
    assert main(words) == 0
    files[6][5].unlink()
    line = fails(words)
    assert "series 6 (AX FLAIR): expected slices 4 mm apart, found about 1 missing" in line
    assert "To mend: export the whole series again" in line
    shutil.rmtree(examination / "S9")
    line = fails(_segment(journey, examination, tmp_path / "m.nii.gz", "--yes", model="t1ce"))
    assert "expected series of T1ce" in line
    assert "--series-t1ce NUMBER" in line


def test_flags_of_dicom_need_dicom_and_other_files_are_not_replaced(journey, examination, tmp_path, fails) -> None:
    case = next(journey.cohort.glob("*GG/*"))
    line = fails(_segment(journey, case, tmp_path / "m.nii.gz", "--series-t1", "3", "--dicom-seg", tmp_path / "s.dcm"))
    assert "--series-t1, --dicom-seg needs DICOM input" in line
    taken = next((examination / "S2").iterdir())
    before = taken.read_bytes()
    line = fails(_segment(journey, examination, tmp_path / "m.nii.gz", "--yes", "--dicom-seg", taken))
    assert "no DICOM SEG of mindgap's" in line
    assert taken.read_bytes() == before


@pytest.mark.parametrize("package", ["pydicom", "dcm2niix", "highdicom"])
def test_without_the_packages_the_remedy_is_named(package, journey, examination, tmp_path, fails, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = _segment(journey, examination, tmp_path / "m.nii.gz", "--yes", "--dicom-seg", tmp_path / "s.dcm")
    assert "pip install 'mindgap[dicom]'" in fails(words)
