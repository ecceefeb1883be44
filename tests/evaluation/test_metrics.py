import math

import numpy as np
import pytest

from mindgap.evaluation.metrics import dice, hd95_mm, hd95_pooled_mm, surface_dice

EMPTY = np.zeros((6, 7, 8), dtype=bool)
ISOTROPIC = (1.0, 1.0, 1.0)


def _box(shape, start, stop):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def _random_mask(seed, shape=(9, 8, 7), share=0.15):
    return np.random.default_rng(seed).random(shape) < share


def _surface(mask):
    """Voxels of a mask that have a face on something else, or on the border of the volume."""
    padded = np.pad(mask, 1)
    inner = (slice(1, -1),) * 3
    surrounded = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            surrounded &= np.roll(padded, step, axis)[inner]
    return np.argwhere(mask & ~surrounded)


def _directed(first, second, spacing_mm):
    """Distances from every surface voxel of one mask to the nearest of the other."""
    a, b = _surface(first) * np.array(spacing_mm), _surface(second) * np.array(spacing_mm)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1)


def test_dice_of_known_masks():
    a, b = _box((8, 8, 8), (0, 0, 0), (4, 4, 4)), _box((8, 8, 8), (2, 0, 0), (6, 4, 4))
    assert dice(a, a) == 1
    assert dice(a, b) == dice(b, a) == 0.5
    assert dice(a, ~a) == 0
    assert dice(a, _box((8, 8, 8), (0, 0, 0), (4, 4, 2))) == pytest.approx(2 / 3)


def test_both_empty_is_perfect_and_one_empty_is_nothing():
    some = _box(EMPTY.shape, (1, 1, 1), (3, 3, 3))
    assert dice(EMPTY, EMPTY) == 1
    assert dice(EMPTY, some) == dice(some, EMPTY) == 0
    for pair in ((EMPTY, EMPTY), (EMPTY, some), (some, EMPTY)):
        assert math.isnan(hd95_mm(*pair, ISOTROPIC))


@pytest.mark.parametrize(
    ("spacing_mm", "shift", "expected"),
    [
        ((1.0, 1.0, 1.0), (3, 0, 0), 3.0),
        ((0.5, 2.0, 3.0), (3, 0, 0), 1.5),
        ((0.5, 2.0, 3.0), (0, 3, 0), 6.0),
        ((0.5, 2.0, 3.0), (0, 0, 3), 9.0),
    ],
)
def test_hd95_of_a_shifted_plate_is_the_shift_in_mm(spacing_mm, shift, expected):
    # Thin plates across the shift: every distance is the shift itself.
    axis = int(np.argmax(shift))
    stop = [9, 9, 9]
    start = [3, 3, 3]
    start[axis], stop[axis] = 3, 4
    first = _box((12, 12, 12), start, stop)
    second = np.roll(first, shift, (0, 1, 2))
    assert hd95_mm(first, second, spacing_mm) == pytest.approx(expected)
    assert hd95_mm(first, first, spacing_mm) == 0


def test_hd95_of_a_shifted_cube_is_the_brute_force_one():
    first = _box((16, 14, 12), (2, 3, 2), (8, 9, 7))
    second = np.roll(first, 4, 0)
    spacing_mm = (1.0, 0.8, 2.5)
    expected = np.percentile(_directed(first, second, spacing_mm), 95)
    assert hd95_mm(first, second, spacing_mm) == pytest.approx(expected) == 4.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0)])
def test_hd95_agrees_with_brute_force(seed, spacing_mm):
    first, second = _random_mask(seed, share=0.02), _random_mask(seed + 100, share=0.3)
    there, back = (np.percentile(_directed(*pair, spacing_mm), 95) for pair in ((first, second), (second, first)))
    assert hd95_mm(first, second, spacing_mm) == pytest.approx(max(there, back), rel=1e-5)
    assert hd95_mm(second, first, spacing_mm) == pytest.approx(max(there, back), rel=1e-5)


def test_the_larger_direction_counts_and_directions_are_not_pooled():
    shape = (30, 8, 8)
    small = _box(shape, (1, 1, 1), (6, 6, 6))
    large = small | _box(shape, (20, 1, 1), (22, 3, 3))  # far away, and only in one of the two
    there, back = _directed(small, large, ISOTROPIC), _directed(large, small, ISOTROPIC)
    assert np.percentile(there, 95) == 0
    expected = np.percentile(back, 95)
    assert expected > 10 > np.percentile(np.concatenate([there, back]), 95)
    assert hd95_mm(small, large, ISOTROPIC) == pytest.approx(expected)
    assert hd95_mm(large, small, ISOTROPIC) == pytest.approx(expected)


