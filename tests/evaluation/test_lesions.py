import numpy as np
import pytest
from scipy import ndimage

from mindgap.evaluation.lesions import lesionwise_dice, without_small
from mindgap.evaluation.metrics import dice

SHAPE = (60, 20, 20)
EMPTY = np.zeros(SHAPE, dtype=bool)
ISOTROPIC = (1.0, 1.0, 1.0)


def _cube(start, side=4, *, other=5, shape=SHAPE):
    """A block of ``side`` voxels along the first axis and 4 x 4 across it."""
    mask = np.zeros(shape, dtype=bool)
    mask[start : start + side, other : other + 4, other : other + 4] = True
    return mask


FIRST, SECOND = _cube(3), _cube(30)  # 64 voxels each


def _published(predicted, reference, *, iterations=3, smallest=50):
    """The rule as a loop over lesions, with voxels for units, as the published description has it."""
    element, full = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    grown = ndimage.binary_dilation(reference, element, iterations=iterations)
    grown_labels, count = ndimage.label(grown, full)
    parts, parts_count = ndimage.label(predicted, full)
    scores, met = [], set()
    for number in range(1, count + 1):
        lesion = reference & (grown_labels == number)
        near = ndimage.binary_dilation(lesion, element, iterations=iterations)
        own = set(np.unique(parts[near])) - {0}
        met |= own
        union = np.isin(parts, list(own))
        if lesion.sum() > smallest:
            scores.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
    scores += [0.0] * (parts_count - len(met))
    return float(np.mean(scores)) if scores else 1.0


def test_nothing_found_where_nothing_is_is_perfect_and_all_else_is_nothing():
    assert lesionwise_dice(EMPTY, EMPTY, ISOTROPIC) == 1
    assert lesionwise_dice(FIRST, EMPTY, ISOTROPIC) == 0
    assert lesionwise_dice(EMPTY, FIRST, ISOTROPIC) == 0


def test_a_missed_lesion_counts_as_0_however_large_the_other_is():
    large = _cube(3, side=16)
    assert dice(large, large | SECOND) > 0.88
    assert lesionwise_dice(large, large | SECOND, ISOTROPIC) == 0.5
    assert lesionwise_dice(large | SECOND, large | SECOND, ISOTROPIC) == 1


def test_a_false_lesion_counts_as_0_even_if_it_is_one_voxel():
    false = EMPTY.copy()
    false[50, 10, 10] = True
    assert lesionwise_dice(FIRST | false, FIRST, ISOTROPIC) == 0.5
    assert lesionwise_dice(FIRST | SECOND, FIRST, ISOTROPIC) == 0.5


def test_each_lesion_has_a_dice_of_its_own():
    half = _cube(3, side=2)
    assert lesionwise_dice(half | SECOND, FIRST | SECOND, ISOTROPIC) == pytest.approx((2 * 32 / (32 + 64) + 1) / 2)


@pytest.mark.parametrize(("voxels", "counts"), [(50, False), (51, True)])
def test_a_lesion_of_50_mm3_is_left_out_and_a_larger_one_is_not(voxels, counts):
    small = EMPTY.copy()
    small[30:40, 5:10, 5] = True
    small[40, 5, 5] = voxels == 51
    assert small.sum() == voxels
    assert lesionwise_dice(FIRST, FIRST | small, ISOTROPIC) == (0.5 if counts else 1.0)
    assert lesionwise_dice(EMPTY, small, ISOTROPIC) == (0.0 if counts else 1.0)
    part = small.copy()
    part[31:] = False  # 5 voxels of it; what meets a small lesion is no false positive
    found = lesionwise_dice(FIRST | part, FIRST | small, ISOTROPIC)
    assert found == pytest.approx((1 + 2 * 5 / (5 + 51)) / 2 if counts else 1.0)


@pytest.mark.parametrize(
    ("spacing_mm", "counts"), [((1.0, 1.0, 1.0), True), ((0.5, 1.0, 1.0), False), ((2.0, 0.5, 1.0), True)]
)
def test_the_smallest_lesion_is_a_volume(spacing_mm, counts):
    # 64 voxels are 64, 32 and 64 mm^3.
    assert lesionwise_dice(EMPTY, FIRST, spacing_mm) == (0.0 if counts else 1.0)


