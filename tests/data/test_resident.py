import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap.batch import brain_of
from mindgap.data.augmentation import Augmentation, draw
from mindgap.data.codes import decode, encode
from mindgap.data.prepared import Placement, Preparation, PreparedCase
from mindgap.data.resident import ResidentCases, choose_place
from mindgap.data.store import Store, write_case, write_index
from mindgap.errors import MindgapError, SettingError
from mindgap.regions import ED_CLASS, ET_CLASS
from mindgap.sequences import SEQUENCES
from mindgap.shapes import BACKGROUND

OFF = Augmentation(flip=0.0, scale=0.0, scale_probability=0.0)
ALL = Augmentation(scale=0.2, gamma=0.2, shift=0.1, bias=0.2, noise=0.05)
T1, T2, T1CE, FLAIR = SEQUENCES


def _whole(shape):
    return tuple((0, n) for n in shape)


def _prepared(case_id, codes, target, boxes=None):
    """A case from codes per sequence, as preparation would have made it."""
    shape = target.shape
    sequences = tuple(sequence for sequence in SEQUENCES if sequence in codes)
    return PreparedCase(
        case_id=case_id,
        image=np.stack([decode(torch.from_numpy(codes[sequence])).numpy() for sequence in sequences]),
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
    return encode(batch.image.numpy())[:, :, 0, 0, 0].astype(int) - 1


def test_image_and_target_are_cut_from_the_same_place(located):
    for step in range(5):
        batch = located.batch(_draws(step), OFF, crop=16)
        assert tuple(batch.image.shape) == (4, 3, 16, 16, 16)
        codes = encode(batch.image.numpy()).astype(int) - 1
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
    np.testing.assert_array_equal(encode(batch.image.numpy())[0], np.stack(list(codes.values())))


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
        encode(image[(slice(None), *inner)].numpy()), np.stack(list(codes.values()))[:, :, :16]
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
    values = torch.from_numpy(encode(batch.image.numpy())).flatten(2)
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


def test_what_is_shown_of_a_case_decides_on_its_crop(tmp_path):
    t1, t2, target, inner = _with_a_smaller_brain()
    store = _store(tmp_path, _prepared("P01", {T1: t1, T2: t2}, target, {T2: BOX}))
    every, alone = (ResidentCases(store, ["P01"], subset=subset) for subset in ((T1, T2), (T2,)))
    shown, wanted = every.whole(0, shown=(T2,)), alone.whole(0)
    assert torch.equal(shown.image, wanted.image)
    assert every.whole(0).image.shape[2:] == t1.shape != shown.image.shape[2:]
    spread = every.spread(0, shown.target[0].numpy(), (T2,))
    np.testing.assert_array_equal(spread[inner], target[inner])
    assert int((spread > 0).sum()) == int((target[inner] > 0).sum())


def test_a_whole_case_is_padded_on_both_sides_and_complete(tmp_path):
    t1, t2, target, inner = _with_a_smaller_brain()
    store = _store(tmp_path, _prepared("P01", {T1: t1, T2: t2}, target, {T2: BOX}))
    batch = ResidentCases(store, ["P01"], subset=(T2,)).whole(0, multiple=8)
    assert tuple(batch.image.shape) == (1, 2, 24, 24, 24)
    place = (slice(2, 21), slice(3, 20), slice(3, 20))
    np.testing.assert_array_equal(encode(batch.image[0, 1][place].numpy()), t2[inner])
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


# Where cases lie


def _many(folder, kind="uint8"):
    """Three cases with some and all sequences, in 8 bits or float16."""
    rng = np.random.default_rng(0)
    cases = []
    for name, sequences in (("P01", SEQUENCES), ("P02", (T1CE, FLAIR)), ("P03", SEQUENCES)):
        shape = (22, 20, 18)
        codes = {sequence: rng.integers(1, 256, shape).astype(np.uint8) for sequence in sequences}
        cases.append(_prepared(name, codes, rng.integers(0, 4, shape).astype(np.uint8)))
    entries = {case.case_id: write_case(folder, case, fingerprint="none", codes=kind) for case in cases}
    split = {"name": "lists", "sha256": "", "train": list(entries), "validation": [], "test": [], "unassigned": []}
    store = Store(folder, Preparation(), entries, {}, split, "nowhere", "brats2017")
    write_index(store)
    return store


def _same(one, other):
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("read_ahead", [False, True])
@pytest.mark.parametrize("residence", ["device", "host", "disk"])
def test_batches_are_the_same_wherever_the_cases_lie(tmp_path, residence, read_ahead):
    store = _many(tmp_path)
    expected = ResidentCases(store, store.cases, subset=(T1CE, FLAIR))
    cases = ResidentCases(store, store.cases, subset=(T1CE, FLAIR), residence=residence)
    assert cases.place.residence == residence
    assert cases.bytes == expected.bytes
    for step in range(4):
        drawn = _draws(step, cases=3, sequences=4, augmentation=ALL, foreground=0.5)
        if read_ahead:
            cases.prefetch(drawn, crop=16)
        _same(cases.batch(drawn, ALL, crop=16), expected.batch(drawn, ALL, crop=16))
    _same(cases.whole(1, multiple=8), expected.whole(1, multiple=8))


def test_what_was_read_ahead_for_another_step_is_not_used(tmp_path):
    store = _many(tmp_path)
    cases = ResidentCases(store, store.cases, subset=SEQUENCES, residence="disk")
    first, second = (_draws(step, cases=3, sequences=4) for step in (0, 1))
    cases.prefetch(first, crop=16)
    batch = cases.batch(second, OFF, crop=16)
    _same(batch, ResidentCases(store, store.cases, subset=SEQUENCES).batch(second, OFF, crop=16))


def test_learning_from_mapped_cases_changes_no_file(tmp_path):
    store = _many(tmp_path)
    before = {case_id: store.path_of(case_id).read_bytes() for case_id in store.cases}
    cases = ResidentCases(store, store.cases, subset=SEQUENCES, residence="disk")
    for codes in cases.codes:
        codes.zero_()
    assert {case_id: store.path_of(case_id).read_bytes() for case_id in store.cases} == before


def test_float16_cases_make_the_batches_of_8_bit_cases(tmp_path):
    coarse, fine = _many(tmp_path / "coarse"), _many(tmp_path / "fine", "float16")
    drawn = _draws(cases=3, sequences=4, augmentation=ALL, foreground=0.5)
    one, other = (ResidentCases(s, s.cases, subset=(T1CE, FLAIR)).batch(drawn, ALL, crop=24) for s in (coarse, fine))
    assert torch.equal(one.target, other.target)
    assert other.target.dtype == torch.uint8
    assert torch.equal(brain_of(one.image), brain_of(other.image))
    assert (one.image - other.image).abs().max() < 3e-3


def test_rows_of_a_step_are_the_same_cut_together_or_apart(tmp_path):
    store = _many(tmp_path)
    cases = ResidentCases(store, store.cases, subset=(T1CE, FLAIR))
    drawn = _draws(batch=4, cases=3, sequences=4, augmentation=ALL, foreground=0.5)
    whole = cases.batch(drawn, ALL, crop=16)
    for part, rows in zip(whole.split(2), ((0, 2), (2, 4)), strict=True):
        _same(part, cases.batch(drawn.rows(*rows), ALL, crop=16))


def test_a_damaged_case_is_named_before_anything_is_learnt(tmp_path):
    store = _many(tmp_path)
    path = store.path_of("P02")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MindgapError, match=r"P02\.npy is not the file"):
        ResidentCases(store, store.cases, subset=SEQUENCES)


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [(1.0, 4.0, "device"), (2.0, 4.0, "device"), (2.1, 4.0, "disk"), (100.0, 4.0, "disk")],
)
def test_cases_lie_in_memory_while_they_take_at_most_half_of_it(monkeypatch, needed, free, expected):
    monkeypatch.setattr("mindgap.data.resident.available_memory_gib", lambda device: free)
    place = choose_place(needed, torch.device("cpu"))
    assert place.residence == expected
    assert f"{needed:.2f} GiB" in place.reason
    assert choose_place(needed, torch.device("cpu"), processes=100).residence == "disk"


