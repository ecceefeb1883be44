import json

import numpy as np
import pytest
import torch

from mindgap.data.codes import decode
from mindgap.data.prepared import Placement, PreparedCase
from mindgap.errors import MindgapError
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.threshold import (
    Threshold,
    fit_thresholds,
    predict_threshold,
    thresholds_from_plain,
    thresholds_to_plain,
)
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.sequences import SEQUENCES, Sequence

T1, T2, T1CE, FLAIR = SEQUENCES
SHAPE = (7, 6, 5)


def _random_case(seed, sequences=(T1, FLAIR)):
    rng = np.random.default_rng(seed)
    images = {s: rng.integers(0, 256, SHAPE).astype(np.uint8) for s in sequences}
    for codes in images.values():
        codes[:2] = 0
    target = rng.choice(4, SHAPE, p=(0.6, 0.1, 0.1, 0.2)).astype(np.uint8)
    return images, target


def _cut(codes, code, above):
    return (codes > 0) & ((codes >= code) if above else (codes <= code))


def _prepared(images):
    box = tuple((0, n) for n in SHAPE)
    sequences = tuple(s for s in SEQUENCES if s in images)
    return PreparedCase(
        case_id="P01",
        image=np.stack([decode(torch.from_numpy(images[s])).numpy() for s in sequences]),
        sequences=sequences,
        boxes=(box,) * len(sequences),
        target=None,
        placement=Placement(SHAPE, (0, 1, 2), (False, False, False), SHAPE, box),
        spacing_mm=(1.0, 1.0, 1.0),
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dark", [False, True])
def test_the_best_threshold_is_that_of_a_search_over_all(count, dark):
    cases = [_random_case(seed) for seed in range(count)]
    for images, target in cases:  # something to find, brighter or darker than the rest
        images[FLAIR][region_mask(target, Region.WT) & (images[FLAIR] > 0)] = 30 if dark else 230
    fitted = fit_thresholds(cases)
    for region in REGIONS:
        for sequence in (T1, FLAIR):
            scores = {
                (code, above): np.mean(
                    [dice(_cut(images[sequence], code, above), region_mask(target, region)) for images, target in cases]
                )
                for code in range(1, 256)
                for above in (True, False)
            }
            found = fitted[region][sequence]
            assert found.dice == pytest.approx(max(scores.values()))
            assert scores[found.code, found.above] == pytest.approx(found.dice)
    assert fitted[Region.WT][FLAIR].above is not dark


def test_a_fitted_dice_is_that_of_the_mask():
    images, target = _random_case(3)
    fitted = fit_thresholds([(images, target)])
    for region in REGIONS:
        for sequence, threshold in fitted[region].items():
            assert threshold.dice == pytest.approx(dice(threshold.apply(images[sequence]), region_mask(target, region)))


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("code", [1, 2, 128, 255])
def test_background_is_never_in_a_mask(above, code):
    codes = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    mask = Threshold(code, above, 0.5).apply(codes)
    np.testing.assert_array_equal(mask, _cut(codes, code, above))
    assert not mask[codes == 0].any()
    assert mask[codes == code].all()


def test_a_dark_tumour_is_found_although_the_background_is_darker():
    target = np.zeros(SHAPE, np.uint8)
    target[3:5, 2:4, 1:3] = 1
    codes = np.full(SHAPE, 200, np.uint8)
    codes[:2], codes[target > 0] = 0, 20
    found = fit_thresholds([({T1: codes}, target)])[Region.ET][T1]
    assert found.dice == 1
    assert not found.above
    assert 20 <= found.code < 200


def test_tumour_on_the_background_counts_as_missed():
    target = np.zeros(SHAPE, np.uint8)
    target[1:3, 0, 0] = 1
    codes = np.full(SHAPE, 50, np.uint8)
    codes[:2] = 0
    codes[2, 0, 0] = 90
    assert fit_thresholds([({T1: codes}, target)])[Region.ET][T1].dice == pytest.approx(2 / 3)


def test_cases_that_lack_a_sequence_do_not_count_for_it():
    both, one = _random_case(1), _random_case(2, (FLAIR,))
    fitted = fit_thresholds([both, one])
    only_both = fit_thresholds([both])
    assert fitted[Region.WT][T1] == only_both[Region.WT][T1]
    assert fitted[Region.WT][FLAIR] != only_both[Region.WT][FLAIR]


def test_a_subset_uses_the_best_of_its_own_sequences():
    images, _ = _random_case(0, SEQUENCES)
    row = {T1: Threshold(10, True, 0.2), T2: Threshold(20, True, 0.4), FLAIR: Threshold(30, False, 0.9)}
    fitted = {Region.WT: row, Region.TC: {**row, T1: Threshold(40, False, 0.95)}, Region.ET: row}
    prepared = _prepared(images)
    masks = predict_threshold(prepared, fitted, (T1, T2))
    np.testing.assert_array_equal(masks[Region.WT], _cut(images[T2], 20, True))
    np.testing.assert_array_equal(masks[Region.TC], _cut(images[T1], 40, False))
    masks = predict_threshold(prepared, fitted, SEQUENCES)
    np.testing.assert_array_equal(masks[Region.ET], _cut(images[FLAIR], 30, False))
    masks = predict_threshold(_prepared({T1: images[T1]}), fitted, (T1, FLAIR))
    np.testing.assert_array_equal(masks[Region.WT], _cut(images[T1], 10, True))


def test_a_subset_that_was_never_fitted_is_refused_by_name():
    images, target = _random_case(0)
    fitted = fit_thresholds([(images, target)])
    with pytest.raises(MindgapError, match=r"P01.*T1ce"):
        predict_threshold(_prepared({T1CE: images[T1]}), fitted, (T1CE,))


def test_thresholds_survive_json():
    fitted = fit_thresholds([_random_case(seed) for seed in range(2)])
    assert thresholds_from_plain(json.loads(json.dumps(thresholds_to_plain(fitted)))) == fitted
    assert set(fitted) == set(REGIONS)
    assert all(isinstance(sequence, Sequence) for row in fitted.values() for sequence in row)
