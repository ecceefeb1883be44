from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.case import Case, CaseFiles, Source
from mindgap.data.preparation import prepare_case, put_back, target_on_grid
from mindgap.data.prepared import LOWEST_BRAIN, Preparation, join_prepared, paste
from mindgap.data.volume import Volume
from mindgap.errors import InputError
from mindgap.sequences import SEQUENCES, SUBSETS, Sequence
from mindgap.shapes import BACKGROUND

KEEP = Preparation()
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
ALL_ORIENTATIONS = ["".join(letters) for axes in permutations(("RL", "AP", "SI")) for letters in product(*axes)]
SOME_ORIENTATIONS = ("LPS", "RAS", "PIR", "SAL", "IRP", "ASL")


def _affine(codes="LPS", spacing=(1.0, 1.0, 1.0), origin=(11.0, -7.0, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        axis, sign = DIRECTIONS[code]
        affine[axis, column] = sign * spacing[column]
    affine[:3, 3] = origin
    return affine


def _volume(array, affine, name="image"):
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine, Path(f"{name}.nii.gz"), None)


def _case(arrays, affine, target=None):
    images = {sequence: _volume(array, affine, str(sequence)) for sequence, array in arrays.items()}
    return Case("P01", images, target)


def _noise(shape, seed=0, margin=0):
    """Brain with noise, background in a margin on every side."""
    array = np.zeros(shape, dtype=np.float32)
    inner = tuple(slice(margin, n - margin) for n in shape)
    array[inner] = np.random.default_rng(seed).uniform(1, 100, array[inner].shape)
    return array


def _prepare_one(array, preparation=KEEP, affine=None):
    return prepare_case(_case({Sequence.T1: array}, _affine() if affine is None else affine), preparation)


def _one_hot(target):
    return np.stack([(target == value).astype(np.float32) for value in range(4)])


def _dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def _ball(shape, spacing, centre_mm, radius_mm):
    """A ball in the mm of a grid whose first voxel edge is at 0."""
    axes = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return (x - centre_mm[0]) ** 2 + (y - centre_mm[1]) ** 2 + (z - centre_mm[2]) ** 2 < radius_mm**2


# What is absent has no influence


BOXES = {
    Sequence.T1: ((0, 20), (1, 15), (0, 13)),
    Sequence.T2: ((4, 15), (3, 16), (2, 9)),
    Sequence.T1CE: ((6, 18), (2, 11), (4, 12)),
    Sequence.FLAIR: ((5, 12), (4, 13), (3, 11)),
}


def _own_brains(shape=(21, 17, 13)):
    """Four images, each with a brain box and a brightness of its own."""
    arrays = {}
    for seed, (sequence, box) in enumerate(BOXES.items()):
        array = np.zeros(shape, dtype=np.float32)
        inner = tuple(slice(start, end) for start, end in box)
        array[inner] = np.random.default_rng(seed).uniform(1, 50, array[inner].shape) * 10**seed
        arrays[sequence] = array
    return arrays


def _on_working_grid(prepared, sequence):
    column = prepared.sequences.index(sequence)
    whole = np.full(prepared.placement.working_shape, BACKGROUND, np.float32)
    whole[tuple(slice(start, end) for start, end in prepared.placement.box)] = prepared.image[column]
    box = tuple(
        (start + outer, end + outer)
        for (start, end), (outer, _) in zip(prepared.boxes[column], prepared.placement.box, strict=True)
    )
    return whole, box


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
@pytest.mark.parametrize("subset", SUBSETS[:-1], ids=lambda subset: "+".join(map(str, subset)))
def test_an_absent_sequence_might_never_have_existed(tmp_path, write_nifti, subset, spacing_mm):
    arrays, preparation = _own_brains(), Preparation(spacing_mm=spacing_mm)
    affine = _affine("RAS", (1.0, 1.0, 1.5))
    paths = {s: write_nifti(tmp_path / f"P01_{s}.nii", array, affine) for s, array in arrays.items()}
    everything = CaseFiles("P01", {s: Source(path) for s, path in paths.items()})
    full = prepare_case(everything.load(), preparation)
    for sequence in set(SEQUENCES) - set(subset):
        paths[sequence].write_bytes(b"garbage")
    left_out = prepare_case(everything.load(subset), preparation)
    for sequence in set(SEQUENCES) - set(subset):
        paths[sequence].unlink()
    alone = prepare_case(CaseFiles("P01", {s: Source(paths[s]) for s in subset}).load(), preparation)

    assert left_out.sequences == alone.sequences == subset
    assert left_out.boxes == alone.boxes
    assert left_out.placement == alone.placement
    assert np.array_equal(left_out.image, alone.image)
    for sequence in subset:
        image, box = _on_working_grid(alone, sequence)
        full_image, full_box = _on_working_grid(full, sequence)
        assert np.array_equal(image, full_image)
        assert box == full_box


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(map(str, subset)))
def test_the_crop_is_the_union_of_the_boxes_of_the_sequences_at_hand(subset):
    arrays = _own_brains()
    prepared = prepare_case(_case({s: arrays[s] for s in subset}, _affine()), KEEP)
    own = np.array([BOXES[sequence] for sequence in subset])
    union = tuple(zip(own[..., 0].min(0).tolist(), own[..., 1].max(0).tolist(), strict=True))
    assert prepared.placement.box == union
    assert tuple(prepared.image.shape[1:]) == tuple(end - start for start, end in union)
    for sequence, box in zip(prepared.sequences, prepared.boxes, strict=True):
        moved = tuple((a + start, b + start) for (a, b), (start, _) in zip(box, union, strict=True))
        assert moved == BOXES[sequence]


