"""Rigid registration of brains whose true pose is known, and what shows that one failed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mindgap.data.raw as raw
from mindgap.data.brain import BrainSource, brain_of_stripped
from mindgap.data.nifti import Volume
from mindgap.data.raw import RawCase, RawOptions, bring_back, to_atlas_grid
from mindgap.data.registration import Registration, register, resample
from mindgap.errors import InputError
from mindgap.sequences import Sequence

BALL_MM = (-30, -20, 25)
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
    """The template at 2 mm, with a bright ball in it."""
    template = raw._template()
    affine = template.affine @ np.diag([2, 2, 2, 1])
    array = np.ascontiguousarray(template.array[::2, ::2, ::2])
    array[_in_ball(array.shape, affine)] = 1.6
    return Volume(array, affine, Path("brain"), None)


def _in_ball(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(places - BALL_MM, axis=-1) < 22


@pytest.fixture(scope="module")
def moved(brain) -> tuple[Volume, np.ndarray]:
    """The same brain in another contrast and pose, on slices of 4 mm with RAS axes; and the pose."""
    pose = _pose(12, (12, -8, 5))
    grid = _pose(-5, (-100, -110, -90)) @ np.diag([2, 2, 4, 1])
    opposite = np.where(brain.array > 0, np.maximum(1.2 - brain.array, 0.05), 0).astype(np.float32)
    other = replace(brain, array=opposite)
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
    assert (inside & ~true).sum() < 0.2 * ((blurred > 0) & ~true).sum()


@pytest.fixture(scope="module")
def laid(brain, moved) -> RawCase:
    """Both on the atlas grid, as they should be."""
    return to_atlas_grid("p", {Sequence.T1: brain, Sequence.T2: moved[0]}, replace(STRIPPED, native=Sequence.T2))


def test_both_scans_lie_on_the_atlas_and_nothing_shines_outside_of_the_brain(laid) -> None:
    assert laid.warnings == ()
    assert laid.record["brain_overlap"]["T2"] > 0.95
    assert laid.record["brain_overlap"]["atlas"] > 0.95
    one, other = (laid.case.images[s].array for s in (Sequence.T1, Sequence.T2))
    both = (one > 0) & (other > 0)
    assert np.corrcoef(one[both], other[both])[0, 1] < -0.8  # the contrasts are opposite
    assert min(one.min(), other.min()) == 0


def test_what_is_found_on_the_atlas_comes_back_to_the_grid_of_the_scan_that_was_named(moved, laid) -> None:
    scan, pose = moved
    maps = laid.case.images[Sequence.T1].array[None] / 2.6  # the brain reaches 1, the ball 1.6
    back = bring_back(laid, maps)[0] >= 0.5
    ball = _in_ball(scan.array.shape, pose @ scan.affine)
    assert 2 * (back & ball).sum() / (back.sum() + ball.sum()) > 0.95


def _astray(laid, monkeypatch, pose: np.ndarray) -> None:
    """Registration between scans ends at a wrong pose; that to the atlas is right."""
    home = laid.record["transforms"]["atlas"]

    def register(name: str, fixed: Volume, moving: Volume, **words: bool) -> Registration:
        matrix = np.array(home["matrix_ras_mm"]) if fixed.path == Path("MNI152") else pose
        return Registration(matrix, home["similarity_before"], home["similarity_after"])

    monkeypatch.setattr(raw, "register", register)


def test_scans_laid_beside_each_other_are_refused_and_named_where_forced(brain, moved, laid, monkeypatch) -> None:
    _astray(laid, monkeypatch, _pose(0, (60, 0, 0)))
    images = {Sequence.T1: brain, Sequence.T2: moved[0]}
    with pytest.raises(InputError, match="T2: the brain and that of the reference overlap"):
        to_atlas_grid("p", images, STRIPPED)
    assert any("T2: the brain" in line for line in to_atlas_grid("p", images, STRIPPED, force=True).warnings)


def test_what_has_nothing_in_common_with_a_brain_is_refused(brain) -> None:
    noise = np.random.default_rng(0).random((40, 40, 40), np.float32)
    found = register("p", brain, Volume(noise, np.diag([4.0, 4, 4, 1]), Path("noise"), None))
    with pytest.raises(InputError, match="FLAIR: similarity"):
        raw._judge("p", {"FLAIR": found}, {"atlas": 0.9}, force=False)
