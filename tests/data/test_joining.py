"""Another cohort among those that train: what it brings, what it may not bring."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from mindgap.api import prepare
from mindgap.cli.prepare import folder_and_convention
from mindgap.data.prepared import Preparation
from mindgap.data.splits import find_split
from mindgap.data.store import open_store
from mindgap.errors import InputError, SettingError
from mindgap.experiment import PRESETS
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.runfiles import THRESHOLDS
from mindgap.session import open_session


@pytest.fixture
def data(tmp_path, write_case):
    """Three cases, and lists that put each into another part; the test list has one that is not at hand."""
    for name in ("P01", "P02", "P03"):
        write_case(tmp_path / "data" / name)
    lists = {"train": ["P01"], "val": ["P02"], "test": ["P03", "P09", "BraTS-GLI-00009-000"]}
    for part, ids in lists.items():
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / "lists" / f"{part}.txt").write_text("\n".join(ids))
    return tmp_path / "data"


def _prepare(data, also, split=None, labels="brats2017"):
    place = data.parent
    return prepare(
        data, place / "store", Preparation(), split=split or str(place / "lists"), also=also, labels=labels, workers=1
    )


def test_its_cases_train_and_neither_choose_nor_judge(data, write_case):
    more = data.parent / "more"
    for name in ("M1", "M2"):
        write_case(more / name, endings=("_t1", "_flair"), values=(1, 2, 3))
    write_case(more / "M3", label=None)
    plain = _prepare(data, {})
    store = _prepare(data, {more: "brats2023"})
    assert store.part("train") == ["P01", "M1", "M2"]
    assert (store.part("validation"), store.part("test")) == (["P02"], ["P03"])
    assert store.joined == {"M1", "M2"}
    assert set(store.failed) == {"M3"}
    assert store.split["sha256"] != plain.split["sha256"]
    assert store.split["name"] == "lists, and more to train"
    assert (store.source, store.convention) == (str(data), "brats2017"), "of those that judge"
    assert open_store(store.folder).joined == {"M1", "M2"}
    assert plain.joined == set()


def test_labels_are_read_by_the_convention_of_their_own_cohort(data, write_case):
    more = data.parent / "more"
    write_case(more / "M1", endings=("_t1", "_flair"), values=(1, 2, 3))
    codes = {}
    for convention in ("brats2023", "msd"):
        store = _prepare(data, {more: convention})
        assert [joined["convention"] for joined in store.split["joined"]] == [convention]
        codes[convention] = np.array(store.read("M1")[-1])
    assert not np.array_equal(codes["brats2023"], codes["msd"]), "1 and 2 are exchanged"


def test_a_convention_that_is_not_clear_has_to_be_named(data, write_case):
    write_case(data.parent / "more" / "M1", endings=("_T1w", "_FLAIR"))
    with pytest.raises(SettingError, match=r"--also .*more=NAME"):
        _prepare(data, {data.parent / "more": None})


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("P01", SettingError, "P01 is a case of"),
        ("P09", InputError, "to choose or judge, such as P09"),
        ("BraTS-GLI-00009-001", InputError, "to choose or judge, such as BraTS-GLI-00009"),
    ],
)
@pytest.mark.parametrize("fold", ["", ":1/2"])
def test_it_brings_no_case_again_and_nobody_whom_the_lists_withhold(data, write_case, name, kind, said, fold):
    write_case(data.parent / "more" / name)
    with pytest.raises(kind, match=said):
        _prepare(data, {data.parent / "more": "brats2017"}, split=f"{data.parent / 'lists'}{fold}")
    assert not (data.parent / "store").exists()


def test_a_fold_lets_those_train_whom_the_lists_have_for_validation(data, write_case):
    write_case(data / "P04")
    (data.parent / "lists" / "val.txt").write_text("P02\nP04\nP08")
    write_case(data.parent / "more" / "P08", endings=("_t1",))
    spec = str(data.parent / "lists")
    assert set(find_split(spec, ["P01", "P02"]).withheld) == {"P02", "P04", "P08", "P03", "P09", "BraTS-GLI-00009-000"}
    assert _prepare(data, {data.parent / "more": "brats2017"}, split=f"{spec}:1/3").joined == {"P08"}


def test_the_same_patient_under_another_name_is_found_by_the_voxels(data):
    other = data.parent / "more" / "X1"
    shutil.copytree(data / "P03", other)
    for path in list(other.iterdir()):
        path.rename(other / path.name.replace("P03", "X1"))
    with pytest.raises(InputError, match=r"X1, which is to train, is P0[23], which is to choose or judge"):
        _prepare(data, {data.parent / "more": "brats2017"})


def test_a_folder_may_be_given_with_its_convention():
    assert [(str(a), b) for a, b in map(folder_and_convention, ["more", "more=msd", "a=b", "a=b=nnunet"])] == [
        ("more", None),
        ("more", "msd"),
        ("a=b", None),
        ("a=b", "nnunet"),
    ]


def test_the_index_names_what_joined(data, write_case):
    write_case(data.parent / "more" / "M1", endings=("_t1",))
    folder = _prepare(data, {data.parent / "more": "brats2017"}).folder
    (joined,) = json.loads((folder / "store.json").read_text())["split"]["joined"]
    assert joined == {"source": str(data.parent / "more"), "convention": "brats2017", "cases": ["M1"]}


def test_the_threshold_baseline_is_that_of_the_data_at_hand(data, write_case, tmp_path):
    def thresholds(also):
        store = _prepare(data, also)
        out = tmp_path / f"run{len(also)}"
        settings = replace(PRESETS["quick"](store.folder, UnimodalRecipe()), subset="FLAIR", width=2, device="cpu")
        session = open_session(settings, out)
        assert len(session.cases) == 1 + len(also)
        session.write_thresholds()
        return (out / THRESHOLDS).read_text()

    write_case(data.parent / "more" / "M1", endings=("_flair", "_t1"))  # brighter where the others are darker
    assert thresholds({}) == thresholds({data.parent / "more": "brats2017"})
