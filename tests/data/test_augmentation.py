from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mindgap.batch import brain_of
from mindgap.data.augmentation import (
    Augmentation,
    apply_intensities,
    draw,
    paper_augmentation,
    strong_augmentation,
    wide_augmentation,
)
from mindgap.data.bending import bend
from mindgap.data.prepared import LOWEST_BRAIN
from mindgap.errors import SettingError
from mindgap.shapes import BACKGROUND

OFF = Augmentation(flip=0.0, scale=0.0, scale_probability=0.0)
ALL = Augmentation(flip=1.0, scale=1.0, scale_probability=1.0, gamma=1.0, shift=1.0, bias=1.0, noise=1.0)


def _drawn(augmentation=ALL, **changes):
    arguments = {"seed": 3, "step": 7, "batch": 4, "cases": 5, "sequences": 2, "foreground": 0.5} | changes
    return draw(augmentation, **arguments)


def _same(first, second):
    return {
        field.name: bool(np.array_equal(getattr(first, field.name), getattr(second, field.name)))
        for field in fields(first)
    }


@pytest.fixture
def image():
    """Brain in the middle, from its lowest to its highest value, background around it."""
    generator = torch.Generator().manual_seed(0)
    image = torch.full((4, 2, 8, 9, 10), BACKGROUND)
    inner = image[:, :, 2:6, 2:7, 2:8]
    inner.copy_(torch.rand(inner.shape, generator=generator) * (1 - LOWEST_BRAIN) + LOWEST_BRAIN)
    inner[..., 0, 0, 0], inner[..., 0, 0, 1] = LOWEST_BRAIN, 1.0
    return image


def test_draws_depend_on_seed_and_step_and_on_nothing_else():
    first = _drawn()
    np.random.default_rng(0).random(100)
    torch.rand(10)
    _drawn(step=8)
    assert all(_same(first, _drawn()).values())
    kinds = ("corner", "voxel", "scale", "gamma", "shift", "bias", "noise", "noise_seed")
    for changed in (_drawn(step=6), _drawn(step=8), _drawn(seed=4)):
        equal = _same(first, changed)
        assert not any(equal[name] for name in kinds)


