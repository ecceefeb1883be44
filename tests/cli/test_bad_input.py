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


def _nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")


BAD_IMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "NaN": (_nan, "flair", "NaN"),
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
    name: str, journey, tmp_path: Path, fails: Callable[[list[str]], str]
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
    assert "p" in line.split(":")[1]
    assert not out.exists()
    assert not list(tmp_path.glob("*.part*"))


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
    assert "does not exist" not in fails(["segment", case, "--model", str(tmp_path), "-o", str(tmp_path / "m.nii.gz")])


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
    assert "no mask of mindgap's" in fails([*words, image])
    assert Path(image).read_bytes() == before
    reference = Path(image.replace("_flair", "_seg"))
    before = reference.read_bytes()
    assert "no mask of mindgap's" in fails([*words, str(reference)])
    assert reference.read_bytes() == before
    assert ".nii.gz" in fails([*words, str(tmp_path / "mask.png")])
    assert "could not be written" in fails([*words, "/proc/nowhere/mask.nii.gz"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--anchor", "k", "--k", "T2", "--subset", "T1+T1ce"], "not in the subset"),
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
