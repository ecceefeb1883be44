import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from mindgap.batch import BACKGROUND, brain_of
from mindgap.data.augmentation import Augmentation, draw
from mindgap.data.cohort import discover
from mindgap.data.preparation import prepare_cohort
from mindgap.data.prepared import Placement, Preparation, PreparedCase, decode, encode
from mindgap.data.splits import Split
from mindgap.data.store import ResidentCases, Store, open_store, write_case, write_index
from mindgap.errors import MindgapError, SettingError
from mindgap.regions import ED_CLASS, ET_CLASS
from mindgap.sequences import SEQUENCES

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


def test_other_settings_make_every_case_again(tmp_path, cohort_folder):
    _prepare(cohort_folder, tmp_path / "store")
    before = _stamps(tmp_path / "store")
    _prepare(cohort_folder, tmp_path / "store", Preparation(normalisation="zscore"))
    assert all(stamp != before[name] for name, stamp in _stamps(tmp_path / "store").items())


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
    assert store.split["unassigned"] == ["P03"]
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {case for _, _, case in seen} == {"P01", "P02", "P03", "B1", "B2", "B3"}
    assert open_store(tmp_path / "store") == store


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


def test_a_store_may_be_moved(tmp_path, cohort_folder):
    store = _prepare(cohort_folder, tmp_path / "store")
    codes = np.array(store.read("P01"))
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    np.testing.assert_array_equal(open_store(tmp_path / "elsewhere").read("P01"), codes)


# From a store to batches


def _whole(shape):
    return tuple((0, n) for n in shape)


def _prepared(case_id, codes, target, boxes=None):
    """A case from codes per sequence, as preparation would have made it."""
    shape = target.shape
    sequences = tuple(sequence for sequence in SEQUENCES if sequence in codes)
    return PreparedCase(
        case_id=case_id,
        image=torch.stack([decode(torch.from_numpy(codes[sequence])) for sequence in sequences]),
        sequences=sequences,
        boxes=tuple((boxes or {}).get(sequence, _whole(shape)) for sequence in sequences),
        target=target,
        placement=Placement(shape, (0, 1, 2), (False, False, False), shape, _whole(shape)),
        spacing_mm=(1.0, 1.0, 1.0),
    )


def _store(folder, *cases):
    entries = {case.case_id: write_case(folder, case, fingerprint="none") for case in cases}
    names = list(entries)
    split = {"name": "lists", "sha256": "", "train": names, "validation": [], "test": [], "unassigned": []}
    store = Store(folder, Preparation(), entries, {}, split, "nowhere", "brats2017")
    write_index(store)
    return store


def _coordinates(shape, sequences=(T1, T2, FLAIR)):
    """Codes that tell where a voxel lies: 1 + i, 1 + j, 1 + k; and a target that follows from them."""
    axes = np.indices(shape)
    codes = {s: (1 + axis).astype(np.uint8) for s, axis in zip((T1, T2, FLAIR), axes, strict=True) if s in sequences}
    return codes, (axes.sum(0) % 4).astype(np.uint8)


def _draws(step=0, *, cases=1, batch=4, sequences=3, augmentation=OFF, foreground=0.0, **changes):
    drawn = draw(augmentation, seed=5, step=step, batch=batch, cases=cases, sequences=sequences, foreground=foreground)
    return replace(drawn, **changes)


@pytest.fixture
def located(tmp_path):
    """One case of 20 x 24 x 18 whose voxels say where they are."""
    store = _store(tmp_path / "located", _prepared("P01", *_coordinates((20, 24, 18))))
    return ResidentCases(store, ["P01"], subset=(T1, T2, FLAIR))


def _corners(batch):
    return encode(batch.image)[:, :, 0, 0, 0].numpy().astype(int) - 1


def test_image_and_target_are_cut_from_the_same_place(located):
    for step in range(5):
        batch = located.batch(_draws(step), OFF, crop=16)
        assert tuple(batch.image.shape) == (4, 3, 16, 16, 16)
        codes = encode(batch.image).numpy().astype(int) - 1
        corners = _corners(batch)
        assert (corners >= 0).all()
        assert (corners <= np.array([4, 8, 2])).all()
        for row, corner in enumerate(corners):
            steps = np.indices((16, 16, 16))
            np.testing.assert_array_equal(codes[row], steps + corner[:, None, None, None])
        np.testing.assert_array_equal(batch.target.numpy(), codes.sum(1) % 4)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_flips_turn_image_and_target_alike(located, axes):
    flips = np.zeros((4, 3), dtype=bool)
    flips[:, axes] = True
    straight = located.batch(_draws(), OFF, crop=16)
    flipped = located.batch(_draws(flips=flips), OFF, crop=16)
    assert not torch.equal(straight.image, flipped.image)
    assert torch.equal(flipped.image, straight.image.flip([axis + 2 for axis in axes]))
    assert torch.equal(flipped.target, straight.target.flip([axis + 1 for axis in axes]))


