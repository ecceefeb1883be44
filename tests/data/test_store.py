import json
import shutil
import time

import numpy as np
import pytest
import torch

from mindgap.data import building
from mindgap.data.augmentation import Augmentation
from mindgap.data.building import prepare_cohort
from mindgap.data.codes import decode, encode
from mindgap.data.cohort import discover
from mindgap.data.prepared import Preparation
from mindgap.data.splits import Split
from mindgap.data.store import open_store
from mindgap.errors import MindgapError, SettingError
from mindgap.sequences import SEQUENCES, Sequence
from mindgap.shapes import BACKGROUND

OFF = Augmentation(flip=0.0, scale=0.0, scale_probability=0.0)
T1, T2, T1CE, FLAIR = SEQUENCES


def _split(train=(), validation=(), test=()):
    return Split("lists", tuple(train), tuple(validation), tuple(test))


# From a cohort to a store


@pytest.fixture
def cohort_folder(tmp_path, write_case):
    """Three cases; P02 has no T1 and no T2."""
    write_case(tmp_path / "data" / "P01")
    write_case(tmp_path / "data" / "P02", endings=("_t1ce", "_flair"))
    write_case(tmp_path / "data" / "P03")
    return tmp_path / "data"


def _prepare(folder, out, preparation=None, labels="brats2017", split=None):
    cohort = discover(folder, labels=labels)
    return prepare_cohort(cohort, out, preparation or Preparation(), split or _split(("P01", "P02"), ("P03",)))


def _stamps(out):
    return {path.name: path.stat().st_mtime_ns for path in sorted((out / "cases").glob("*.npy"))}


def test_a_store_is_read_as_it_was_written(tmp_path, cohort_folder):
    written = _prepare(cohort_folder, tmp_path / "store", Preparation(spacing_mm=1.5, normalisation="zscore"))
    assert open_store(tmp_path / "store") == written
    assert list(written.cases) == ["P01", "P02", "P03"]
    assert (written.part("train"), written.part("validation"), written.part("test")) == (["P01", "P02"], ["P03"], [])
    assert written.failed == {}
    assert written.convention == "brats2017"
    assert written.sequences == SEQUENCES


def test_codes_on_disk_are_the_prepared_case(tmp_path, cohort_folder):
    store = _prepare(cohort_folder, tmp_path / "store")
    entry = store.cases["P02"]
    assert entry.sequences == (T1CE, FLAIR)
    codes = store.read("P02")
    assert codes.dtype == np.uint8
    assert codes.shape == (3, *entry.shape) == (3, 8, 6, 6)
    assert entry.boxes == (((0, 8), (0, 6), (0, 6)),) * 2
    assert codes[:2].min() >= 1
    assert set(np.unique(codes[-1])) == {0, 1, 2, 3}


def test_a_finished_case_is_not_made_again(tmp_path, cohort_folder):
    first = _prepare(cohort_folder, tmp_path / "store")
    before = _stamps(tmp_path / "store")
    again = _prepare(cohort_folder, tmp_path / "store")
    assert _stamps(tmp_path / "store") == before
    assert again == first


def test_a_case_whose_source_changed_is_made_again(tmp_path, cohort_folder, write_nifti, make_image):
    first = _prepare(cohort_folder, tmp_path / "store")
    before = _stamps(tmp_path / "store")
    write_nifti(cohort_folder / "P03" / "P03_t1.nii.gz", make_image(77))
    second = _prepare(cohort_folder, tmp_path / "store")
    changed = {name for name, stamp in _stamps(tmp_path / "store").items() if stamp != before[name]}
    assert changed == {"P03.npy"}
    assert second.cases["P03"].sha256 != first.cases["P03"].sha256
    assert second.cases["P01"] == first.cases["P01"]


def test_a_store_of_other_settings_and_the_folder_of_the_data_are_left_as_they_are(tmp_path, cohort_folder):
    _prepare(cohort_folder, tmp_path / "store")
    before = _stamps(tmp_path / "store")
    with pytest.raises(SettingError, match=r"holds cases that were prepared with .*, not .*zscore"):
        _prepare(cohort_folder, tmp_path / "store", Preparation(normalisation="zscore"))
    assert _stamps(tmp_path / "store") == before
    with pytest.raises(SettingError, match="holds the data: name another folder"):
        _prepare(cohort_folder, cohort_folder)


@pytest.mark.parametrize("name", ["P01.npy", "P01.json"])
@pytest.mark.parametrize("damage", [b"", b"{", b'{"case_id": "P01"}', b"garbage"])
def test_a_damaged_file_is_made_again(tmp_path, cohort_folder, name, damage):
    first = _prepare(cohort_folder, tmp_path / "store")
    codes = np.array(first.read("P01"))
    (tmp_path / "store" / "cases" / name).write_bytes(damage)
    second = _prepare(cohort_folder, tmp_path / "store")
    assert second == first
    np.testing.assert_array_equal(second.read("P01"), codes)


@pytest.mark.parametrize("keep", [0, 50, 500])
def test_a_file_cut_short_is_named_when_it_is_read(tmp_path, cohort_folder, keep):
    store = _prepare(cohort_folder, tmp_path / "store")
    path = store.path_of("P01")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MindgapError, match=r"P01\.npy.*mindgap prepare"):
        store.read("P01")
    path.unlink()
    with pytest.raises(MindgapError, match=r"P01\.npy.*mindgap prepare"):
        store.read("P01")