@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
@pytest.mark.parametrize("spacing_mm", [None, 2.0])
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: "+".join(map(str, subset)))
def test_sequences_prepared_one_by_one_are_the_subset_prepared_together(subset, spacing_mm, normalisation):
    arrays, preparation = _own_brains(), Preparation(spacing_mm=spacing_mm, normalisation=normalisation)
    affine = _affine("RAS", (1.0, 1.0, 1.5))
    together = prepare_case(_case({s: arrays[s] for s in subset}, affine), preparation)
    joined = join_prepared(prepare_case(_case({s: arrays[s]}, affine), preparation) for s in subset)
    assert np.array_equal(joined.image, together.image)
    for name in ("case_id", "sequences", "boxes", "target", "placement", "spacing_mm"):
        assert getattr(joined, name) == getattr(together, name), name


@pytest.mark.parametrize("spacing_mm", [None, 2.0])
def test_a_brain_that_is_shared_decides_on_crop_and_intensity_scale(spacing_mm):
    arrays, preparation = _own_brains(), Preparation(spacing_mm=spacing_mm, normalisation="zscore")
    everything = _case(arrays, _affine())
    own = prepare_case(_case({Sequence.FLAIR: arrays[Sequence.FLAIR]}, _affine()), preparation)
    leaky = prepare_case(_case({Sequence.FLAIR: arrays[Sequence.FLAIR]}, _affine()), preparation, brain_of=everything)
    assert leaky.placement.box == prepare_case(everything, preparation).placement.box
    assert leaky.boxes == (tuple((0, side) for side in leaky.image.shape[1:]),)
    assert leaky.placement.box != own.placement.box
    if spacing_mm is None:
        union = np.any([array > 0 for array in arrays.values()], axis=0)
        inside = arrays[Sequence.FLAIR][union]
        expected = ((arrays[Sequence.FLAIR] - inside.mean()) / inside.std() / 5).clip(LOWEST_BRAIN, 1)
        expected = np.where(union, expected, BACKGROUND)
        found = paste(leaky.image - BACKGROUND, leaky.placement)[0] + BACKGROUND
        np.testing.assert_allclose(found, expected, atol=1e-5)
    same = prepare_case(_case({Sequence.T1: arrays[Sequence.T1]}, _affine()), preparation)
    with_itself = prepare_case(
        _case({Sequence.T1: arrays[Sequence.T1]}, _affine()),
        preparation,
        brain_of=_case({Sequence.T1: arrays[Sequence.T1]}, _affine()),
    )
    assert np.array_equal(same.image, with_itself.image)


# There and back


