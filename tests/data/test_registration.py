"""Rigid registration of brains whose true pose is known, and what shows that one failed."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

import mindgap.data.raw as raw
from mindgap.data.brain import (
    BrainSource,
    allow_hd_bet,
    brain_of_stripped,
    given_brain,
    stop_hd_bet,
    strip_with_hd_bet,
)
from mindgap.data.nifti import write_volume
from mindgap.data.plausibility import ATLAS, judge_coverage, judge_registrations
from mindgap.data.preparation import prepare_case
from mindgap.data.prepared import Preparation
from mindgap.data.raw import RawCase, RawOptions, bring_back, to_atlas_grid
from mindgap.data.registration import Registration, register, resample
from mindgap.data.template import read_template
from mindgap.data.volume import Volume
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
    template = read_template()
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
    lines: list[str] = []
    images = {Sequence.T1: brain, Sequence.T2: moved[0]}
    laid = to_atlas_grid("p", images, replace(STRIPPED, native=Sequence.T2), say=lines.append)
    assert lines[0] == "registering T2 to T1, and T1 to the atlas"
    words = r"    T2  to T1 in \d+\.\d s: turned by 12 degrees, similarity 0\.\d\d before and \d\.\d\d after"
    assert re.fullmatch(words, lines[1])
    assert [line[:12] for line in lines[2:]] == ["finding the ", "    T1  to a"]
    return laid


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


def _found(degrees: float, after: float) -> Registration:
    return Registration(_pose(degrees, (3, 0, 0)) if degrees else np.eye(4), min(0.36, after), after)


@pytest.mark.parametrize(("degrees", "words"), [(13, "that after a turn by 13 degrees"), (0, "no other place was")])
def test_scans_with_skull_that_are_little_alike_are_doubtful_moved_or_not(degrees, words) -> None:
    scans = {"T1": _found(5, 0.9), "FLAIR": _found(degrees, 0.41), ATLAS: _found(8, 0.22)}
    (line,) = judge_registrations("p", scans, {ATLAS: 0.9}, force=False)
    assert line.startswith("the registration is doubtful: FLAIR: similarity 0.41, and ")
    assert words in line
    (line,) = judge_registrations("p", scans, {ATLAS: 0.9, "T1": 0.95, "FLAIR": 0.95}, force=False)
    assert line.endswith("FLAIR: similarity 0.41; is it of the same patient?")


def test_a_head_that_was_turned_far_is_said() -> None:
    (line,) = judge_registrations("p", {ATLAS: _found(42, 0.4)}, {ATLAS: 0.85}, force=False)
    assert line == "the registration is doubtful: atlas: turned by 42 degrees; look at the picture (--picture)"
    assert judge_registrations("p", {ATLAS: _found(25, 0.4)}, {ATLAS: 0.85}, force=False) == []


def test_a_head_that_is_turned_far_is_found(brain) -> None:
    """Descents from the headers and from the centres of mass alone ended 33 degrees off."""
    pose = _pose(50, (5, -8, 4))
    opposite = np.where(brain.array > 0, np.maximum(1.7 - brain.array, 0.05), 0).astype(np.float32)
    found = register("p", brain, Volume(opposite, pose @ brain.affine, Path("turned"), None), stripped=True)
    error = np.linalg.inv(pose) @ found.matrix
    assert np.degrees(np.arccos(np.clip((np.trace(error[:3, :3]) - 1) / 2, -1, 1))) < 1


def test_what_has_nothing_in_common_with_a_brain_is_refused(brain) -> None:
    noise = np.random.default_rng(0).random((40, 40, 40), np.float32)
    found = register("p", brain, Volume(noise, np.diag([4.0, 4, 4, 1]), Path("noise"), None))
    with pytest.raises(InputError, match="FLAIR: similarity"):
        judge_registrations("p", {"FLAIR": found}, {ATLAS: 0.9}, force=False)


@pytest.mark.parametrize("version", [1, 2])
def test_the_brain_of_either_hd_bet_is_that_of_its_mask(brain, tmp_path, version) -> None:
    """Version 1 writes a mask beside the image; version 2 the image alone, in which a scan may be 0 and below."""
    inside, rng = brain.array > 0, np.random.default_rng(0)
    head = np.where(inside, brain.array, 0.2 + 0.05 * rng.random(inside.shape)).astype(np.float32)
    deep = np.argwhere(binary_erosion(inside, iterations=3))[::300]
    head[tuple(deep.T)] = np.resize([0.0, -0.1], len(deep))
    write_volume(tmp_path / "mask.nii.gz", inside.astype(np.uint8), brain.affine)
    write_volume(tmp_path / "stripped.nii.gz", np.where(inside, head, 0), brain.affine)
    program, copy = tmp_path / "hd-bet", f"cp '{tmp_path}/stripped.nii.gz' \"$4\""
    beside = f"cp '{tmp_path}/mask.nii.gz' \"${{4%.nii.gz}}_mask.nii.gz\"" if version == 1 else ""
    program.write_text("\n".join(["#!/bin/sh", "[ $1 = -i ] && [ $3 = -o ] || exit 2", copy, beside]))
    program.chmod(0o755)
    np.testing.assert_array_equal(strip_with_hd_bet("p", program, replace(brain, array=head)), inside)


def _answers_with(folder: Path, mask: Volume) -> Path:
    """A program that gives one brain to every scan."""
    write_volume(folder / "answer.nii.gz", mask.array, mask.affine)
    program = folder / "hd-bet"
    program.write_text(f"#!/bin/sh\ncp '{folder}/answer.nii.gz' \"$4\"\n")
    program.chmod(0o755)
    return program


def _turned(volume: Volume) -> Volume:
    """The same image with its first axis the other way round and the other two exchanged."""
    array, affine = volume.array[::-1].transpose(0, 2, 1), volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (volume.array.shape[0] - 1)
    affine[:3] = affine[:3] @ np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return replace(volume, array=np.ascontiguousarray(array), affine=affine)


def test_the_brain_of_a_program_that_turns_the_axes_is_turned_back(brain, tmp_path) -> None:
    lopsided = (brain.array > 0).astype(np.float32)
    lopsided[: lopsided.shape[0] // 3] = 0
    program = _answers_with(tmp_path, _turned(replace(brain, array=lopsided)))
    np.testing.assert_array_equal(strip_with_hd_bet("p", program, brain), lopsided > 0)


def test_a_brain_on_another_grid_is_refused_with_both(brain, tmp_path) -> None:
    shifted = brain.affine.copy()
    shifted[:3, 3] += 4
    program = _answers_with(tmp_path, replace(brain, array=np.sign(brain.array), affine=shifted))
    with pytest.raises(InputError, match=r"p: brain: expected .* origin \(-98\.0.*found shape .* origin \(-94\.0"):
        strip_with_hd_bet("p", program, brain)


def test_a_brain_mask_may_have_its_axes_in_another_order(brain, tmp_path) -> None:
    turned = _turned(replace(brain, array=np.sign(brain.array)))
    write_volume(tmp_path / "mask.nii", turned.array, turned.affine)
    mask, owner = given_brain("p", {Sequence.T1: brain}, tmp_path / "mask.nii")
    assert owner == Sequence.T1
    there = resample("p", mask, np.eye(4), brain.array.shape, brain.affine) >= 0.5
    np.testing.assert_array_equal(there, brain.array > 0)


# One brain for all scans


@pytest.fixture
def masked(brain, tmp_path, monkeypatch) -> RawOptions:
    """The brain as a file on the grid of T1; all scans lie right, and registration leaves them there."""
    monkeypatch.setattr(raw, "register", lambda *images, **words: Registration(np.eye(4), 0.6, 0.6))
    write_volume(tmp_path / "brain.nii", (brain.array > 0).astype(np.uint8), brain.affine)
    return RawOptions(BrainSource(mask=tmp_path / "brain.nii"), reference=Sequence.T1)


def _head(brain: Volume, share: float = 1.0) -> Volume:
    """Another contrast, with air and skull that are no brain; of the lower slices alone where a share is named."""
    rng = np.random.default_rng(0)
    array = np.where(brain.array > 0, 140 - 50 * brain.array, 3) + rng.random(brain.array.shape)
    slices = np.flatnonzero((brain.array > 0).any((0, 1)))
    end = slices[0] + round(share * len(slices)) if share < 1 else array.shape[2]
    return Volume(np.ascontiguousarray(array[:, :, :end], np.float32), brain.affine, Path("head"), None)


def test_brain_beyond_the_field_of_view_of_a_scan_is_absent_and_warned_of(brain, masked) -> None:
    whole, half = (
        to_atlas_grid("p", {Sequence.T1: brain, Sequence.T2: _head(brain, share)}, masked) for share in (1, 0.5)
    )
    assert whole.warnings == ()
    assert whole.record["brain_covered"] == {"T1": 1.0, "T2": 1.0}
    (line,) = half.warnings
    share = half.record["brain_covered"]["T2"]
    assert 0.4 < share < 0.6
    assert line.startswith(f"T2 covers {share:.0%} of the brain")
    complete, cut = (found.case.images[Sequence.T2].array for found in (whole, half))
    np.testing.assert_array_equal(half.case.images[Sequence.T1].array, whole.case.images[Sequence.T1].array)
    top = np.flatnonzero((cut > 0).any((0, 1)))[-1]
    np.testing.assert_allclose(cut[:, :, : top - 8], complete[:, :, : top - 8], atol=0.1)  # ringing ends before
    np.testing.assert_array_equal(cut[:, :, : top + 1] > 0, complete[:, :, : top + 1] > 0)
    assert (cut[cut > 0] == cut[cut > 0].min()).mean() < 0.01
    prepared = prepare_case(half.case, Preparation())
    (_, (_, high)), (_, (_, low)) = ((box[1], box[2]) for box in prepared.boxes)
    assert high - low > 50
    alone = prepare_case(half.case.only((Sequence.T2,)), Preparation())
    assert prepared.image[1, :, :, :low].max() == alone.image.max() == 1


def test_half_a_brain_that_was_stripped_is_no_other_brain(brain, masked) -> None:
    """Its own brain ends with its field of view: that says nothing against the registration, whichever leads."""
    whole = np.where(brain.array > 0, 140 - 50 * brain.array, 0).astype(np.float32)
    half = replace(_head(brain, 0.5), array=whole[:, :, : _head(brain, 0.5).array.shape[2]])
    for slab, options in ((Sequence.T2, STRIPPED), (Sequence.T1, replace(STRIPPED, reference=Sequence.T1))):
        other = Sequence.T1 if slab == Sequence.T2 else Sequence.T2
        found = to_atlas_grid("p", {slab: half, other: brain}, options)
        share = found.record["brain_covered"][str(slab)]
        assert 0.4 < share < 0.6
        assert found.warnings == (
            f"{slab} covers {share:.0%} of the brain; it was taken as absent outside of its field of view",
        )
        assert found.record["brain_covered"][str(other)] == 1
        assert min(found.record["brain_overlap"].values()) > 0.9


def test_n4_takes_a_bias_field_away(brain, masked) -> None:
    places = np.moveaxis(np.indices(brain.array.shape), 0, -1) / brain.array.shape
    field = np.exp(0.5 * places[..., 0] - 0.4 * places[..., 2]).astype(np.float32)
    biased = {Sequence.T1: replace(brain, array=brain.array * field)}
    true = to_atlas_grid("p", {Sequence.T1: brain}, masked).case.images[Sequence.T1].array
    spread = []
    for n4 in (False, True):
        found = to_atlas_grid("p", biased, replace(masked, n4=n4))
        assert found.record["n4"] is n4
        inside = binary_erosion(true > 0, iterations=3)
        spread.append(float(np.log(found.case.images[Sequence.T1].array[inside] / true[inside]).std()))
    assert spread[0] > 0.1
    assert spread[1] < 0.4 * spread[0]


def test_a_scan_that_hardly_covers_the_brain_is_refused_unless_forced(brain, masked) -> None:
    images = {Sequence.T1: brain, Sequence.T2: _head(brain, 0.2)}
    with pytest.raises(InputError, match=r"p: T2 \(head\): .* at least 10% of the brain, found \d\.\d% .*--force"):
        to_atlas_grid("p", images, masked)
    (line,) = judge_coverage({Sequence.T2: "p: T2"}, {Sequence.T2: 0.05}, force=True)
    assert line.startswith("T2 covers 5% of the brain")


def test_a_scan_with_negative_brain_is_refused_and_few_such_voxels_pass(brain, masked) -> None:
    head = _head(brain)
    inside = brain.array > 0

    def laid_upon(change: np.ndarray) -> RawCase:
        return to_atlas_grid("p", {Sequence.T1: brain, Sequence.T2: replace(head, array=change)}, masked)

    scored = (head.array - head.array[inside].mean()) / head.array[inside].std()
    with pytest.raises(InputError, match=r"T2 \(head\): .*% negative voxels in the brain.*z-scored images are not"):
        laid_upon(scored)
    with pytest.raises(InputError, match=r"found 100.0% negative voxels"):
        laid_upon(head.array - 1000)
    with pytest.raises(InputError, match=r"no voxel above 0"):
        laid_upon(np.where(np.arange(head.array.size).reshape(head.array.shape) == 5, -1, 0).astype(np.float32))
    rings = np.where(inside, head.array, -head.array)  # in air, where they do no harm
    rings[tuple(np.argwhere(inside)[::200].T)] = -1
    found = laid_upon(rings)
    assert found.warnings == ()
    assert found.case.images[Sequence.T2].array.min() == 0


def test_a_stripped_scan_with_negative_voxels_is_refused(brain) -> None:
    inside = brain.array > 0
    scored = np.where(inside, (brain.array - brain.array[inside].mean()) / brain.array[inside].std(), 0)
    with pytest.raises(InputError, match=r"p: T1 \(brain\): expected background 0.*% negative voxels\..*z-scored"):
        to_atlas_grid("p", {Sequence.T1: replace(brain, array=scored.astype(np.float32))}, STRIPPED)


def test_a_scan_in_other_units_than_mm_is_refused(brain) -> None:
    small = replace(brain, affine=np.diag([0.1, 0.1, 0.1, 1]) @ brain.affine)
    with pytest.raises(InputError, match=r"p: brain: expected a grid of the size of a head.*0.2 x 0.2 x 0.2 mm"):
        to_atlas_grid("p", {Sequence.T1: small}, STRIPPED)


@pytest.mark.skipif(os.name == "nt", reason="a program that is a script")
def test_a_program_that_finds_the_brain_can_be_ended_from_elsewhere(tmp_path, brain, request) -> None:
    program = tmp_path / "hd-bet"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/begun'\nexec sleep 60\n")
    program.chmod(0o755)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        waiting = pool.submit(strip_with_hd_bet, "p", program, brain)
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        request.addfinalizer(allow_hd_bet)
        stop_hd_bet()
        with pytest.raises(InputError, match="exit code -9"):
            waiting.result()
        with pytest.raises(InputError, match="stopped"):
            pool.submit(strip_with_hd_bet, "p", program, brain).result()
    assert time.monotonic() - began < 30
