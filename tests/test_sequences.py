import pytest

from mindgap.errors import SettingError
from mindgap.sequences import (
    ALIASES,
    SEQUENCES,
    SUBSETS,
    Sequence,
    format_subset,
    make_subset,
    parse_subset,
    parse_subsets,
    read_filenames,
    sequence_from_alias,
    sequence_from_filename,
    split_filename,
    subset_from_names,
)


def test_the_order_is_the_order():
    assert [str(sequence) for sequence in SEQUENCES] == ["T1", "T2", "T1ce", "FLAIR"]


def test_fifteen_subsets_and_no_empty_one():
    assert len(SUBSETS) == len(set(SUBSETS)) == 15
    assert all(subset and subset == make_subset(subset) for subset in SUBSETS)
    assert SUBSETS[-1] == SEQUENCES


@pytest.mark.parametrize(("alias", "sequence"), [(a, s) for s, aliases in ALIASES.items() for a in aliases])
def test_every_alias_in_every_place(alias, sequence):
    assert sequence_from_alias(f" {alias.upper()} ") is sequence
    assert parse_subset(alias) == (sequence,)
    for stem in (alias, f"case_{alias}", f"case-{alias.upper()}", f"a.b.{alias}", f"a {alias}"):
        assert sequence_from_filename(stem) is sequence


@pytest.mark.parametrize(
    ("stem", "sequence"),
    [
        ("Brats18_2013_27_1_t1ce", Sequence.T1CE),
        ("BraTS-GLI-00000-000-t2f", Sequence.FLAIR),
        ("sub-01_ses-01_ce-gadolinium_T1w", Sequence.T1CE),
        ("sub-01_ce-gd_run-1_T1w", Sequence.T1CE),
        ("sub-01_acq-ce_T1w", None),
        ("sub-01_acq-ce_ce-gadolinium_T1w", Sequence.T1CE),
        ("sub-01_acq-ce_FLAIR", Sequence.FLAIR),
        ("X_t2_flair", Sequence.FLAIR),
        ("X_t2-flair", Sequence.FLAIR),
        ("T1_study_t2", Sequence.T2),
        ("T2_study", None),
        ("T2_study_seg", None),
        ("caset1", None),
        ("X_t1_0001", None),
        ("", None),
        ("P1_T1_FLAIR", Sequence.T1),
        ("P1_T2_FLAIR", Sequence.FLAIR),
        ("P1_T1_T2_FLAIR", Sequence.FLAIR),
        ("P1_T1_FLAIR_post", Sequence.T1CE),
        ("SAG_T1_3D_GD", Sequence.T1CE),
        ("t1_mprage_km", Sequence.T1CE),
        ("T1_MPRAGE_post_contrast", Sequence.T1CE),
        ("T1_with_contrast", Sequence.T1CE),
        ("T1_without_contrast", Sequence.T1),
        ("T1_se_tra", Sequence.T1),
        ("AX_T1_POST_FS", Sequence.T1CE),
        ("T1_FS", None),
        ("T2w_TSE_tra", Sequence.T2),
        ("Ax_T2_FLAIR_FS", Sequence.FLAIR),
        ("t2_tirm_tra_dark-fluid", None),
        ("T2_post", None),
        ("T1_with", None),
        ("P1_post_T1", Sequence.T1CE),
        ("P1_gd_T1w", Sequence.T1CE),
        ("P1_postcontrast_ax_T1", Sequence.T1CE),
        ("sub-1_acq-postcontrast_T1w", Sequence.T1CE),
        ("P1_T1_GD", Sequence.T1CE),
        ("P1_T1_post", Sequence.T1CE),
        ("P1_T1_post_contrast", Sequence.T1CE),
        ("P1_T1_C", Sequence.T1CE),
        ("P1_T1_C+", Sequence.T1CE),
        ("P1_T1+C", Sequence.T1CE),
        ("P1_T1w-gadolinium", Sequence.T1CE),
        ("P1_CT1", Sequence.T1CE),
        ("P1_T1postGd", Sequence.T1CE),
        ("P1_pre_T1", Sequence.T1),
        ("P1_precontrast_T1", Sequence.T1),
        ("P1_nongd_T1", Sequence.T1),
        ("P1_no_gd_T1", Sequence.T1),
        ("P1_T1_without_contrast", Sequence.T1),
        ("P1_post_op_T1", Sequence.T1),
        ("P1_postop_T1", Sequence.T1),
        ("P1_native_space_gd_T1", Sequence.T1CE),
        ("sub-GD_ses-post_T1w", Sequence.T1),
        ("CON_01_t1", Sequence.T1),
        ("P1_post_T2", Sequence.T2),
        ("P1_T2_post", None),
        ("P1_FLAIR_gd", None),
    ],
)
def test_names_of_files(stem, sequence):
    assert sequence_from_filename(stem) is sequence


def test_file_names_come_apart():
    assert split_filename("BraTS-GLI-00000-000-T1c") == ("BraTS-GLI-00000-000", "T1c", Sequence.T1CE)
    assert split_filename("flair") == ("", "flair", Sequence.FLAIR)


@pytest.mark.parametrize(
    "stem",
    ["P1_pre_post_T1", "P1_T1-C", "P1_c_T1", "sub-1_ce-none_T1w", "P1_gd_t1n", "POST_01_t1", "GD-17_t1", "A_CE_3_t1"],
)
def test_t1_or_t1ce_is_left_open_where_a_name_may_mean_either(stem):
    assert split_filename(stem)[2] is None
    assert sequence_from_filename(stem) is None