@pytest.mark.parametrize("preparation", [KEEP, Preparation(spacing_mm=2.0)])
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL"])
def test_a_target_on_the_whole_grid_holds_what_lies_outside_the_crop(codes, preparation):
    array = _noise((12, 14, 10), margin=3)
    target = np.random.default_rng(0).integers(0, 4, array.shape).astype(np.uint8)
    prepared = prepare_case(_case({Sequence.T1: array}, _affine(codes), target), preparation)
    whole = target_on_grid(target, prepared.placement)
    assert whole.shape == prepared.placement.working_shape
    inside = tuple(slice(start, end) for start, end in prepared.placement.box)
    np.testing.assert_array_equal(whole[inside], prepared.target)
    outside = whole.copy()
    outside[inside] = 0
    assert outside.any()


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
def test_put_back_is_exact_without_resampling(codes):
    shape = (11, 14, 9)
    array = _noise(shape)
    array[:2], array[:, 13:], array[:, :, :3] = 0, 0, 0
    target = np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8) * (array > 0)
    case = _case({Sequence.T1: array}, _affine(codes, (1.0, 0.5, 3.0)), target)
    prepared = prepare_case(case, KEEP)
    assert sorted(prepared.image.shape[1:]) == sorted((9, 13, 6))
    home = put_back(_one_hot(prepared.target)[1:], prepared.placement)
    for value in (1, 2, 3):
        np.testing.assert_array_equal(home[value - 1] == 1, target == value)
    image = put_back(prepared.image - BACKGROUND, prepared.placement)[0] + BACKGROUND
    low, high = np.percentile(array[array > 0], (0.5, 99.5))
    expected = np.clip((array - low) / (high - low) * 2 - 1, LOWEST_BRAIN, 1)
    np.testing.assert_allclose(image, np.where(array > 0, expected, BACKGROUND), atol=1e-5)


@pytest.mark.parametrize("codes", ALL_ORIENTATIONS)
@pytest.mark.parametrize("corner", [(0, 0, 0), (1, 0, 1)])
def test_a_corner_marker_keeps_its_place_in_the_scanner(codes, corner):
    shape, spacing = (7, 9, 5), (1.0, 2.0, 3.0)
    affine = _affine(codes, spacing)
    array = np.ones(shape, dtype=np.float32)
    marked = tuple(-side for side in corner)
    array[marked] = 90
    prepared = _prepare_one(array, Preparation(percentiles=(0.0, 100.0)), affine)
    found = np.unravel_index(int(prepared.image[0].argmax()), prepared.image.shape[1:])

    # Working axes run to the left, back and top: count mm from the right, front, lower end of the volume.
    ends = np.array([affine[:3, :3] @ index + affine[:3, 3] for index in product(*((0, n - 1) for n in shape))])
    start = np.array([ends[:, 0].max(), ends[:, 1].max(), ends[:, 2].min()])
    place = start + np.array([-1, -1, 1]) * np.array(found) * np.array(prepared.spacing_mm)
    native = np.array([n % size for n, size in zip(marked, shape, strict=True)])
    np.testing.assert_allclose(place, affine[:3, :3] @ native + affine[:3, 3])
    home = put_back(prepared.image, prepared.placement)[0]
    assert np.unravel_index(int(home.argmax()), shape) == tuple(native)


@pytest.mark.parametrize("preparation", [KEEP, Preparation(spacing_mm=2.0), Preparation(spacing_mm=0.8)])
@pytest.mark.parametrize("codes", ["RAS", "PIR", "SAL", "IRP"])
def test_how_the_axes_are_stored_makes_no_difference(codes, preparation):
    array = _noise((11, 14, 9), margin=1)
    target = (np.random.default_rng(2).integers(0, 4, array.shape) * (array > 0)).astype(np.uint8)
    affine = _affine("LPS", (1.0, 1.5, 2.5))
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    moved_affine = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
    moved, moved_target = (np.ascontiguousarray(nib.apply_orientation(x, turn)) for x in (array, target))
    straight = prepare_case(_case({Sequence.T1: array}, affine, target), preparation)
    turned = prepare_case(_case({Sequence.T1: moved}, moved_affine, moved_target), preparation)
    assert np.array_equal(straight.image, turned.image)
    np.testing.assert_array_equal(straight.target, turned.target)
    assert straight.spacing_mm == turned.spacing_mm
    back, turned_back = put_back(straight.image, straight.placement), put_back(turned.image, turned.placement)
    np.testing.assert_array_equal(nib.apply_orientation(back[0], turn), turned_back[0])


@pytest.mark.parametrize("codes", SOME_ORIENTATIONS)
@pytest.mark.parametrize(
    ("shape", "spacing", "wanted_mm"),
    [
        ((40, 44, 36), (1.0, 1.0, 1.0), 2.0),
        ((41, 47, 39), (1.0, 1.0, 1.0), 2.0),
        ((40, 37, 13), (1.0, 0.9, 3.0), 2.0),
        ((20, 22, 19), (2.0, 2.0, 2.0), 1.0),
    ],
)
def test_a_blob_comes_home_after_resampling(codes, shape, spacing, wanted_mm):
    centre = (12.0, 27.0, 20.0)  # nearer to one corner, so that a flip shows
    target = _ball(shape, spacing, centre, 9.0).astype(np.uint8)
    case = _case({Sequence.T1: _noise(shape)}, _affine(codes, spacing), target)
    prepared = prepare_case(case, Preparation(spacing_mm=wanted_mm))
    assert prepared.placement.working_shape != shape
    assert np.allclose(prepared.spacing_mm, wanted_mm, rtol=0.1)
    home = put_back(_one_hot(prepared.target)[1:2], prepared.placement)[0]
    assert home.shape == shape
    assert _dice(home > 0.5, target == 1) > 0.9
    centroids = [np.argwhere(mask).mean(0) * spacing for mask in (home > 0.5, target == 1)]
    np.testing.assert_allclose(*centroids, atol=0.5)