def test_every_start_is_reachable_also_the_last(located):
    seen = np.concatenate([_corners(located.batch(_draws(step), OFF, crop=16)) for step in range(40)])
    for axis, free in enumerate((4, 8, 2)):
        assert set(seen[:, axis]) == set(range(free + 1))
    ends = located.batch(_draws(corner=np.full((4, 3), np.nextafter(1.0, 0.0))), OFF, crop=16)
    np.testing.assert_array_equal(_corners(ends), np.tile([4, 8, 2], (4, 1)))
    starts = located.batch(_draws(corner=np.zeros((4, 3))), OFF, crop=16)
    np.testing.assert_array_equal(_corners(starts), np.zeros((4, 3)))


def test_a_case_of_exactly_the_size_of_the_crop_is_taken_whole(tmp_path):
    codes, target = _coordinates((16, 16, 16))
    cases = ResidentCases(_store(tmp_path, _prepared("P01", codes, target)), ["P01"], subset=(T1, T2, FLAIR))
    batch = cases.batch(_draws(batch=1), OFF, crop=16)
    np.testing.assert_array_equal(batch.target[0].numpy(), target)
    np.testing.assert_array_equal(encode(batch.image)[0].numpy(), np.stack(list(codes.values())))


def test_a_case_smaller_than_the_crop_is_padded_with_background(tmp_path):
    codes, target = _coordinates((10, 20, 13))
    cases = ResidentCases(_store(tmp_path, _prepared("P01", codes, target)), ["P01"], subset=(T1, T2, FLAIR))
    batch = cases.batch(_draws(batch=1, corner=np.zeros((1, 3))), OFF, crop=16)
    image, inner = batch.image[0], (slice(3, 13), slice(0, 16), slice(1, 14))
    outside = torch.ones(16, 16, 16, dtype=torch.bool)
    outside[inner] = False
    assert bool((image[:, outside] == BACKGROUND).all())
    assert bool((batch.target[0][outside] == 0).all())
    np.testing.assert_array_equal(batch.target[0][inner].numpy(), target[:, :16])
    np.testing.assert_array_equal(
        encode(image[(slice(None), *inner)]).numpy(), np.stack(list(codes.values()))[:, :, :16]
    )


def test_columns_go_by_name_where_cases_lack_sequences(tmp_path):
    shape = (16, 16, 16)
    target = _coordinates(shape)[1]
    full = {s: np.full(shape, 10 * (n + 1), np.uint8) for n, s in enumerate(SEQUENCES)}
    some = {T2: np.full(shape, 77, np.uint8), FLAIR: np.full(shape, 99, np.uint8)}
    store = _store(tmp_path, _prepared("P01", full, target), _prepared("P02", some, target))
    cases = ResidentCases(store, ["P02", "P01"], subset=(FLAIR,))
    assert cases.sequences == SEQUENCES
    batch = cases.batch(_two_rows(), OFF, crop=16)
    assert batch.case_ids == ("P02", "P01")
    assert batch.sequences == SEQUENCES
    assert batch.available.tolist() == [[False, True, False, True], [True] * 4]
    assert torch.equal(batch.present, batch.available)
    values = encode(batch.image).flatten(2)
    assert values.amin(2).tolist() == values.amax(2).tolist() == [[0, 77, 0, 99], [10, 20, 30, 40]]
    assert bool((batch.image[0, 0] == BACKGROUND).all())


def _two_rows():
    drawn = draw(OFF, seed=0, step=0, batch=2, cases=2, sequences=4)
    return replace(drawn, cases=np.array([0, 1]))


BOX = ((5, 24), (2, 19), (3, 20))


def _with_a_smaller_brain(shape=(30, 28, 26)):
    """T2's brain fills BOX; T1's fills everything."""
    rng = np.random.default_rng(0)
    inner = tuple(slice(start, end) for start, end in BOX)
    t1 = rng.integers(1, 256, shape).astype(np.uint8)
    t2 = np.zeros(shape, np.uint8)
    t2[inner] = rng.integers(1, 256, t2[inner].shape)
    target = np.zeros(shape, np.uint8)
    target[10:14, 9:13, 8:12] = ET_CLASS
    return t1, t2, target, inner


