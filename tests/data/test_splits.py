import pytest

from mindgap.data.splits import PUBLISHED, Split, find_split, published_split
from mindgap.errors import InputError, SettingError

IDS = [f"case{index:03d}" for index in range(100)]


def _parts(split):
    return split.train, split.validation, split.test


def test_the_published_split_is_the_published_one():
    split = published_split("protokd")
    assert [len(part) for part in _parts(split)] == [200, 28, 57]
    assert len(set().union(*_parts(split))) == 285
    assert split.train[0] == "Brats18_TCIA13_634_1"
    assert split.sha256 == "84edd4dcea1f240acf6aff15e95475f0c3339c9c74a9ec1fd6771d8bed7120af"
    assert find_split("protokd", sum(_parts(split), ())) == split
    assert list(PUBLISHED) == ["protokd"]


def test_restriction_keeps_order_and_tells_the_rest():
    whole = published_split("protokd")
    there = [*whole.train[5:2:-1], whole.validation[1], "stranger"]
    split = find_split("protokd", there)
    assert split.train == whole.train[3:6]
    assert split.validation == (whole.validation[1],)
    assert split.test == ()
    assert split.unassigned(there) == ("stranger",)
    assert split.sha256 != whole.sha256


@pytest.mark.parametrize(("part", "lost"), [("train", "train"), ("validation", "validation")])
def test_a_split_that_leaves_nothing_is_refused(part, lost):
    whole = published_split("protokd")
    there = [case for ids in _parts(whole) for case in ids if case not in getattr(whole, part)]
    with pytest.raises(InputError, match=rf"split protokd: expected at least one {lost} case.* To mend"):
        find_split("protokd", there)


def test_the_hash_forgets_the_order_of_lines_but_not_the_lists():
    split = Split("s", ("a", "b"), ("c",), ("d",))
    assert Split("t", ("b", "a"), ("c",), ("d",)).sha256 == split.sha256
    assert Split("s", ("a",), ("b", "c"), ("d",)).sha256 != split.sha256


@pytest.mark.parametrize("lists", [(("a",), ("a",), ()), (("a",), ("b",), ("b",)), (("a", "a"), ("b",), ())])
def test_overlap_is_refused(lists):
    with pytest.raises(InputError, match=r"split s: .* in \w+ and \w+. To mend: strike it"):
        Split("s", *lists)


def test_a_folder_of_lists(tmp_path):
    (tmp_path / "my_train_list.txt").write_text("\ufeffb\n# a comment\n\n a \n", encoding="utf-8")
    (tmp_path / "VAL.txt").write_text("c")
    (tmp_path / "test1.txt").write_text("")
    (tmp_path / "._VAL.txt").write_bytes(b"x")
    assert _parts(find_split(str(tmp_path), ["a", "b", "c"])) == (("b", "a"), ("c",), ())
    (tmp_path / "val2.txt").write_text("c")
    with pytest.raises(InputError, match=r"one file \*val\*.txt, found VAL.txt, val2.txt. To mend"):
        find_split(str(tmp_path), ["a"])
    (tmp_path / "test1.txt").unlink()
    (tmp_path / "val2.txt").unlink()
    with pytest.raises(InputError, match=r"\*test\*.txt, found none"):
        find_split(str(tmp_path), ["a"])
    (tmp_path / "test1.txt").write_text("a\n")
    with pytest.raises(InputError, match="a in train and test"):
        find_split(str(tmp_path), ["a"])


def test_fractions_are_drawn_by_seed_and_not_by_order():
    split = find_split("0.7/0.1/0.2", IDS)
    assert [len(part) for part in _parts(split)] == [70, 10, 20]
    assert sorted(sum(_parts(split), ())) == IDS
    assert find_split("0.7/0.1/0.2", IDS[::-1]).sha256 == split.sha256
    assert find_split("0.7/0.1/0.2", IDS, seed=1).sha256 != split.sha256
    assert split.unassigned(IDS) == ()
    assert "seed 0" in split.name


@pytest.mark.parametrize("count", range(2, 12))
def test_few_cases_still_train_and_validate(count):
    split = find_split("0.7/0.1/0.2", IDS[:count])
    assert min(len(split.train), len(split.validation)) >= 1
    assert sum(map(len, _parts(split))) == count


def test_one_case_cannot_be_split():
    with pytest.raises(InputError, match="at least one train case"):
        find_split("0.7/0.1/0.2", IDS[:1])


@pytest.mark.parametrize("spec", ["0.7/0.1", "0.7/0.1/0.1", "1/0/0", "0/0.5/0.5", "1..0/0/0", "7/1/2"])
def test_fractions_have_to_be_fractions(spec):
    with pytest.raises(SettingError, match=r"three fractions.*0.7/0.1/0.2"):
        find_split(spec, IDS)


def test_unknown_words_are_refused():
    with pytest.raises(SettingError, match="protokd, a folder"):
        find_split("no-such-split", IDS)
    with pytest.raises(SettingError, match="choose one of protokd"):
        published_split("brats")


@pytest.mark.real
def test_the_real_cases_are_all_assigned(brats):
    ids = [folder.name for grade in ("HGG", "LGG") for folder in (brats / grade).iterdir()]
    split = find_split("protokd", ids)
    assert [len(part) for part in _parts(split)] == [23, 5, 9]
    assert split.unassigned(ids) == ()


def test_folds_share_out_training_and_validation_cases_and_leave_test_cases_alone():
    there = sum(_parts(published_split("protokd")), ())[::9]
    whole = find_split("protokd", there)
    folds = [find_split(f"protokd:{number}/3", there) for number in (1, 2, 3)]
    judged = [case for fold in folds for case in fold.test]
    assert sorted(judged) == sorted((*whole.train, *whole.validation))
    for fold in folds:
        assert fold.validation == ()
        assert set(fold.train) == set(judged) - set(fold.test)
        assert not {*fold.train, *fold.test} & set(whole.test)
    assert len({fold.sha256 for fold in folds}) == 3


@pytest.mark.parametrize("spec", ["protokd:0/3", "protokd:4/3", "protokd:1/1"])
def test_a_fold_that_does_not_exist_is_refused(spec):
    with pytest.raises(SettingError, match="counted from 1"):
        find_split(spec, published_split("protokd").train)