def test_a_gpu_too_small_leaves_the_cases_in_host_memory(monkeypatch):
    monkeypatch.setattr("mindgap.data.resident.available_memory_gib", lambda device: {"cuda": 8.0, "cpu": 64.0}[device])
    places = [choose_place(needed, torch.device("cuda")).residence for needed in (3.0, 5.0, 40.0)]
    assert places == ["device", "host", "disk"]


def test_a_place_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr("mindgap.data.resident.available_memory_gib", lambda device: 4.0)
    with pytest.raises(SettingError, match="--residence auto or disk"):
        choose_place(5.0, torch.device("cpu"), asked="device")
    assert choose_place(3.0, torch.device("cpu"), asked="device").residence == "device"


def test_a_row_gets_the_tumour_of_the_case_that_was_drawn(tmp_path):
    shape = (20, 20, 20)
    healthy, ill = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    ill[2:5, 2:5, 2:5] = ET_CLASS
    images = [{s: np.full(shape, level, np.uint8) for s in SEQUENCES} for level in (60, 90)]
    images[1][T1CE][2:5, 2:5, 2:5] = 180
    store = _store(tmp_path, _prepared("P01", images[0], healthy), _prepared("P02", images[1], ill))
    cases = ResidentCases(store, ["P01", "P02"], subset=SEQUENCES)
    drawn = _draws(cases=2, batch=2, sequences=4)
    rows = replace(drawn, cases=np.array([0, 0]), donor=np.array([-1, 1]), donor_voxel=np.full((2, 2), 0.5))
    batch = cases.batch(rows, OFF, crop=16)
    assert not batch.target[0].any()
    assert int((batch.target[1] == ET_CLASS).sum()) == 27
    codes = encode(batch.image.numpy())[1]
    tumour = batch.target[1].numpy() == ET_CLASS
    assert (codes[SEQUENCES.index(T1CE)][tumour] == 120).all(), "as bright beside this brain as beside its own"
    assert (codes[SEQUENCES.index(T1)] == 60).all()
    flipped = cases.batch(replace(rows, donor_flips=np.array([[True] * 3] * 2)), OFF, crop=16)
    assert torch.equal(flipped.target[1], batch.target[1].flip([0, 1, 2]))


