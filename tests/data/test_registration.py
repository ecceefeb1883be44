"""Rigid registration of brains whose true pose is known, and what shows that one failed."""

from pathlib import Path

import numpy as np
import pytest

import mindgap.data.raw as raw
from mindgap.data.brain import BrainSource, brain_of_stripped
from mindgap.data.nifti import Volume
from mindgap.data.raw import RawOptions, to_atlas_grid
from mindgap.data.registration import Registration, register, resample
from mindgap.errors import InputError
from mindgap.sequences import Sequence

STRIPPED = RawOptions(BrainSource(already_stripped=True))


def _pose(degrees: float, shift_mm: tuple[float, float, float]) -> np.ndarray:
    """A turn about an oblique axis, then a shift."""
    x, y, z = np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    a, matrix = np.deg2rad(degrees), np.eye(4)
    matrix[:3, :3] += np.sin(a) * cross + (1 - np.cos(a)) * cross @ cross
    matrix[:3, 3] = shift_mm
    return matrix


@pytest.fixture(scope="module")
def brain() -> Volume:
    """The template at 2 mm."""
    template = raw._template()
    affine = template.affine @ np.diag([2, 2, 2, 1])
    return Volume(np.ascontiguousarray(template.array[::2, ::2, ::2]), affine, Path("brain"), None)


@pytest.fixture(scope="module")
def moved(brain) -> tuple[Volume, np.ndarray]:
    """The same brain in another contrast and pose, on slices of 4 mm with RAS axes; and the pose."""
    pose = _pose(12, (12, -8, 5))
    grid = _pose(-5, (-100, -110, -90)) @ np.diag([2, 2, 4, 1])
    other = Volume(np.where(brain.array > 0, 1.2 - brain.array, 0).astype(np.float32), brain.affine, brain.path, None)
    inside = resample("brain", Volume((brain.array > 0) * np.float32(1), *_rest(brain)), pose, (100, 110, 50), grid)
    array = resample("brain", other, pose, (100, 110, 50), grid) * (inside >= 0.5)
    return Volume(array, grid, Path("moved"), None), pose


def _rest(volume: Volume) -> tuple[np.ndarray, Path, None]:
    return volume.affine, volume.path, None


def test_a_known_pose_is_found_across_contrasts_and_grids(brain, moved) -> None:
    scan, pose = moved
    found = register("p", brain, scan, stripped=True)
    error = pose @ found.matrix
    turn = np.degrees(np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1)))
    middle = np.array([0, -17, 5.5, 1])
    assert turn < 0.5
    assert np.linalg.norm((error @ middle - middle)[:3]) < 0.5
    assert found.after > 2 * found.before
    np.testing.assert_array_equal(register("p", brain, scan, stripped=True).matrix, found.matrix)


def test_images_that_lie_right_are_left_alone(brain) -> None:
    np.testing.assert_array_equal(register("p", brain, brain, stripped=True).matrix, np.eye(4))


def test_a_soft_rim_is_no_brain_and_a_hard_one_is(brain, moved) -> None:
    inside, layers = brain_of_stripped(moved[0].array)
    assert layers == 0
    np.testing.assert_array_equal(inside, moved[0].array > 0)
    grid = _pose(8, (-80, -110, -70)) @ np.diag([1.5, 1.5, 1.5, 1])
    blurred = resample("brain", brain, np.eye(4), (110, 130, 110), grid)
    mask = Volume((brain.array > 0) * np.float32(1), *_rest(brain))
    true = resample("brain", mask, np.eye(4), (110, 130, 110), grid) >= 0.5
    inside, layers = brain_of_stripped(blurred)
    assert layers > 0
    assert (inside & ~true).sum() < 0.1 * ((blurred > 0) & ~true).sum()


def test_scans_that_do_not_lie_on_each_other_are_refused_and_forced_ones_named(brain, moved, monkeypatch) -> None:
    images = {Sequence.T1: brain, Sequence.T2: moved[0]}
    case = to_atlas_grid("p", images, STRIPPED)
    assert case.warnings == ()
    assert case.record["brain_overlap"]["T2"] > 0.95

    def astray(name: str, fixed: Volume, moving: Volume, **words: bool) -> Registration:
        found = register(name, fixed, moving, **words)
        return found if fixed.path == Path("MNI152") else Registration(_pose(0, (60, 0, 0)), found.before, found.after)

    monkeypatch.setattr(raw, "register", astray)
    with pytest.raises(InputError, match="T2: the brain and that of the reference overlap"):
        to_atlas_grid("p", images, STRIPPED)
    assert any("T2: the brain" in line for line in to_atlas_grid("p", images, STRIPPED, force=True).warnings)


def test_a_scan_that_shows_no_brain_is_refused(brain) -> None:
    noise = np.random.default_rng(0).random((40, 40, 40), np.float32)
    noise[:, :20] = 0
    images = {Sequence.T1: brain, Sequence.FLAIR: Volume(noise, np.diag([4.0, 4, 4, 1]), Path("noise"), None)}
    with pytest.raises(InputError, match="FLAIR: similarity"):
        to_atlas_grid("p", images, STRIPPED)
