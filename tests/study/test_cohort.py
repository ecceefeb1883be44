"""Which store a study takes, and which it refuses before anything is trained."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mindgap.data.store import INDEX, open_store
from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, write_json, write_text
from mindgap.study.cohort import prepare_place, split_of
from mindgap.study.scale import Scale, find_scale

TINY = Scale("tiny", 4.0, (), {"": 3}, {"": 0.1})


def prepared(place, scale, *, split="auto", out=None):
    nothing = lambda name: lambda done, total, what: None  # noqa: E731
    return prepare_place(out or place.out, scale, data=place.data, split=split, device="cpu", stage=nothing)


def test_a_store_is_taken_with_the_split_it_was_made_with_or_none_named(place):
    before = (place.store / INDEX).stat().st_mtime_ns
    for split in ("auto", str(place.data / "splits")):
        assert prepared(place, TINY, split=split).store == place.store
    assert (place.store / INDEX).stat().st_mtime_ns == before


def test_another_split_than_the_stores_is_refused(place, tmp_path):
    lists = {path.name: path.read_text() for path in (place.data / "splits").glob("*.txt")}
    swapped = {"train.txt": lists["train.txt"], "val.txt": lists["test.txt"], "test.txt": lists["val.txt"]}
    for name, text in swapped.items():
        write_text(tmp_path / "swapped" / name, text)
    with pytest.raises(SettingError, match="splits; in swapped the cases that validate and test are others"):
        prepared(place, TINY, split=str(tmp_path / "swapped"))
    with pytest.raises(SettingError, match=r"in 0.5/0.2/0.3 seed 0 the cases"):
        prepared(place, TINY, split="0.5/0.2/0.3")


def test_a_study_that_was_moved_goes_on_and_one_about_other_data_is_refused(place, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(place.data, old / "cohort")
    nothing = lambda name: lambda done, total, what: None  # noqa: E731
    place_of = partial(prepare_place, scale=TINY, device="cpu", stage=nothing)
    place_of = partial(place_of, split=str(place.data / "splits"))
    before = open_store(place_of(old, data=old / "cohort").store)
    shutil.copytree(old / "cohort", tmp_path / "copy")
    index = (old / "store" / INDEX).read_text()
    with pytest.raises(SettingError, match="this study is about"):
        place_of(old, data=tmp_path / "copy")
    old.rename(new)
    shutil.rmtree(new / "cohort" / "splits")  # with no lists beside the data "auto" is another split
    after = open_store(place_of(new, data=new / "cohort", split="auto").store)
    assert Path(after.source) == new / "cohort"
    assert replace(after, source=before.source, folder=before.folder) == before
    assert index != (new / "store" / INDEX).read_text()
    (new / "cohort").rename(tmp_path / "more")
    one = next((tmp_path / "more").glob("*GG/*"))
    shutil.copytree(one, one.with_name("Phantom_9"))
    for path in one.with_name("Phantom_9").iterdir():
        path.rename(path.with_name(path.name.replace(one.name, "Phantom_9")))
    with pytest.raises(SettingError, match="this study is about"):
        place_of(new, data=tmp_path / "more", split="auto")


def test_a_store_without_a_sequence_is_refused_before_anything_is_trained(place, tmp_path):
    index = read_json(place.store / INDEX)
    for case in index["cases"]:
        places = [n for n, name in enumerate(case["sequences"]) if name not in ("T2", "FLAIR")]
        case["sequences"], case["boxes"] = ([case[key][n] for n in places] for key in ("sequences", "boxes"))
    write_json(tmp_path / "store" / INDEX, index)
    with pytest.raises(SettingError, match="has T2 or FLAIR, and the studies need all of T1, T2, T1ce, FLAIR"):
        prepared(place, TINY, out=tmp_path)


def test_a_split_without_test_cases_is_refused_before_anything_is_trained(place, tmp_path):
    with pytest.raises(SettingError, match=r"leaves no case to test .*, 0 to test.*--split"):
        prepared(place, TINY, split="0.7/0.3/0", out=tmp_path)


def test_at_the_papers_scale_no_split_named_is_the_published_one():
    data = Path("brats")
    assert split_of("auto", find_scale("paper"), data=data) == "protokd"
    assert split_of("0.7/0.1/0.2", find_scale("paper"), data=data) == "0.7/0.1/0.2"
    assert split_of("auto", find_scale("mini"), data=data) == "auto"


def test_the_published_split_says_when_the_cohort_is_another(place, tmp_path):
    scale = find_scale("paper")
    with pytest.raises(MindgapError, match="split protokd: expected at least one train case"):
        prepared(place, scale, out=tmp_path)
    assert not (tmp_path / "store").exists()