def _columns(draws, count):
    names = ("scale", "gamma", "shift", "bias", "noise")
    return replace(draws, **{name: getattr(draws, name)[:, :count] for name in names})


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_crops_and_whole_cases_of_a_subset_know_nothing_of_the_other_sequences(tmp_path, foreground):
    t1, t2, target, inner = _with_a_smaller_brain()
    both = _store(tmp_path / "both", _prepared("P01", {T1: t1, T2: t2}, target, {T2: BOX}))
    alone = _store(tmp_path / "alone", _prepared("P01", {T2: t2[inner]}, target[inner]))
    one, other = (ResidentCases(store, ["P01"], subset=(T2,)) for store in (both, alone))
    for step in range(5):
        draws = _draws(step, sequences=2, foreground=foreground)
        first = one.batch(draws, OFF, crop=16).select((T2,))
        second = other.batch(_columns(draws, 1), OFF, crop=16)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.target, second.target)
    first, second = one.whole(0, multiple=16).select((T2,)), other.whole(0, multiple=16)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target, second.target)
    assert tuple(first.image.shape[2:]) == (32, 32, 32)
    assert ResidentCases(both, ["P01"], subset=(T1,)).whole(0, multiple=2).image.shape[2:] == t1.shape


def test_a_whole_case_is_padded_on_both_sides_and_complete(tmp_path):
    t1, t2, target, inner = _with_a_smaller_brain()
    store = _store(tmp_path, _prepared("P01", {T1: t1, T2: t2}, target, {T2: BOX}))
    batch = ResidentCases(store, ["P01"], subset=(T2,)).whole(0, multiple=8)
    assert tuple(batch.image.shape) == (1, 2, 24, 24, 24)
    place = (slice(2, 21), slice(3, 20), slice(3, 20))
    np.testing.assert_array_equal(encode(batch.image[0, 1][place]).numpy(), t2[inner])
    np.testing.assert_array_equal(batch.target[0][place].numpy(), target[inner])
    assert int(brain_of(batch.image[0, 1]).sum()) == int((t2 > 0).sum())
    assert int((batch.target > 0).sum()) == int((target > 0).sum())


@pytest.mark.parametrize("place", [(0, 0, 0), (39, 39, 39), (20, 3, 36)])
def test_foreground_crops_contain_tumour(tmp_path, place):
    target = np.zeros((40, 40, 40), np.uint8)
    target[place] = ET_CLASS
    codes = {T1: np.full(target.shape, 9, np.uint8)}
    cases = ResidentCases(_store(tmp_path, _prepared("P01", codes, target)), ["P01"], subset=(T1,))
    for step in range(5):
        centred = cases.batch(_draws(step, sequences=1, foreground=1.0), OFF, crop=16)
        assert (centred.target == ET_CLASS).flatten(1).any(1).tolist() == [True] * 4
    elsewhere = cases.batch(_draws(sequences=1, foreground=0.0), OFF, crop=16)
    assert not bool((elsewhere.target == ET_CLASS).flatten(1).any(1).all())


def test_small_regions_are_as_likely_as_large_ones_to_be_centred_on(tmp_path):
    target = np.zeros((64, 24, 24), np.uint8)
    target[:24] = ED_CLASS
    target[60:62, 11:13, 11:13] = ET_CLASS
    codes = {T1: np.full(target.shape, 9, np.uint8)}
    cases = ResidentCases(_store(tmp_path, _prepared("P01", codes, target)), ["P01"], subset=(T1,))
    batches = [cases.batch(_draws(step, sequences=1, foreground=1.0), OFF, crop=16) for step in range(25)]
    share = np.mean([(batch.target == ET_CLASS).flatten(1).any(1).float().mean() for batch in batches])
    assert 0.5 < share < 0.85  # WT, TC and ET are drawn alike, and the last two are here


def test_a_case_without_tumour_can_still_be_cut(tmp_path):
    codes, target = _coordinates((20, 20, 20))
    cases = ResidentCases(
        _store(tmp_path, _prepared("P01", codes, np.zeros_like(target))), ["P01"], subset=(T1, T2, FLAIR)
    )
    batch = cases.batch(_draws(foreground=1.0), OFF, crop=16)
    assert len({tuple(corner) for corner in _corners(batch).tolist()}) > 1


def test_codes_are_held_once_in_memory(located):
    assert located.bytes == 4 * 20 * 24 * 18
    assert len(located) == 1
