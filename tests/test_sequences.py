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
    sequence_from_alias,
    sequence_from_filename,
    split_filename,
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
        ("sub-01_acq-ce_T1w", Sequence.T1),
        ("X_t2_flair", Sequence.FLAIR),
        ("X_t2-flair", Sequence.FLAIR),
        ("T1_study_t2", Sequence.T2),
        ("T2_study", None),
        ("T2_study_seg", None),
        ("caset1", None),
        ("X_t1_0001", None),
        ("", None),
    ],
)
def test_names_of_files(stem, sequence):
    assert sequence_from_filename(stem) is sequence


def test_file_names_come_apart():
    assert split_filename("BraTS-GLI-00000-000-T1c") == ("BraTS-GLI-00000-000", "T1c", Sequence.T1CE)
    assert split_filename("flair") == ("", "flair", Sequence.FLAIR)


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