@pytest.mark.parametrize(("gap", "together"), [(6, True), (7, False)])
def test_parts_within_reach_of_each_other_are_one_lesion(gap, together):
    # Each grows by 3 voxels.
    both = FIRST | _cube(7 + gap)
    found = lesionwise_dice(FIRST, both, ISOTROPIC)
    assert found == pytest.approx(_published(FIRST, both))
    assert found == pytest.approx(2 * 64 / (64 + 128) if together else 0.5)


@pytest.mark.parametrize(
    ("millimetres", "reach"), [(0.5, 6), (0.75, 4), (1.0, 3), (1.5, 2), (2.0, 1), (3.0, 1), (4.0, 0)]
)
def test_reach_is_a_length(millimetres, reach):
    for gap, together in ((2 * reach, True), (2 * reach + 1, False)):
        both = FIRST | _cube(7 + gap)
        found = lesionwise_dice(FIRST, both, (millimetres, 1.0, 2.0))
        assert found == pytest.approx(2 * 64 / (64 + 128) if together else 0.5)


def test_a_prediction_belongs_to_every_lesion_it_meets_and_counts_whole():
    bridge = _cube(3, side=31)
    both = FIRST | SECOND
    each = 2 * 64 / (bridge.sum() + 64)
    assert lesionwise_dice(bridge, both, ISOTROPIC) == pytest.approx(each)


def test_a_prediction_near_a_lesion_is_none_of_the_false_ones():
    near, far = _cube(9), _cube(10)  # 3 and 4 voxels off the end of the lesion
    lesion = _cube(3)
    assert lesionwise_dice(near, lesion, ISOTROPIC) == 0
    assert lesionwise_dice(lesion | near, lesion, ISOTROPIC) == pytest.approx(2 * 64 / (64 + 64 + 64))
    assert lesionwise_dice(lesion | far, lesion, ISOTROPIC) == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_at_1_mm_the_numbers_are_those_of_the_published_rule(seed):
    rng = np.random.default_rng(seed)
    reference, predicted = (
        ndimage.gaussian_filter(rng.random((40, 36, 30)), 2) > quantile for quantile in (0.535, 0.53)
    )
    assert ndimage.label(reference)[1] > 3
    found = lesionwise_dice(predicted, reference, ISOTROPIC)
    assert found == pytest.approx(_published(predicted, reference))


def test_headers_that_round_the_spacing_change_nothing():
    second = _cube(13)  # 6 voxels off: one lesion at exactly 1 mm
    exact = lesionwise_dice(FIRST, FIRST | second, ISOTROPIC)
    assert lesionwise_dice(FIRST, FIRST | second, (1.0000001, 0.9999999, 1.0000002)) == exact


def test_space_around_the_masks_changes_nothing():
    rng = np.random.default_rng(1)
    reference, predicted = (ndimage.gaussian_filter(rng.random((24, 20, 18)), 1.5) > 0.53 for _ in range(2))
    wide = [np.pad(mask, ((5, 2), (0, 9), (3, 3))) for mask in (predicted, reference)]
    inside = [np.pad(mask, 4) for mask in (predicted, reference)]
    assert lesionwise_dice(*wide, ISOTROPIC) == pytest.approx(lesionwise_dice(*inside, ISOTROPIC))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.0), (2.0, 2.0, 2.0), (1.0, 1.0, 0.4)])
def test_et_below_500_mm3_is_taken_for_none(spacing_mm):
    voxels = round(500 / np.prod(spacing_mm))  # exactly 500 mm^3
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask.flat[:voxels] = True
    assert without_small(mask, spacing_mm).sum() == (voxels if voxels * np.prod(spacing_mm) >= 500 else 0)
    if voxels * np.prod(spacing_mm) == 500:
        mask.flat[voxels - 1] = False
        assert not without_small(mask, spacing_mm).any()
        assert mask.any()
    assert without_small(~np.zeros_like(mask), spacing_mm).all()
    assert not without_small(np.zeros_like(mask), spacing_mm).any()