@pytest.mark.parametrize(
    ("case_id", "names"),
    [
        ("POST_01", {"POST_01_t1": "T1"}),
        ("GD-17", {"GD-17_t1": "T1", "GD-17_t1_gd": "T1ce"}),
        ("GD-17", {"gd-17_post_t1": "T1ce"}),
        ("GD", {"GD_t1": "T1", "GD_gd_t1": "T1ce"}),
        ("P1_post", {"P1_post_T1": "T1", "P1_post_T2": "T2"}),
        ("P1_post", {"post_T1": "T1"}),
        ("P1_post", {"P1_T1_post": "None"}),
        ("P1_post_T1", {"P1_post_T1": "T1ce"}),
        ("P1", {"P1_gd_ax_t1": "T1ce"}),
        ("P1", {"gd_ax_t1": "T1ce", "ax_t1": "T1"}),
        ("P1", {"P1_post_T1": "None", "P1_post_T2": "T2"}),
        ("P1", {"P1_post_T1": "T1ce", "P1_T1": "T1", "P1_post_T2": "T2"}),
        ("", {"POST_01_t1": "T1", "POST_01_t2": "T2"}),
        ("T1_study", {"T1_study_flair": "FLAIR", "T1_study_t1": "T1"}),
        ("STUDY_T1", {"STUDY_T1_flair": "FLAIR"}),
        ("", {"STUDY_T1_flair": "FLAIR", "STUDY_T1_t2": "T2"}),
        ("T1", {"T1_FLAIR": "T1"}),
        ("P1", {"T1_FLAIR": "T1", "T1_CE": "T1ce"}),
    ],
)
def test_the_name_of_the_case_says_nothing_of_contrast(case_id, names):
    assert {stem: str(name.sequence) for stem, name in read_filenames(names, case_id).items()} == names


def test_words_of_contrast_go_with_the_alias():
    assert split_filename("P1_post_T1") == ("P1", "post_T1", Sequence.T1CE)
    assert split_filename("P1_T1_GD") == ("P1", "T1_GD", Sequence.T1CE)
    assert split_filename("P1_T1_FLAIR") == ("P1", "T1_FLAIR", Sequence.T1)
    assert split_filename("sub-1_ses-2_ce-gd_T1w") == ("sub-1_ses-2", "ce-gd_T1w", Sequence.T1CE)
    assert split_filename("sub-1_acq-postcontrast_T1w") == ("sub-1", "acq-postcontrast_T1w", Sequence.T1CE)


@pytest.mark.parametrize("subset", SUBSETS)
def test_subsets_are_read_as_written(subset):
    assert parse_subset(format_subset(subset)) == subset
    assert parse_subset(", ".join(format_subset(subset[::-1]).split("+"))) == subset


def test_all_is_all():
    assert parse_subset(" ALL ") == SEQUENCES
    assert parse_subset("flair+t1gd+t1c") == (Sequence.T1CE, Sequence.FLAIR)


@pytest.mark.parametrize("text", ["", "+", " , "])
def test_the_empty_subset_is_refused(text):
    with pytest.raises(SettingError, match="at least one of T1, T2, T1ce, FLAIR"):
        parse_subset(text)
    with pytest.raises(SettingError, match="at least one"):
        format_subset(())


def test_strangers_are_refused():
    with pytest.raises(SettingError, match="'DWI' is no sequence: write T1"):
        parse_subset("T1+DWI")


def test_several_subsets_come_once_each_in_the_order_of_the_fifteen():
    assert parse_subsets("all") == parse_subsets(" ALL ") == SUBSETS
    found = parse_subsets("flair+t1gd, T1,FLAIR+T1ce, t2 ")
    assert [format_subset(subset) for subset in found] == ["T1", "T2", "T1ce+FLAIR"]
    for text in ("", "T1,", "T1,PD"):
        with pytest.raises(SettingError):
            parse_subsets(text)


@pytest.mark.parametrize(
    ("stem", "sequence"),
    [
        ("flair_to_t1", None),
        ("FLAIR_coreg_T1ce", None),
        ("T2_coreg_T1", None),
        ("T2-to-FLAIR", None),
        ("scan_in_t2", None),
        ("FLAIR_space-T1w", None),
        ("t1ce_t2", None),
        ("sub-01_space-T1w_FLAIR", Sequence.FLAIR),
        ("sub-01_space-FLAIR_T1w", Sequence.T1),
        ("AX_T2_FLAIR", Sequence.FLAIR),
        ("T2_TSE_FLAIR", Sequence.FLAIR),
        ("T1_post_T1ce", Sequence.T1CE),
        ("reg_flair", Sequence.FLAIR),
        ("visit_2_t1", Sequence.T1),
        ("to_t1", Sequence.T1),
    ],
)
def test_a_name_that_holds_two_sequences_leaves_open_which_it_is(stem, sequence):
    assert read_filenames([stem])[stem].sequence is sequence


@pytest.mark.parametrize("stem", ["adc_to_flair", "dwi_in_t2", "SWI_T1"])
def test_an_image_of_another_kind_names_none_of_the_four(stem):
    assert stem not in read_filenames([stem])


def test_the_name_of_the_case_is_no_sequence_before_another():
    assert read_filenames(["T2study_01_t1", "T2study_01_flair"])["T2study_01_t1"].sequence is Sequence.T1
    assert read_filenames(["flair_01_t1"], "flair_01")["flair_01_t1"].sequence is Sequence.T1
    assert read_filenames(["ct_7_t1", "ct_7_t2"])["ct_7_t1"].sequence is Sequence.T1


def test_names_of_columns_are_all_read_or_none():
    assert all(subset_from_names(map(str, subset)) == subset for subset in SUBSETS)
    for names in (["T1", "SWI"], ["T2", "T1"], ["T1", "t1n"], []):
        with pytest.raises(SettingError, match="each once and in this order"):
            subset_from_names(names)
