"""A tumour moved into another brain: where it goes, how bright it is, what stays."""

import numpy as np
import pytest
import torch

from mindgap.data.transplant import transplant
from mindgap.shapes import BACKGROUND

SHAPE = (14, 14, 14)
TUMOUR = (slice(5, 8), slice(5, 9), slice(4, 7))


def _crop(level, dtype=torch.uint8, *, sequences=2, outside=0.0):
    """Brain of one brightness per sequence in a box, background around it, no tumour."""
    codes = torch.full((sequences + 1, *SHAPE), outside)
    codes[-1] = 0
    for row in range(sequences):
        codes[row, 1:13, 1:13, 1:13] = outside + level * (row + 1)
    return codes.to(dtype)


def _with_tumour(codes, add):
    codes = codes.clone()
    codes[-1][TUMOUR] = 2
    codes[-1, 6, 6, 5] = 3
    codes[(slice(0, -1), *TUMOUR)] += add
    return codes


@pytest.fixture
def moved():
    return transplant(_crop(50), _with_tumour(_crop(80), 40))


def test_classes_and_contrast_come_from_the_donor_brightness_from_the_crop(moved):
    donor = _with_tumour(_crop(80), 40)
    assert torch.equal(moved[-1], donor[-1])
    inner = (6, 6, 5)
    assert int(moved[0][inner]) == round((80 + 40) * 50 / 80)
    assert int(moved[1][inner]) == round((160 + 40) * 100 / 160)


def test_it_ends_softly_over_two_voxels():
    donor = _with_tumour(_crop(80), 40)
    donor[0, 8:10, 5:8, 4:7] = 160  # bright surroundings
    soft = transplant(_crop(50), donor)
    assert soft[0, 7:12, 6, 5].tolist() == [75, 83, 67, 50, 50], "weights 1, 2/3, 1/3, 0, 0"
    changed = (soft[:-1] != _crop(50)[:-1]).any(0)
    near = torch.nn.functional.max_pool3d((soft[-1] > 0)[None].float(), 5, stride=1, padding=2)[0] > 0
    assert not (changed & ~near).any(), "nothing changes far from it"


def test_a_tumour_at_the_side_of_a_crop_is_as_strong_as_inside():
    codes = torch.full((2, *SHAPE), 50, dtype=torch.uint8)
    codes[-1] = 0
    donor = torch.full((2, *SHAPE), 50, dtype=torch.uint8)
    donor[-1] = 0
    donor[0, :4, :4, :4], donor[1, :4, :4, :4] = 100, 2
    moved = transplant(codes, donor)
    assert bool((moved[0, :4, :4, :4] == 100).all())


def test_tumour_of_the_crop_beside_it_keeps_its_brightness():
    crop = _crop(50)
    crop[-1, 8, 6, 5] = 2
    crop[0, 8, 6, 5] = 90
    moved = transplant(crop, _with_tumour(_crop(80), 40))
    assert int(moved[-1, 8, 6, 5]) == 2
    assert int(moved[0, 8, 6, 5]) == 90


def test_nothing_of_it_lies_outside_either_brain():
    crop, donor = _crop(50), _with_tumour(_crop(80), 40)
    crop[:, 6:] = 0
    moved = transplant(crop, donor)
    assert bool((moved[:, 6:] == 0).all())
    assert bool((moved[-1][TUMOUR][:1] > 0).all())
    donor[:-1, 5] = 0  # the donor's brain ends within its label
    assert bool((transplant(crop, donor)[-1] == 0).all())


def test_tumour_that_was_there_stays_beside_it():
    crop = _crop(50)
    crop[-1, 10, 10, 10] = 1
    moved = transplant(crop, _with_tumour(_crop(80), 40))
    assert int(moved[-1, 10, 10, 10]) == 1
    assert int(moved[-1, 6, 6, 5]) == 3


def test_an_absent_sequence_stays_absent_and_what_the_donor_lacks_is_not_moved():
    crop, donor = _crop(50), _with_tumour(_crop(80), 40)
    crop[0] = 0
    moved = transplant(crop, donor)
    assert bool((moved[0] == 0).all())
    assert int(moved[-1].max()) == 3
    lacking = donor.clone()
    lacking[1] = 0
    assert transplant(crop, lacking) is crop


@pytest.mark.parametrize("donor", [_crop(80), torch.zeros((3, *SHAPE), dtype=torch.uint8)])
def test_without_tumour_or_brain_the_crop_stays_the_same(donor):
    crop = _crop(50)
    assert transplant(crop, donor) is crop


def test_codes_stay_within_the_brain_and_ratios_within_bounds():
    bright = transplant(_crop(120), _with_tumour(_crop(10), 100))
    assert int(bright[0, 6, 6, 5]) == 220, "twice as bright at most"
    assert int(bright[1].max()) <= 255
    dark = transplant(_crop(1), _with_tumour(_crop(100), -99))
    assert int(dark[:-1][:, 1:13, 1:13, 1:13].min()) >= 1, "brain stays brain"


def test_float16_codes_are_moved_like_bytes():
    crop, donor = ((_crop(level / 127.5, torch.float32, outside=BACKGROUND)).to(torch.float16) for level in (50, 80))
    donor = _with_tumour(donor, 40 / 127.5)
    moved = transplant(crop, donor)
    assert moved.dtype == torch.float16
    np.testing.assert_allclose(float(moved[0, 6, 6, 5]) - BACKGROUND, (120 / 80) * 50 / 127.5, rtol=2e-3)
    assert bool((moved[:-1, 0] == BACKGROUND).all())