def _ramp(coordinates):
    i, j, k = np.meshgrid(*coordinates, indexing="ij")
    return 100 + 3 * i + 5 * j - 2 * k


@pytest.mark.parametrize("wanted_mm", [2.0, 1.3, 0.6])
def test_a_linear_ramp_stays_linear_when_resampled(wanted_mm):
    shape = (18, 15, 12)
    array = _ramp([np.arange(n) for n in shape]).astype(np.float32)
    prepared = _prepare_one(array, Preparation(spacing_mm=wanted_mm, percentiles=(0.0, 100.0)))
    working = prepared.placement.working_shape
    assert working == tuple(round(n / wanted_mm) for n in shape)
    # Voxel centres of the working grid in native voxels; beyond the last centre there is nothing to interpolate.
    centres = [np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1) for m, n in zip(working, shape, strict=True)]
    expected = _ramp(centres)
    low, high = expected.min(), expected.max()
    expected = np.clip((expected - low) / (high - low) * 2 - 1, LOWEST_BRAIN, 1)
    np.testing.assert_allclose(prepared.image[0], expected, atol=2e-5)


@pytest.mark.parametrize("wanted_mm", [2.0, 1.3, 0.6])
def test_a_linear_ramp_of_probabilities_is_right_after_put_back(wanted_mm):
    shape = (18, 15, 12)
    prepared = _prepare_one(_noise(shape), Preparation(spacing_mm=wanted_mm))
    working = prepared.placement.working_shape
    centres = [(np.arange(m) + 0.5) * n / m - 0.5 for m, n in zip(working, shape, strict=True)]
    home = put_back(_ramp(centres)[None].astype(np.float32), prepared.placement)[0]
    inner = tuple(slice(2, -2) for _ in shape)
    np.testing.assert_allclose(home[inner], _ramp([np.arange(n) for n in shape])[inner], rtol=1e-5)


def test_maps_are_0_outside_the_crop():
    array = _noise((12, 10, 9), margin=3)
    prepared = _prepare_one(array)
    home = put_back(np.ones((2, *prepared.image.shape[1:]), np.float32), prepared.placement)
    np.testing.assert_array_equal(home[0] == 1, array > 0)
    np.testing.assert_array_equal(home[1] == 0, array == 0)


def test_a_spacing_within_a_percent_leaves_the_grid_alone():
    affine = _affine(spacing=(1.005, 0.995, 1.0))
    prepared = _prepare_one(_noise((10, 11, 12)), Preparation(spacing_mm=1.0), affine)
    assert prepared.placement.working_shape == (10, 11, 12)
    assert np.allclose(prepared.spacing_mm, (1.005, 0.995, 1.0))


# Intensities


@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
@pytest.mark.parametrize("spacing_mm", [None, 1.7])
def test_background_is_exactly_minus_1_and_brain_strictly_above(normalisation, spacing_mm):
    array = _noise((16, 15, 14), margin=2)
    array[6:9, 6:9, 6:9] = 0  # a ventricle that was cut out is background too
    array[3, 3, 3] = 1e6
    prepared = _prepare_one(array, Preparation(spacing_mm=spacing_mm, normalisation=normalisation))
    image = prepared.image[0]
    brain = image > BACKGROUND
    assert 0 < int(brain.sum()) < brain.size
    assert bool((image[~brain] == BACKGROUND).all())
    assert float(image[brain].min()) >= np.float32(LOWEST_BRAIN)
    assert float(image.max()) <= 1
    if spacing_mm is None:
        np.testing.assert_array_equal(brain, array[2:-2, 2:-2, 2:-2] > 0)


@pytest.mark.parametrize("normalisation", ["percentile", "zscore"])
@pytest.mark.parametrize("spacing_mm", [None, 1.7])
@pytest.mark.parametrize("factor", [0.013, 2.0, 731.0])
def test_the_gain_of_the_scanner_makes_no_difference(normalisation, spacing_mm, factor):
    preparation = Preparation(spacing_mm=spacing_mm, normalisation=normalisation)
    array = _noise((16, 15, 14), margin=2)
    plain, loud = _prepare_one(array, preparation), _prepare_one(array * np.float32(factor), preparation)
    assert plain.boxes == loud.boxes
    np.testing.assert_allclose(plain.image, loud.image, rtol=0, atol=1e-5)


