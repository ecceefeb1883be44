"""Whose images lie in one folder, by their names."""

import pytest

from mindgap.data.cohort import case_from_folder, discover
from mindgap.data.naming import patients_apart
from mindgap.errors import InputError
from mindgap.sequences import read_filenames


def _apart(*stems):
    return patients_apart({stem: name.case for stem, name in read_filenames(stems).items()})


@pytest.mark.parametrize(
    "stems",
    [
        ("Smith_t1ce", "Jones_flair"),
        ("smith-t1", "jones-t2"),
        ("TUM_Smith_t1", "TUM_Jones_t2"),
        ("BraTS20_Training_001_t1", "BraTS20_Training_002_flair"),
        ("Brats18_2013_27_1_t1", "Brats18_2013_28_1_t2"),
        ("TCGA-02-0006_1996.08.23_t1", "TCGA-02-0009_1996.08.23_flair"),
        ("P1_t1", "P2_flair"),
        ("Patient_1_t1", "Patient_2_flair"),
        ("sub-01_T1w", "sub-02_FLAIR"),
        ("Smith_20200101_AX_T1", "Jones_20200101_AX_T2"),
    ],
)
def test_names_of_two_patients(stems):
    assert _apart(*stems) == stems


@pytest.mark.parametrize(
    "stems",
    [
        ("t1", "flair"),
        ("T1", "Smith_FLAIR"),
        ("Smith_John_T1", "Smith_FLAIR"),
        ("P1_AX_T1", "P1_SAG_FLAIR"),
        ("AX_T1_POST", "SAG_CUBE_T2"),
        ("P1_gd_ax_t1", "P1_sag_t2"),
        ("Kopf_T1", "brain_T2"),
        ("P1_unheard_T1", "P1_of_T2"),
        ("P1_1mm_T1", "P1_n4_T2"),
        ("20200101_T1", "20200601_FLAIR"),
        ("2020-01-02_T1", "2020-01-03_T2"),
        ("01.02.2020_T1", "01.03.2020_T2"),
        ("Smith_20200101101010_T1", "Smith_20200101111111_T2"),
        ("03_AX_T1", "05_AX_FLAIR"),
        ("0003_AX_T1", "0005_AX_FLAIR"),
        ("Smith_3_T1", "Smith_5_FLAIR"),
        ("3_Smith_T1", "4_Smith_T2"),
        ("Smith_series3_T1", "Smith_series4_T2"),
        ("run_1_T1", "run_2_T2"),
        ("UPENN-GBM-00001_11_T1", "UPENN-GBM-00001_21_FLAIR"),
        ("sub-01_run-1_T1w", "sub-01_run-2_FLAIR"),
        ("sub-01_ses-1_T1w", "sub-01_ses-2_FLAIR"),
        ("sub-01_acq-tse_T2w", "sub-01_acq-space_rec-x_FLAIR"),
        ("STUDY_T1_flair", "STUDY_t2"),
    ],
)
def test_dates_directions_and_runs_are_no_patients(stems):
    assert _apart(*stems) is None


def test_a_folder_with_files_of_two_patients_is_refused_with_both_names(tmp_path, write_nifti, make_image):
    for seed, name in enumerate(("a/Smith_t1ce", "a/Jones_flair", "b/P1_t1", "b/P1_ax_flair")):
        write_nifti(tmp_path / f"{name}.nii.gz", make_image(seed))
    with pytest.raises(InputError, match=r"expected files of one patient, found Jones_flair.*Smith_t1ce.*--t1ce"):
        case_from_folder(tmp_path / "a")
    cohort = discover(tmp_path, label=False)
    assert [case.case_id for case in cohort.cases] == ["b"]
    assert "expected" not in cohort.rejected["a"]
    assert "Jones_flair.nii.gz" in cohort.rejected["a"]


def test_subjects_of_bids_in_one_folder_are_refused(tmp_path, write_nifti, make_image):
    for seed, name in enumerate(("sub-01_ses-1_run-2_T1w", "sub-02_FLAIR")):
        write_nifti(tmp_path / "sub-01" / "anat" / f"{name}.nii.gz", make_image(seed))
    with pytest.raises(InputError, match=r"sub-01_ses-1_run-2_T1w.*sub-02_FLAIR"):
        case_from_folder(tmp_path / "sub-01")
