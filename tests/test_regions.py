import numpy as np
import pytest

from mindgap.errors import InputError, SettingError
from mindgap.regions import (
    CLASS_COUNT,
    CONVENTIONS,
    ED_CLASS,
    ET_CLASS,
    NCR_CLASS,
    REGIONS,
    Region,
    find_convention,
    label_from_target,
    region_mask,
    region_volumes_ml,
    target_from_label,
)


@pytest.fixture
def target():
    return np.random.default_rng(0).integers(0, CLASS_COUNT, (6, 5, 4), dtype=np.uint8)


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=CONVENTIONS)
def test_labels_go_and_come_home(target, convention):
    label = label_from_target(target, convention)
    assert label.dtype == np.uint8
    for stored in (label, label.astype(np.float32), label.astype(np.int16)):
        np.testing.assert_array_equal(target_from_label(stored, convention, "A"), target)


@pytest.mark.parametrize(
    ("name", "et", "ncr", "ed"),
    [
        ("brats2017", 4, 1, 2),
        ("brats2023", 3, 1, 2),
        ("brats2024-postop", 3, 1, 2),
        ("brats-ped", 1, 2, 4),
        ("msd", 3, 2, 1),
        ("nnunet", 3, 2, 1),
    ],
)
def test_the_numbers_of_each_convention(name, et, ncr, ed):
    label = np.array([[[0, et, ncr, ed]]], dtype=np.uint8)
    target = target_from_label(label, find_convention(name), "A")
    assert target.ravel().tolist() == [0, ET_CLASS, NCR_CLASS, ED_CLASS]
    assert target.dtype == np.uint8


def test_regions_of_both_numberings_agree():
    old = np.random.default_rng(1).choice(np.array([0, 1, 2, 4], dtype=np.uint8), (6, 5, 4))
    new = np.where(old == 4, 3, old).astype(np.uint8)
    first = target_from_label(old, find_convention("brats2017"), "A")
    second = target_from_label(new, find_convention("brats2023"), "A")
    for region in REGIONS:
        np.testing.assert_array_equal(region_mask(first, region), region_mask(second, region))
    np.testing.assert_array_equal(region_mask(first, Region.WT), old > 0)
    np.testing.assert_array_equal(region_mask(first, Region.TC), (old == 1) | (old == 4))
    np.testing.assert_array_equal(region_mask(first, Region.ET), old == 4)


def test_regions_are_nested(target):
    whole, core, enhancing = (region_mask(target, region) for region in REGIONS)
    assert [str(region) for region in REGIONS] == ["WT", "TC", "ET"]
    assert whole.dtype == np.bool_
    assert (enhancing <= core).all()
    assert (core <= whole).all()


def test_legal_values_that_are_no_class_of_their_own():
    four = np.array([[[4]]], dtype=np.uint8)
    assert target_from_label(four, find_convention("brats2024-postop"), "A").item() == 0
    assert target_from_label(four - 1, find_convention("brats-ped"), "A").item() == NCR_CLASS


@pytest.mark.parametrize("value", [3.0, 0.5, -1.0, 200.0, np.nan, np.inf])
def test_strange_values_are_refused(value):
    label = np.array([[[0.0, value]]], dtype=np.float32)
    with pytest.raises(InputError, match=rf"P01: .*\[0, 1, 2, 4\].*found {value:g}. To mend: .*--labels"):
        target_from_label(label, find_convention("brats2017"), "P01")


def test_unknown_conventions_are_refused():
    with pytest.raises(SettingError, match="choose one of brats2017"):
        find_convention("brats")


def test_volumes_are_those_of_the_masks(target):
    volumes = region_volumes_ml(target, 0.5)
    assert volumes == {region: 0.5 * region_mask(target, region).sum() for region in REGIONS}
    assert set(region_volumes_ml(np.zeros((2, 2, 2), np.uint8), 0.5).values()) == {0.0}
