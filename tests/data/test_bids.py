from pathlib import Path

import pytest

from mindgap.cli.segment import Segment
from mindgap.cli.segment_cohort import is_for_cohort
from mindgap.data.bids import entities_of, is_bids
from mindgap.data.cohort import case_from_folder, discover
from mindgap.errors import InputError
from mindgap.files import write_json

NAMES = ("T1w", "ce-gadolinium_T1w", "acq-tse_T2w", "FLAIR")


@pytest.fixture
def dataset(tmp_path, write_nifti, make_image):
    """Two subjects, of which one has two sessions; the second session lacks T1 and T2."""
    root = tmp_path / "data ü"
    write_json(root / "dataset_description.json", {"Name": "phantoms", "BIDSVersion": "1.9.0"})
    for case, names in (("sub-01", NAMES), ("sub-02_ses-a", NAMES), ("sub-02_ses-b", NAMES[1::2])):
        folder = root.joinpath(*case.split("_"), "anat")
        for seed, name in enumerate(names):
            write_nifti(folder / f"{case}_{name}.nii.gz", make_image(seed))
    write_nifti(root / "derivatives" / "strip" / "sub-01" / "anat" / "sub-01_desc-brain_T1w.nii.gz", make_image())
    return root


def _named(case):
    return {str(sequence): source.path.name for sequence, source in case.images.items()}


def test_a_data_set_is_a_cohort_of_sessions_and_derivatives_are_not_entered(dataset):
    cohort = discover(dataset, label=False)
    assert (cohort.layout, cohort.convention, cohort.rejected) == ("bids", None, {})
    first, second, third = cohort.cases
    assert [case.case_id for case in cohort.cases] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert _named(first) == {
        "T1": "sub-01_T1w.nii.gz",
        "T2": "sub-01_acq-tse_T2w.nii.gz",
        "T1ce": "sub-01_ce-gadolinium_T1w.nii.gz",
        "FLAIR": "sub-01_FLAIR.nii.gz",
    }
    assert list(_named(second)) == list(_named(first))
    assert list(_named(third)) == ["T1ce", "FLAIR"]


@pytest.mark.parametrize("extra", ["run-2_T1w", "acq-mprage_T1w"])
def test_two_files_for_a_sequence_are_refused_with_both_names(extra, dataset, write_nifti, make_image):
    write_nifti(dataset / "sub-01" / "anat" / f"sub-01_{extra}.nii.gz", make_image(9))
    cohort = discover(dataset, label=False)
    assert [case.case_id for case in cohort.cases] == ["sub-02_ses-a", "sub-02_ses-b"]
    assert f"sub-01_{extra}.nii.gz" in cohort.rejected["sub-01"]
    assert "sub-01_T1w.nii.gz" in cohort.rejected["sub-01"]
    with pytest.raises(InputError, match="one file for T1 is due"):
        case_from_folder(dataset / "sub-01")


def test_a_subject_or_session_is_one_case_unless_it_holds_several(dataset):
    assert case_from_folder(dataset / "sub-01").case_id == "sub-01"
    assert case_from_folder(dataset / "sub-02" / "ses-b").case_id == "sub-02_ses-b"
    with pytest.raises(InputError, match="found sub-02_ses-a, sub-02_ses-b"):
        case_from_folder(dataset / "sub-02")
    for place, many in ((".", True), ("sub-01", False), ("sub-02", True), ("sub-02/ses-a", False)):
        assert is_for_cohort(Segment(case=dataset / place)) is many
    assert len(discover(dataset / "sub-02", label=False).cases) == 2


def test_cases_are_called_as_the_links_to_them(dataset, tmp_path):
    farm = tmp_path / "farm"
    for subject, target in (("sub-A", "sub-02/ses-a"), ("sub-B", "sub-02/ses-b")):
        (farm / subject).mkdir(parents=True)
        (farm / subject / "anat").symlink_to(dataset / target / "anat")
    cohort = discover(farm, label=False)
    assert [case.case_id for case in cohort.cases] == ["sub-A", "sub-B"]
    assert [len(case.images) for case in cohort.cases] == [4, 2]
    (tmp_path / "P01").symlink_to(dataset / "sub-01")
    assert case_from_folder(tmp_path / "P01").case_id == "P01"
    (tmp_path / "P02").symlink_to(dataset / "sub-02")
    assert [case.case_id for case in discover(tmp_path / "P02").cases] == ["P02_ses-a", "P02_ses-b"]


