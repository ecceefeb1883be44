import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main

SHAPE = (20, 24, 18)
AFFINE = np.diag([-4.0, -4.0, 4.0, 1.0])


def _brain(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    inside = tuple(slice(3, -3) for _ in range(3))
    array[inside] = np.random.default_rng(seed).uniform(10, 200, array[inside].shape)
    return array


def _write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def _nan(folder: Path) -> None:
    array = _brain()
    array[8, 8, 8] = np.nan
    _write(folder / "p_flair.nii.gz", array)


def _zero(folder: Path) -> None:
    _write(folder / "p_flair.nii.gz", np.zeros(SHAPE, np.float32))


def _four_axes(folder: Path) -> None:
    _write(folder / "p_flair.nii.gz", _brain(shape=(*SHAPE, 3)))


def _two_axes(folder: Path) -> None:
    _write(folder / "p_flair.nii.gz", _brain()[:, :, 9])


def _truncated(folder: Path) -> None:
    path = _write(folder / "p_flair.nii.gz", _brain())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shapes(folder: Path) -> None:
    _write(folder / "p_t1.nii.gz", _brain(1))
    _write(folder / "p_t2.nii.gz", _brain(1))
    _write(folder / "p_t1ce.nii.gz", _brain(1))
    _write(folder / "p_flair.nii.gz", _brain()[:-1])


def _affines(folder: Path) -> None:
    _shapes(folder)
    moved = AFFINE.copy()
    moved[0, 3] = 5.0
    _write(folder / "p_flair.nii.gz", _brain(), moved)


def _inf(folder: Path) -> None:
    array = _brain()
    array[8, 8, 8] = np.inf
    _write(folder / "p_flair.nii.gz", array)


def _one_slice(folder: Path) -> None:
    _write(folder / "p_flair.nii.gz", _brain()[:, :, 9:10])


def _colour(folder: Path) -> None:
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    _write(folder / "p_flair.nii.gz", np.repeat(_brain()[..., None], 3, -1).astype(np.uint8).view(colour)[..., 0])


def _no_spacing(folder: Path) -> None:
    image = nib.Nifti1Image(_brain(), None)
    path = folder / "p_flair.nii"
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[80:92] = bytes(12)  # pixdim[1..3]
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)


def _flat_affine(folder: Path) -> None:
    path = _write(folder / "p_flair.nii", _brain())
    content = bytearray(path.read_bytes())
    content[296:312] = bytes(16)  # second row of the sform
    path.write_bytes(content)