def test_percentiles_map_to_the_ends_of_the_scale():
    array = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    image = _prepare_one(array, Preparation(percentiles=(10.0, 90.0))).image[0].flatten()
    low, high = np.percentile(array, (10, 90))
    assert bool((image[array.ravel() <= low] == LOWEST_BRAIN).all())
    assert bool((image[array.ravel() >= high] == 1).all())
    middle = float(image[499:501].mean())
    assert middle == pytest.approx(0, abs=1e-5)


def test_zscores_are_divided_by_5():
    array = np.random.default_rng(0).normal(1000, 30, (12, 12, 12)).astype(np.float32)
    image = _prepare_one(array, Preparation(normalisation="zscore")).image[0]
    np.testing.assert_allclose(image, (array - array.mean()) / array.std() / 5, atol=1e-4)


def test_the_rim_of_the_brain_keeps_its_brightness_when_resampled():
    array = np.zeros((24, 23, 21), dtype=np.float32)
    array[3:12, 3:20, 3:18] = 10
    array[12:21, 3:20, 3:18] = 90
    image = _prepare_one(array, Preparation(spacing_mm=2.0, percentiles=(0.0, 100.0))).image[0]
    brain = image > BACKGROUND
    ends = image[:3][brain[:3]], image[-3:][brain[-3:]]
    first, last = sorted(ends, key=lambda values: float(values.mean()))
    np.testing.assert_allclose(first, LOWEST_BRAIN, atol=1e-5)
    np.testing.assert_allclose(last, 1, atol=1e-5)


def test_each_sequence_keeps_its_column_in_canonical_order():
    arrays = {Sequence.FLAIR: _noise((9, 9, 9), seed=1), Sequence.T2: _noise((9, 9, 9), seed=2)}
    prepared = prepare_case(_case(arrays, _affine()), KEEP)
    assert prepared.sequences == (Sequence.T2, Sequence.FLAIR)
    for column, sequence in enumerate(prepared.sequences):
        assert np.array_equal(prepared.image[column], _prepare_one(arrays[sequence]).image[0])


def test_a_brain_that_vanishes_at_the_working_resolution_is_refused_by_name():
    array = np.zeros((40, 40, 40), dtype=np.float32)
    array[::6, ::6, ::6] = 50  # specks
    with pytest.raises(InputError, match=r"P01: T1.*leave this sequence out"):
        _prepare_one(array, Preparation(spacing_mm=4.0))


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1e3])
def test_a_grid_that_is_no_head_in_mm_is_refused_before_it_is_resampled(scale):
    with pytest.raises(InputError, match=r"P01: T1.nii.gz: expected a grid of the size of a head.* To mend: repair"):
        _prepare_one(_noise((48, 48, 40)), Preparation(spacing_mm=1.0), _affine(spacing=(4 * scale,) * 3))


def test_a_grid_in_metres_is_refused_by_name(tmp_path):
    image = nib.Nifti1Image(_noise((24, 24, 20)), _affine(spacing=(0.01, 0.01, 0.01)))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "P01_t1.nii.gz")
    case = CaseFiles("P01", {Sequence.T1: Source(tmp_path / "P01_t1.nii.gz")}).load()
    with pytest.raises(InputError, match=r"P01: P01_t1.nii.gz: expected a grid in mm, found one in metres"):
        prepare_case(case, KEEP)


def test_the_target_is_cropped_with_the_image():
    array = _noise((12, 11, 10), margin=2)
    target = (np.random.default_rng(3).integers(0, 4, array.shape)).astype(np.uint8)
    prepared = prepare_case(_case({Sequence.T1: array}, _affine(), target), KEEP)
    np.testing.assert_array_equal(prepared.target, target[2:-2, 2:-2, 2:-2])
    assert _prepare_one(array).target is None


@pytest.mark.parametrize("spacing_mm", [None, 2.0, 0.7])
def test_a_reference_without_tumour_stays_without(spacing_mm):
    array = _noise((12, 10, 9), margin=2)
    case = _case({Sequence.T1: array}, _affine(), np.zeros(array.shape, np.uint8))
    prepared = prepare_case(case, Preparation(spacing_mm=spacing_mm))
    assert prepared.target.shape == prepared.image.shape[1:]
    assert not prepared.target.any()
