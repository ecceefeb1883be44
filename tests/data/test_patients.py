import pytest

from mindgap.data.patients import by_patient, of_same_patients, patient_of
from mindgap.data.splits import Split, find_split, published_split
from mindgap.errors import InputError

LATER = [f"BraTS-GLI-{patient:05d}-{point}" for patient in range(20) for point in (100, 101)]


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("sub-01_ses-post", "sub-01"),
        ("sub-01", "sub-01"),
        ("BraTS-GLI-02062-101", "BraTS-GLI-02062"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("Brats18_TCIA13_634_1", "Brats18_TCIA13_634_1"),
        ("UCSF-PDGM-0429_FU003d", "UCSF-PDGM-0429"),
        ("P-01-001", "P-01-001"),
    ],
)
def test_only_names_that_hold_a_time_point_tell_another_patient(case, patient):
    assert patient_of(case) == patient


def test_the_published_split_has_no_patient_twice():
    split = published_split("protokd")
    everyone = (*split.train, *split.validation, *split.test)
    assert len(by_patient(everyone)) == 285


@pytest.mark.parametrize("spec", ["0.7/0.1/0.2", *(f"0.7/0.1/0.2:{fold}/4" for fold in (1, 2, 3, 4))])
def test_a_patient_is_in_one_part_of_a_draw_and_of_a_fold(spec):
    split = find_split(spec, LATER)
    parts = (split.train, split.validation, split.test)
    assert not of_same_patients(split.train, (*split.validation, *split.test))
    assert not of_same_patients(split.validation, split.test)
    assert all(len(part) % 2 == 0 for part in parts), "both time points of each"
    if ":" not in spec:
        assert [len(part) for part in parts] == [28, 4, 8]


def test_folds_judge_every_patient_once():
    judged = [case for fold in (1, 2, 3, 4) for case in find_split(f"0.7/0.1/0.2:{fold}/4", LATER).test]
    held = find_split("0.7/0.1/0.2", LATER).test
    assert sorted(judged) == sorted(set(LATER) - set(held))


def test_lists_that_share_a_patient_are_refused():
    with pytest.raises(InputError, match=r"BraTS-GLI-00000-101 in test, and BraTS-GLI-00000 in train"):
        Split("s", ("BraTS-GLI-00000-100",), ("BraTS-GLI-00001-100",), ("BraTS-GLI-00000-101",))