def test_two_folders_of_one_name_are_rejected_and_not_one_of_them_lost(dataset, write_nifti, make_image):
    write_nifti(dataset / "sub-02_ses-a" / "anat" / "sub-02_ses-a_FLAIR.nii.gz", make_image())
    cohort = discover(dataset, label=False)
    assert [case.case_id for case in cohort.cases] == ["sub-01", "sub-02_ses-b"]
    assert "two folders give this name" in cohort.rejected["sub-02_ses-a"]


def test_links_to_nothing_are_no_absent_sequences(dataset):
    folder = dataset / "sub-02" / "ses-b" / "anat"
    (folder / "sub-02_ses-b_T2w.nii.gz").symlink_to(dataset / ".git" / "annex" / "lost")
    (folder / "sub-02_ses-b_T2star.nii.gz").symlink_to(dataset / ".git" / "annex" / "lost")
    cohort = discover(dataset, label=False)
    assert [case.case_id for case in cohort.cases] == ["sub-01", "sub-02_ses-a"]
    assert "sub-02_ses-b_T2w.nii.gz (a link to nothing)" in cohort.rejected["sub-02_ses-b"]
    assert "datalad get" in cohort.rejected["sub-02_ses-b"]
    with pytest.raises(InputError, match="a link to nothing"):
        case_from_folder(folder.parent)


@pytest.mark.parametrize(
    ("place", "name"), [("ses-b", "sub-02_ses-b"), ("sub-01", "sub-01"), ("sub-01/anat", "sub-01")]
)
def test_a_closed_folder_is_listed_and_the_others_stay(place, name, dataset, monkeypatch):
    iterdir = Path.iterdir

    def listing(folder):
        if str(folder).endswith(place):
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listing)  # root, who may run the tests, can read what chmod has closed
    cohort = discover(dataset, label=False)
    assert [case.case_id for case in cohort.cases] == sorted({"sub-01", "sub-02_ses-a", "sub-02_ses-b"} - {name})
    assert list(cohort.rejected) == [name]
    assert "permission denied" in cohort.rejected[name]


def test_contrast_may_stand_in_another_entity(write_nifti, make_image, tmp_path):
    for seed, name in enumerate(("acq-pre_T1w", "acq-postcontrast_T1w", "FLAIR")):
        write_nifti(tmp_path / "sub-1" / "anat" / f"sub-1_{name}.nii.gz", make_image(seed))
    assert _named(case_from_folder(tmp_path / "sub-1")) == {
        "T1": "sub-1_acq-pre_T1w.nii.gz",
        "T1ce": "sub-1_acq-postcontrast_T1w.nii.gz",
        "FLAIR": "sub-1_FLAIR.nii.gz",
    }
    write_nifti(tmp_path / "sub-1" / "anat" / "sub-1_ce-none_T1w.nii.gz", make_image(3))
    with pytest.raises(InputError, match=r"sub-1_ce-none_T1w.nii.gz \(may be either\)"):
        case_from_folder(tmp_path / "sub-1")


def test_other_folders_are_no_bids(write_case, tmp_path):
    write_case(tmp_path / "sub-1")
    assert not is_bids(tmp_path)
    assert not is_bids(tmp_path / "sub-1")
    assert entities_of("sub-1_ses-2_T1w") == ({"sub": "1", "ses": "2"}, "T1w")


def test_numbered_channels_without_labels_are_read_by_dataset_json(tmp_path, write_nifti, make_image):
    root = tmp_path / "Dataset500"
    names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    for case, channels in (("A", (0, 1, 2, 3)), ("B", (1, 3))):
        for channel in channels:
            write_nifti(root / "imagesTs" / f"{case}_{channel:04d}.nii.gz", make_image(channel))
    with pytest.raises(InputError, match=r"channel_names in dataset\.json"):
        discover(root, label=False)
    write_json(root / "dataset.json", {"channel_names": names})
    for place in (root, root / "imagesTs"):
        first, second = discover(place, label=False).cases
        assert [_named(first)[name][2:6] for name in ("T1", "T1ce", "T2", "FLAIR")] == ["0000", "0001", "0002", "0003"]
        assert list(_named(second)) == ["T1ce", "FLAIR"]
        assert is_for_cohort(Segment(case=place))