def test_single_outlying_voxels_do_not_decide_hd95():
    first = _box((24, 24, 24), (4, 4, 4), (14, 14, 14))
    second = first.copy()
    second[23, 23, 23] = True
    assert hd95_mm(first, second, ISOTROPIC) == 0


@pytest.mark.parametrize("corner", [(0, 0, 0), (5, 4, 6)])
def test_masks_at_the_border_of_the_volume_have_a_surface_there(corner):
    first = _box((11, 10, 12), corner, [c + 6 for c in corner])
    second = _box((11, 10, 12), (3, 2, 4), (6, 6, 8))
    expected = max(np.percentile(_directed(a, b, ISOTROPIC), 95) for a, b in ((first, second), (second, first)))
    assert hd95_mm(first, second, ISOTROPIC) == pytest.approx(expected)


def test_empty_space_around_masks_changes_nothing():
    first, second = _random_mask(3), _random_mask(4)
    wide = [np.pad(mask, ((5, 2), (0, 9), (3, 3))) for mask in (first, second)]
    spacing_mm = (0.9, 1.1, 2.0)
    assert hd95_mm(*wide, spacing_mm) == pytest.approx(hd95_mm(first, second, spacing_mm))
    assert dice(*wide) == dice(first, second)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.3, 3.0)])
def test_pooled_hd95_is_the_percentile_of_both_directions_together(seed, spacing_mm):
    first, second = _random_mask(seed, share=0.02), _random_mask(seed + 100, share=0.3)
    both = np.concatenate([_directed(first, second, spacing_mm), _directed(second, first, spacing_mm)])
    expected = np.percentile(both, 95)
    assert hd95_pooled_mm(first, second, spacing_mm) == pytest.approx(expected, rel=1e-5)
    assert hd95_pooled_mm(second, first, spacing_mm) == pytest.approx(expected, rel=1e-5)
    assert hd95_pooled_mm(first, second, spacing_mm) <= hd95_mm(first, second, spacing_mm) + 1e-5


def test_pooled_hd95_of_a_shifted_plate_is_the_shift_in_mm_and_of_nothing_undefined():
    plate = _box((12, 12, 12), (3, 3, 3), (4, 9, 9))
    assert hd95_pooled_mm(plate, np.roll(plate, 3, 0), (2.5, 1.0, 1.0)) == pytest.approx(7.5)
    for pair in ((EMPTY, EMPTY), (EMPTY, ~EMPTY), (~EMPTY, EMPTY)):
        assert math.isnan(hd95_pooled_mm(*pair, ISOTROPIC))


@pytest.mark.parametrize("millimetres", [1.0, 1.1, 0.7, 2.5])
def test_a_surface_exactly_at_the_tolerance_is_near_and_one_beyond_is_not(millimetres):
    plate = _box((12, 12, 12), (3, 3, 3), (4, 9, 9))
    moved = np.roll(plate, 1, 0)
    spacing_mm = (millimetres, 1.0, 1.0)
    assert surface_dice(plate, moved, spacing_mm, tolerance_mm=millimetres) == 1
    assert surface_dice(plate, moved, spacing_mm, tolerance_mm=millimetres * 0.999) == 0
    assert surface_dice(plate, moved, spacing_mm) == (1 if millimetres <= 1 else 0)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_surface_dice_is_the_share_of_near_surface_voxels(seed, spacing_mm):
    first, second = _random_mask(seed, share=0.05), _random_mask(seed + 50, share=0.2)
    distances = np.concatenate([_directed(first, second, spacing_mm), _directed(second, first, spacing_mm)])
    expected = np.mean(distances <= 1.0 + 1e-6)
    assert 0 < expected < 1
    assert surface_dice(first, second, spacing_mm) == pytest.approx(expected)
    assert surface_dice(second, first, spacing_mm) == pytest.approx(expected)


def test_half_of_two_surfaces_far_apart_counts_half():
    first = _box((20, 6, 6), (1, 1, 1), (2, 5, 5))
    second = first | _box((20, 6, 6), (15, 1, 1), (16, 5, 5))
    assert surface_dice(first, second, ISOTROPIC) == pytest.approx((16 + 16) / (16 + 32))


def test_surfaces_of_nothing_agree_only_with_each_other():
    some = _box(EMPTY.shape, (1, 1, 1), (3, 3, 3))
    assert surface_dice(EMPTY, EMPTY, ISOTROPIC) == 1
    assert surface_dice(EMPTY, some, ISOTROPIC) == surface_dice(some, EMPTY, ISOTROPIC) == 0
    assert surface_dice(some, some, ISOTROPIC) == 1