@pytest.mark.parametrize("at", [(1, 10, 18), (10, 10, 10), (18, 1, 3)])
def test_a_voxel_of_the_tumour_comes_to_lie_in_the_middle(tmp_path, at):
    healthy, ill = np.zeros((20, 20, 20), np.uint8), np.zeros((20, 20, 20), np.uint8)
    ill[at] = ET_CLASS
    images = {s: np.full(healthy.shape, 60, np.uint8) for s in SEQUENCES}
    store = _store(tmp_path, _prepared("P01", images, healthy), _prepared("P02", images, ill))
    cases = ResidentCases(store, ["P01", "P02"], subset=SEQUENCES)
    rows = replace(_draws(cases=2, batch=1, sequences=4), cases=np.array([0]), donor=np.array([1]))
    (found,) = np.argwhere(cases.batch(rows, OFF, crop=16).target[0].numpy())
    assert tuple(found) == (8, 8, 8)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_mapped_cases_hold_no_file_open(tmp_path):
    store = _store(tmp_path, *(_prepared(f"P{n:02}", *_coordinates((16, 16, 16))) for n in range(20)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapped = ResidentCases(store, store.cases, subset=(T1, T2, FLAIR), residence="disk")
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10
    assert torch.equal(mapped.codes[3], torch.from_numpy(np.array(store.read("P03"))))


@pytest.mark.parametrize("corner", [0.0, 0.5, np.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("shape", [(40, 36, 30), (14, 36, 12)])
def test_a_crop_that_is_bent_by_nothing_is_the_crop(tmp_path, corner, shape):
    store = _store(tmp_path, _prepared("P01", *_coordinates(shape)))
    cases = ResidentCases(store, ["P01"], subset=(T1, T2, FLAIR))
    place = {"corner": np.full((4, 3), corner)}
    frame, elastic = np.tile(np.eye(3, dtype=np.float32), (4, 1, 1)), np.zeros((4, 3, 4, 4, 4), np.float32)
    plain = cases.batch(_draws(**place), OFF, crop=16)
    bent = cases.batch(_draws(**place, frame=frame, elastic=elastic, warp=np.ones(4, bool)), OFF, crop=16)
    assert torch.equal(bent.target, plain.target)
    assert torch.equal(bent.image > BACKGROUND, plain.image > BACKGROUND)
    assert float((bent.image - plain.image).abs().max()) < 0.01


@pytest.mark.skipif(sys.platform != "linux", reason="names that are bytes")
def test_cases_are_mapped_whatever_bytes_their_names_have(tmp_path):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    store = _store(folder, _prepared("P01", *_coordinates((16, 16, 16))))
    mapped = ResidentCases(store, ["P01"], subset=(T1, T2, FLAIR), residence="disk")
    assert torch.equal(mapped.codes[0], torch.from_numpy(np.array(store.read("P01"))))