@pytest.mark.parametrize(("cases", "batch"), [(5, 3), (4, 4), (3, 7), (1, 2)])
def test_every_case_comes_once_per_epoch(cases, batch):
    order = np.concatenate([_drawn(step=step, batch=batch, cases=cases).cases for step in range(5 * cases)])
    epochs = order.reshape(-1, cases)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(cases), (len(epochs), 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1 or cases == 1


def test_draws_stay_within_their_bounds():
    settings = Augmentation(flip=0.5, scale=0.2, scale_probability=0.5, gamma=0.3, shift=0.1, bias=0.2, noise=0.05)
    drawn = _drawn(settings, batch=500)
    for values, low, high in (
        (drawn.corner, 0, 1),
        (drawn.voxel, 0, 1),
        (drawn.scale, 0.8, 1.2),
        (np.log(drawn.gamma), -0.3, 0.3),
        (drawn.shift, -0.1, 0.1),
        (drawn.bias, -0.2, 0.2),
        (drawn.noise, 0, 0.05),
    ):
        assert low - 1e-6 <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high + 1e-6
    assert 0.4 < (drawn.scale == 1).mean() < 0.6
    assert 0.4 < drawn.flips.mean() < 0.6
    assert 0.4 < drawn.foreground.mean() < 0.6


def test_kinds_that_are_off_draw_nothing():
    drawn = _drawn(OFF, foreground=0.0)
    assert not drawn.flips.any()
    assert not drawn.foreground.any()
    assert (drawn.scale == 1).all()
    assert (drawn.gamma == 1).all()
    for values in (drawn.shift, drawn.bias, drawn.noise):
        assert (values == 0).all()


def test_without_scale_and_flips_the_image_stays_as_it_is(image):
    result = apply_intensities(image, _drawn(OFF), OFF)
    torch.testing.assert_close(result, image, rtol=0, atol=2e-7)
    assert torch.equal(result == BACKGROUND, image == BACKGROUND)


@pytest.mark.parametrize("settings", [paper_augmentation(), strong_augmentation(), ALL])
def test_background_stays_and_brain_stays_above_it(image, settings):
    brain = brain_of(image)
    for step in range(20):
        result = apply_intensities(image, _drawn(settings, step=step), settings)
        assert not torch.equal(result, image) or settings == paper_augmentation()
        assert bool((result[~brain] == BACKGROUND).all())
        assert float(result[brain].min()) >= np.float32(LOWEST_BRAIN)
        assert bool(result.isfinite().all())


def test_scale_multiplies_the_distance_from_the_background(image):
    settings = Augmentation(scale=0.5, scale_probability=1.0)
    drawn = _drawn(settings)
    result = apply_intensities(image, drawn, settings)
    expected = (image + 1) * torch.from_numpy(drawn.scale)[:, :, None, None, None] - 1
    brain = brain_of(image)
    torch.testing.assert_close(result[brain], expected[brain].clamp_min(LOWEST_BRAIN))
    assert len(np.unique(drawn.scale)) == drawn.scale.size


def test_gamma_and_shift_act_as_named(image):
    brain = brain_of(image)
    settings = replace(OFF, gamma=0.5)
    drawn = _drawn(settings)
    expected = 2 * ((image + 1) / 2) ** torch.from_numpy(drawn.gamma)[:, :, None, None, None] - 1
    result = apply_intensities(image, drawn, settings)
    torch.testing.assert_close(result[brain], expected[brain].clamp_min(LOWEST_BRAIN), rtol=0, atol=1e-5)
    settings = replace(OFF, shift=0.5)
    drawn = _drawn(settings)
    expected = image + torch.from_numpy(drawn.shift)[:, :, None, None, None]
    result = apply_intensities(image, drawn, settings)
    torch.testing.assert_close(result[brain], expected[brain].clamp_min(LOWEST_BRAIN), rtol=0, atol=1e-5)


def test_a_bias_field_is_smooth_and_within_its_amplitude(image):
    settings = replace(OFF, bias=0.4)
    flat = torch.where(brain_of(image), torch.zeros(()), image)
    ratio = (apply_intensities(flat, _drawn(settings), settings) + 1)[:, :, 2:6, 2:7, 2:8]
    assert float(ratio.log().abs().max()) <= 0.4 + 1e-5
    assert float(ratio.std()) > 0.01
    assert max(float(ratio.diff(dim=axis).abs().max()) for axis in (2, 3, 4)) < 0.4


def test_noise_can_be_replayed(image):
    settings = replace(OFF, noise=0.2)
    drawn = _drawn(settings)
    first = apply_intensities(image, drawn, settings)
    torch.rand(5)
    assert torch.equal(first, apply_intensities(image, drawn, settings))
    assert not torch.equal(first, apply_intensities(image, _drawn(settings, step=8), settings))
    middle = image.abs() < 0.3
    assert float((first - image)[middle].std()) > 0.01


def test_the_noise_of_a_row_does_not_depend_on_the_rows_beside_it(image):
    settings = strong_augmentation()
    drawn = _drawn(settings)
    together = apply_intensities(image, drawn, settings)
    alone = replace(drawn, **{field.name: getattr(drawn, field.name)[2:3] for field in fields(drawn)})
    torch.testing.assert_close(apply_intensities(image[2:3], alone, settings)[0], together[2])


def test_nothing_spreads_from_an_absent_sequence(image):
    settings = strong_augmentation()
    spoilt = image.clone()
    spoilt[:, 1] = float("nan")
    clean = apply_intensities(image, _drawn(settings), settings)
    assert torch.equal(apply_intensities(spoilt, _drawn(settings), settings)[:, 0], clean[:, 0])


@pytest.mark.parametrize("name", [field.name for field in fields(Augmentation)])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_numbers_outside_0_to_1_are_refused(name, value):
    with pytest.raises(SettingError, match=str(value)):
        Augmentation(**{name: value})


def _window(side=40):
    """A ball of brain with a brighter box in it, which is the tumour; codes of two sequences, and classes."""
    places = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij")).float() - (side - 1) / 2
    codes = torch.zeros(3, side, side, side, dtype=torch.uint8)
    codes[:2, places.norm(dim=0) < 0.45 * side] = 100
    box = (
        slice(side // 2 - 5, side // 2 + 4),
        slice(side // 2 - 3, side // 2 + 6),
        slice(side // 2 - 4, side // 2 + 5),
    )
    codes[:2, box[0], box[1], box[2]] = 220
    codes[2, box[0], box[1], box[2]] = 3
    return codes


def test_a_bent_crop_keeps_images_and_classes_together_and_its_rim_bright():
    codes = _window()
    settings = wide_augmentation()
    different = set()
    for step in range(5):
        draws = _drawn(settings, step=step, batch=1)
        bent = bend(codes, draws, 0, crop=26)
        assert bent.shape == (3, 26, 26, 26)
        bright = bent[0] > 160
        overlap = 2 * (bright & (bent[2] > 0)).sum() / (bright.sum() + (bent[2] > 0).sum())
        assert overlap > 0.93
        assert int(bent[0][bent[0] > 0].min()) >= 99, "background was mixed into the brain"
        different.add(int((bent[2] > 0).sum()))
    assert len(different) > 1
    assert torch.equal(bend(codes, draws, 0, crop=26), bent), "the same draws bend alike"


def test_a_bend_without_angles_lengths_and_displacements_is_the_middle_of_the_window():
    draws = _drawn(replace(OFF, warp=1.0), batch=1)
    assert torch.equal(bend(_window(), draws, 0, crop=26), _window()[:, 7:33, 7:33, 7:33])


def test_turning_a_quarter_is_a_quarter_turn():
    draws = _drawn(replace(OFF, warp=1.0), batch=1)
    turned = replace(draws, frame=np.array([[[0, -1, 0], [1, 0, 0], [0, 0, 1]]], dtype=np.float32))
    expected = torch.rot90(_window(), k=1, dims=(1, 2))[:, 7:33, 7:33, 7:33]
    found = bend(_window(), turned, 0, crop=26)
    assert torch.equal(found, expected) or torch.equal(found, torch.rot90(expected, k=2, dims=(1, 2)))


def test_thick_slices_lose_detail_along_one_axis(image):
    settings = replace(OFF, blur=1.0)
    draws = replace(_drawn(settings), blur=np.full((4, 2), 2), blur_axis=np.full((4, 2), 2))
    blurred = apply_intensities(image, draws, settings)
    rough = lambda maps: float(maps[..., 2:6, 2:7, 3:7].diff(dim=-1).abs().mean())  # noqa: E731
    assert rough(blurred) < 0.6 * rough(image)
    assert torch.equal(brain_of(blurred), brain_of(image))


def test_a_curve_bends_but_never_turns_intensities_around(image):
    settings = replace(OFF, curve=1.0)
    bent = apply_intensities(image, _drawn(settings), settings)
    assert not torch.allclose(bent, image, atol=0.05)
    for row in range(4):
        inside = brain_of(image[row, 0])
        order = image[row, 0][inside].argsort()
        assert bool((bent[row, 0][inside][order].diff() >= -1e-5).all())


def test_a_short_stack_ends_for_all_sequences_at_once(image):
    settings = replace(OFF, slab=1.0)
    short = apply_intensities(torch.zeros_like(image) + 0.5, _drawn(settings), settings)
    gone = ~brain_of(short)
    assert bool(gone.any(dim=(1, 2, 3, 4)).all())
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert float(gone.float().mean()) < 0.4


def test_older_kinds_are_drawn_as_before_the_wide_ones():
    same = _same(_drawn(strong_augmentation()), _drawn(replace(strong_augmentation(), warp=1.0, blur=0.5, slab=0.5)))
    assert {name for name, equal in same.items() if not equal} == {"warp", "blur", "slab"}


def test_older_kinds_are_drawn_as_before_what_is_foreign():
    same = _same(_drawn(wide_augmentation()), _drawn(replace(wide_augmentation(), transplant=1.0, residue=1.0)))
    assert {name for name, equal in same.items() if not equal} == {"donor", "residue"}
    assert (_drawn(wide_augmentation()).donor == -1).all()
    assert (_drawn(wide_augmentation()).residue == 0).all()


def test_as_many_rows_get_a_donor_or_skull_as_were_asked_for():
    drawn = _drawn(replace(OFF, transplant=0.3, residue=0.6), batch=2000)
    given, left = drawn.donor >= 0, drawn.residue > 0
    assert given.mean() == pytest.approx(0.3, abs=0.03)
    assert left.mean() == pytest.approx(0.6, abs=0.03)
    assert (given & left).mean() == pytest.approx(0.18, abs=0.03)
    assert set(drawn.donor[given]) == set(range(5))
    assert not (drawn.donor == drawn.cases).any(), "another case's tumour"
    assert (_drawn(replace(OFF, transplant=1.0), cases=1).donor == -1).all(), "there is no other"
    assert set(drawn.residue[left]) == {1, 2}


def test_skull_is_left_around_the_brain_and_in_every_sequence_that_is_there(image):
    image[0, 1] = BACKGROUND
    settings = replace(OFF, residue=1.0)
    drawn = replace(_drawn(settings), residue=np.array([1, 1, 2, 2]))
    left = apply_intensities(image, drawn, settings)
    brain, covered = brain_of(image), brain_of(left)
    torch.testing.assert_close(left[brain], image[brain], rtol=0, atol=2e-7)
    assert not covered[0, 1].any(), "an absent sequence stays absent"
    rim = covered & ~brain
    for row, reach in enumerate((1, 1, 2, 2)):
        near = torch.nn.functional.max_pool3d(brain[row, :1].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
        assert rim[row, 0].any(), "some of it is left"
        assert not (rim[row, 0] & ~near).any(), "within its reach"
        assert (near & ~brain[row, 0] & ~rim[row, 0]).any(), "in patches"
    assert torch.equal(rim[1, 0], rim[1, 1]), "where one sequence shows it the others do"
    assert bool((left[rim] >= LOWEST_BRAIN).all())
    levels = [left[2, column][rim[2, column]].mean() for column in range(2)]
    assert abs(float(levels[0] - levels[1])) > 1e-3, "each as bright as its sequence has it"


def test_draws_are_compared_by_identity():
    one = _drawn()
    assert one != _drawn(), "the truth of an array has no single answer"
    assert one == one