def _segmentation(folder: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[5:15, 5:15, 5:15] = 2
    label[7:12, 7:12, 7:12] = 4
    _write(folder / "p_flair.nii.gz", label)


def _turned(folder: Path) -> None:
    _shapes(folder)
    _write(folder / "p_flair.nii.gz", _brain()[::-1], AFFINE @ _mirror(SHAPE[0]))


def _mirror(length: int) -> np.ndarray:
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = length - 1
    return mirror


def _not_nifti(folder: Path) -> None:
    (folder / "p_flair.nii.gz").write_bytes(b"<html>not found</html>" * 40)


def _nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")


def _short_header(folder: Path) -> None:
    content = bytearray(gzip.decompress(_write(folder / "p_flair.nii.gz", _brain()).read_bytes())[:200])
    (folder / "p_flair.nii.gz").write_bytes(gzip.compress(content))


def _endless(folder: Path) -> None:
    path = _write(folder / "p_flair.nii", _brain())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.write_bytes(content)


BAD_IMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "NaN": (_nan, "flair", "NaN"),
    "infinity": (_inf, "flair", "infinite"),
    "one slice": (_one_slice, "flair", "more than one slice"),
    "colour image": (_colour, "flair", "colour"),
    "spacing of zero": (_no_spacing, "flair", "positive size"),
    "flat voxels": (_flat_affine, "flair", "positive size"),
    "segmentation as image": (_segmentation, "flair", "label map"),
    "orientations that disagree": (_turned, "teacher", "affine"),
    "a header of 30000 voxels a side": (_endless, "flair", "are due by its header"),
    "half a header": (_short_header, "flair", "whole NIfTI"),
    "no NIfTI inside": (_not_nifti, "flair", "whole NIfTI"),
    "all-zero volume": (_zero, "flair", "zero"),
    "4-D where 3-D is due": (_four_axes, "flair", "3-D"),
    "2-D image": (_two_axes, "flair", "3-D"),
    "truncated gzip": (_truncated, "flair", "truncated"),
    "shapes that disagree": (_shapes, "teacher", "shape"),
    "affines that disagree": (_affines, "teacher", "affine"),
    "empty set of sequences": (_nothing, "flair", "sequence"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_gives_one_clear_line_and_exit_code_2(
    name: str, journey, tmp_path: Path, fails: Callable[[list[str]], str], caplog: pytest.LogCaptureFixture
) -> None:
    write, model, word = BAD_IMAGES[name]
    folder = tmp_path / "p"
    folder.mkdir()
    write(folder)
    out = tmp_path / "seg.nii.gz"
    line = fails(["segment", str(folder), "--model", str(getattr(journey, model)), "-o", str(out)])
    assert word.lower() in line.lower()
    assert "expected" in line
    assert "found" in line
    assert "To mend" in line
    assert line.startswith("mindgap segment: p: "), "whose it is"
    assert len(line.strip().splitlines()) == 1
    assert not [record for record in caplog.records if record.name.startswith("nibabel")], "nibabel speaks for itself"
    assert not out.exists()
    assert not list(tmp_path.glob("*.part*"))


def _mixed_patients(write_dicom: Callable[..., list[Path]], folder: Path) -> None:
    write_dicom(folder / "a", _voxels(), np.diag([4.0, 4.0, 4.0, 1.0]), kind="FLAIR")
    write_dicom(folder / "b", _voxels(), np.diag([4.0, 4.0, 4.0, 1.0]), kind="T1", PatientID="P2")


def _computed_tomography(write_dicom: Callable[..., list[Path]], folder: Path) -> None:
    write_dicom(folder / "a", _voxels(), np.diag([4.0, 4.0, 4.0, 1.0]), kind="FLAIR", Modality="CT")


def _unreadable_dicom(write_dicom: Callable[..., list[Path]], folder: Path) -> None:
    path = write_dicom(folder / "a", _voxels(), np.diag([4.0, 4.0, 4.0, 1.0]), kind="FLAIR")[2]
    path.write_bytes(path.read_bytes()[:150])


def _voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, (8, 8, 5))


BAD_DICOM = {
    "mixed patients": (_mixed_patients, "expected one patient, found 2"),
    "CT": (_computed_tomography, "found modality CT"),
    "unreadable": (_unreadable_dicom, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_DICOM)
def test_bad_dicom_gives_one_clear_line_and_exit_code_2(
    name: str, journey, write_dicom, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    pytest.importorskip("pydicom")
    write, words = BAD_DICOM[name]
    write(write_dicom, tmp_path / "exam ü")
    out = tmp_path / "seg.nii.gz"
    line = fails(["segment", str(tmp_path / "exam ü"), "--model", str(journey.flair), "-o", str(out), "--yes"])
    assert words in line
    assert "To mend" in line
    assert len(line.strip().splitlines()) == 1
    assert not out.exists()


# One process that imports everything and forks three lives: killed while the mask is written, killed between mask and
# manifest, and with a disk on which no mask fits. Prints how each ended.
LIVES = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
import mindgap.inference.record as record
from mindgap.cli import main
from mindgap.data import nifti

def die_within_the_mask():
    whole = nifti.nib.save
    def save(image, path):
        whole(image, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    nifti.nib.save = save

def die_before_the_manifest():
    record.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL)

def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

ends = []
case, model, out = sys.argv[1:]
for fault in (die_within_the_mask, die_before_the_manifest, limit_files):
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        fault()
        folder = Path(out, fault.__name__)
        folder.mkdir()
        os._exit(main(["segment", case, "--model", model, "-o", str(folder / "seg.nii.gz"), "--coverage", "whole"]))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_a_kill_or_a_full_disk_leaves_nothing_that_looks_finished(journey, tmp_path: Path) -> None:
    case = next(journey.cohort.glob("*GG/*"))
    words = [sys.executable, "-c", LIVES, str(case), str(journey.flair), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(done.stdout.splitlines()[-1]) == [-signal.SIGKILL, -signal.SIGKILL, 2], done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "could not be written" in line
    assert "Make room" in line
    assert not list((tmp_path / "limit_files").iterdir())
    left = list((tmp_path / "die_within_the_mask").iterdir())
    assert left
    assert all(path.name.startswith(".") and ".part." in path.name for path in left)
    between = tmp_path / "die_before_the_manifest"
    assert {path.name for path in between.iterdir()} == {"seg.nii.gz", "seg.json"}
    assert np.asarray(nib.load(between / "seg.nii.gz").dataobj).shape  # whole


def test_paths_with_spaces_and_other_letters_are_taken(journey, tmp_path: Path) -> None:
    folder = tmp_path / "Pat ient Ωß"
    folder.mkdir()
    _write(folder / "Bild ä_flair.nii.gz", _brain())
    out = tmp_path / "out put" / "Mäsk é.nii.gz"
    assert main(["segment", str(folder), "--model", str(journey.flair), "-o", str(out)]) == 0
    assert nib.load(out).shape == SHAPE
    record = json.loads((out.parent / "Mäsk é.manifest.json").read_text(encoding="utf-8"))
    assert record["inputs"]["FLAIR"]["file"].endswith("Pat ient Ωß/Bild ä_flair.nii.gz")


def _labelled(root: Path, label: np.ndarray | None) -> Path:
    for name in ("Brats18_A_1", "Brats18_B_1", "Brats18_C_1"):
        folder = root / "HGG" / name
        folder.mkdir(parents=True)
        for ending in ("t1", "t2", "t1ce", "flair"):
            _write(folder / f"{name}_{ending}.nii.gz", _brain(7))
        if label is not None:
            _write(folder / f"{name}_seg.nii.gz", label)
    return root


def test_missing_label_is_refused(tmp_path: Path, fails: Callable[[list[str]], str]) -> None:
    line = fails(["prepare", str(_labelled(tmp_path / "d", None)), "-o", str(tmp_path / "store")])
    assert "Brats18_A_1" in line
    assert "reference segmentation" in line


def test_label_values_outside_the_convention_are_refused(tmp_path: Path, fails: Callable[[list[str]], str]) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[8:11, 8:11, 8:11] = 3
    line = fails(["prepare", str(_labelled(tmp_path / "d", label)), "-o", str(tmp_path / "store")])
    assert "[0, 1, 2, 4]" in line
    assert "--labels" in line


def test_label_on_another_grid_is_refused(tmp_path: Path, fails: Callable[[list[str]], str]) -> None:
    label = np.zeros((10, 10, 10), np.uint8)
    line = fails(["prepare", str(_labelled(tmp_path / "d", label)), "-o", str(tmp_path / "store")])
    assert "shape" in line


def test_no_sequence_both_ways_and_same_file_twice(journey, tmp_path: Path, fails: Callable[[list[str]], str]) -> None:
    model = ["--model", str(journey.flair)]
    assert "no sequence" in fails(["segment", *model])
    case = str(next(journey.cohort.glob("*GG/*")))
    image = str(next(Path(case).glob("*_flair.nii.gz")))
    assert "not both" in fails(["segment", case, "--flair", image, *model])
    assert "file of its own" in fails(["segment", "--flair", image, "--t1", image, *model])
    line = fails(["segment", case, "--model", str(tmp_path), "-o", str(tmp_path / "m.nii.gz")])
    assert f"{tmp_path} holds no trained model" in line


def test_model_that_needs_more_than_the_case_has(journey, tmp_path: Path, fails: Callable[[list[str]], str]) -> None:
    image = str(next(journey.cohort.glob("*GG/*/*_t1.nii.gz")))
    line = fails(["segment", "--t1", image, "--model", str(journey.flair), "-o", str(tmp_path / "m.nii.gz")])
    assert "FLAIR" in line
    assert "add FLAIR" in line


def test_output_that_is_an_input_or_no_nifti_or_not_writable(
    journey, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    image = str(next(journey.cohort.glob("*GG/*/*_flair.nii.gz")))
    words = ["segment", "--flair", image, "--model", str(journey.flair), "-o"]
    before = Path(image).read_bytes()
    assert "no mask as mindgap wrote it" in fails([*words, image])
    assert Path(image).read_bytes() == before
    reference = Path(image.replace("_flair", "_seg"))
    before = reference.read_bytes()
    assert "no mask as mindgap wrote it" in fails([*words, str(reference)])
    assert reference.read_bytes() == before
    assert ".nii.gz" in fails([*words, str(tmp_path / "mask.png")])
    assert "could not be written" in fails([*words, "/proc/nowhere/mask.nii.gz"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--anchor", "k", "--k", "T2", "--subset", "T1+T1ce"], "not in the subset"),
        (["--anchor", "none", "--anchor-gradient"], "--anchor-gradient says nothing to anchor none"),
        (["--subset", ""], "empty"),
        (["--subset", "PET"], "is no sequence"),
        (["--crop", "40"], "multiple of 16"),
        (["--preset", "huge"], "no preset"),
        (["--steps", "0"], "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    words: list[str], said: str, journey, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    line = fails(["train", "teacher", "--data", str(journey.store), "--out", str(tmp_path / "r"), *words])
    assert said in line
    assert not (tmp_path / "r").exists()


def test_training_over_a_finished_run_is_refused(journey, fails: Callable[[list[str]], str]) -> None:
    line = fails(["train", "teacher", "--data", str(journey.store), "--out", str(journey.teacher)])
    assert "--resume" in line


def test_debug_shows_the_traceback(journey, tmp_path: Path) -> None:
    from mindgap.errors import MindgapError

    with pytest.raises(MindgapError):
        main(["segment", str(tmp_path), "--model", str(journey.flair), "--debug"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no\n word of this")])
def test_what_nobody_expected_is_one_line_without_a_traceback(
    error: Exception, fails: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindgap.cli import cite

    def breaks(words: list[str]) -> int:
        raise error

    monkeypatch.setattr(cite, "run", breaks)
    text = f": {' '.join(str(error).split())}" if str(error) else ""
    assert fails(["cite"]) == f"mindgap cite: unexpected {type(error).__name__}{text}; --debug shows where\n"
    with pytest.raises(type(error)):
        main(["cite", "--debug"])