def test_bad_cases_are_listed_and_the_rest_goes_on(tmp_path, cohort_folder, write_case):
    write_case(cohort_folder / "B1", values=(1, 2, 9))
    write_case(cohort_folder / "B2")
    (cohort_folder / "B2" / "B2_t2.nii.gz").write_bytes(b"garbage")
    write_case(cohort_folder / "B3", label="")
    seen = []
    cohort = discover(cohort_folder, labels="brats2017")
    store = prepare_cohort(
        cohort,
        tmp_path / "store",
        Preparation(),
        _split(("P01", "B1", "B3"), ("P02",)),
        progress=lambda *a: seen.append(a),
    )
    assert list(store.cases) == ["P01", "P02", "P03"]
    assert list(store.failed) == ["B1", "B2", "B3"]
    assert "9" in store.failed["B1"]
    assert "B2_t2.nii.gz" in store.failed["B2"]
    assert "reference segmentation" in store.failed["B3"]
    assert store.part("train") == ["P01"]
    assert store.split["unassigned"] == ["B2", "P03"]
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {case for _, _, case in seen} == {"P01", "P02", "P03", "B1", "B2", "B3"}
    assert open_store(tmp_path / "store") == store


def test_a_file_that_goes_away_is_its_cases_matter(tmp_path, cohort_folder):
    cohort = discover(cohort_folder, labels="brats2017")
    cohort.cases[0].images[Sequence.T1].path.unlink()
    store = prepare_cohort(cohort, tmp_path / "store", Preparation(), _split(("P01", "P02"), ("P03",)))
    assert list(store.failed) == ["P01"]
    assert "t1" in store.failed["P01"].lower()


def test_what_has_not_begun_does_not_begin_after_an_interruption(tmp_path, cohort_folder, monkeypatch):
    begun = []

    def interrupted(files, convention, **options):
        begun.append(files.case_id)
        if len(begun) == 1:
            raise KeyboardInterrupt
        time.sleep(0.5)
        raise OSError

    monkeypatch.setattr(building, "_prepare_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(
            discover(cohort_folder, labels="brats2017"), tmp_path / "store", Preparation(), _split(("P01",)), workers=1
        )
    assert len(begun) <= 2, "the one that was running, and what the thread took up before it was told"


def test_a_cohort_without_any_usable_case_is_refused(tmp_path, write_case):
    write_case(tmp_path / "data" / "B1", values=(9,))
    with pytest.raises(SettingError, match=r"(?s)no case of .*B1"):
        _prepare(tmp_path / "data", tmp_path / "store", split=_split(("B1",)))
    assert not (tmp_path / "store" / "store.json").exists()


def test_a_cohort_whose_labels_are_not_clear_is_refused(tmp_path, write_case):
    write_case(tmp_path / "data" / "P01", endings=("_T1w", "_T2w", "_T1gd", "_FLAIR"))
    with pytest.raises(SettingError, match="--labels"):
        _prepare(tmp_path / "data", tmp_path / "store", labels=None)


def test_what_is_no_store_is_refused(tmp_path, cohort_folder):
    with pytest.raises(SettingError, match="mindgap prepare"):
        open_store(tmp_path)
    _prepare(cohort_folder, tmp_path / "store")
    index = tmp_path / "store" / "store.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "format": 99}))
    with pytest.raises(SettingError, match="format 99"):
        open_store(tmp_path / "store")


def test_a_store_whose_columns_cannot_be_placed_is_refused(tmp_path, cohort_folder):
    _prepare(cohort_folder, tmp_path / "store")
    index = tmp_path / "store" / "store.json"
    value = json.loads(index.read_text())
    value["cases"][0]["sequences"][1] = "SWI"
    index.write_text(json.dumps(value))
    with pytest.raises(SettingError, match=r"store\.json: expected sequences .* found 'T1', 'SWI'.*Prepare the data"):
        open_store(tmp_path / "store")


def test_a_store_may_be_moved(tmp_path, cohort_folder):
    store = _prepare(cohort_folder, tmp_path / "store")
    codes = np.array(store.read("P01"))
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    np.testing.assert_array_equal(open_store(tmp_path / "elsewhere").read("P01"), codes)


def test_a_store_of_float16_is_as_exact_as_float16_and_made_anew_only_once(tmp_path, cohort_folder):
    cohort, split = discover(cohort_folder, labels="brats2017"), _split(("P01", "P02"), ("P03",))
    coarse = prepare_cohort(cohort, tmp_path / "store", Preparation(), split)
    fingerprint, bytes_ = coarse.fingerprint, coarse.read("P01")
    fine = prepare_cohort(cohort, tmp_path / "store", Preparation(), split, codes="float16")
    stamps = _stamps(tmp_path / "store")
    again = prepare_cohort(cohort, tmp_path / "store", Preparation(), split, codes="float16")
    assert _stamps(tmp_path / "store") == stamps
    assert again.fingerprint == fine.fingerprint != fingerprint
    halves = fine.read("P01")
    assert halves.dtype == np.float16
    image = decode(torch.from_numpy(halves[:-1])).numpy()
    apart = encode(image).astype(int) - bytes_[:-1].astype(int)
    assert np.abs(apart).max() <= 1  # a value halfway between two codes may be rounded either way
    assert np.array_equal(image == BACKGROUND, bytes_[:-1] == 0)
    assert np.array_equal(halves[-1], bytes_[-1])
