import math

import numpy as np
import pytest

from mindgap.evaluation.calibration import (
    TEMPERATURES,
    DiceModel,
    calibration_error,
    expected_dice,
    fit_dice,
    fit_temperature,
    likelihood_curve,
    reliability_bins,
    scale_classes,
    scale_regions,
)
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS


def _softmax(logits):
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def _regions(shares):
    """Nested WT, TC, ET of class probabilities."""
    et, tc = shares[ET_CLASS], shares[ET_CLASS] + shares[NCR_CLASS]
    return np.stack([tc + shares[ED_CLASS], tc, et])


def test_scaling_probabilities_is_dividing_logits():
    logits = np.random.default_rng(0).normal(0, 1.5, (4, 500))
    scaled = scale_classes(_regions(_softmax(logits)), 1.7)
    np.testing.assert_allclose(scaled, _softmax(logits / 1.7), atol=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_scaling_keeps_the_mask_and_the_nesting(temperature):
    regions = _regions(_softmax(np.random.default_rng(1).normal(0, 2, (4, 300))))
    shares = scale_classes(regions, temperature)
    assert (shares.argmax(0) == scale_classes(regions, 1.0).argmax(0)).all()
    wt, tc, et = scale_regions(regions, temperature)
    assert (wt >= tc - 1e-12).all()
    assert (tc >= et - 1e-12).all()
    np.testing.assert_allclose(shares.sum(0), 1)


@pytest.mark.parametrize("true", [0.6, 1.0, 2.5])
def test_a_known_temperature_is_found(true):
    rng = np.random.default_rng(2)
    curves = {}
    for case in "ABCDEF":
        logits = rng.normal(0, 2, (4, 4000))
        drawn = (rng.random(4000) < np.cumsum(_softmax(logits / true), 0)).argmax(0)
        curves[case] = likelihood_curve(_regions(_softmax(logits)), drawn)
    found = fit_temperature(curves, draws=200)
    assert found.value == pytest.approx(true, rel=0.05)
    assert found.low <= found.value <= found.high
    assert found.n == 6


def test_a_single_case_has_a_temperature_without_an_interval():
    found = fit_temperature({"A": (np.log(TEMPERATURES) - np.log(1.5)) ** 2})
    assert found.value == pytest.approx(1.5, rel=1e-3)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_scans_of_one_patient_are_resampled_together():
    curves = {f"BraTS-GLI-0000{p}-00{n}": (np.log(TEMPERATURES) - np.log(1 + p)) ** 2 for p in (1, 2) for n in range(9)}
    found = fit_temperature(curves, draws=200)
    assert found.n == 18
    assert found.low == pytest.approx(2, rel=1e-2)  # of two patients some draws have the first twice
    assert found.high == pytest.approx(3, rel=1e-2)
    alone = fit_temperature({case: curve for case, curve in curves.items() if "00001" in case})
    assert math.isnan(alone.low), "one patient scatters around nobody"


def test_calibration_error_by_hand():
    # two bins: 0.10 said, half true (off 0.40); 0.90 said, all true (off 0.10)
    bins = reliability_bins(np.array([0.1, 0.1, 0.9, 0.9]), np.array([True, False, True, True]))
    assert calibration_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert calibration_error(bins + bins) == pytest.approx(0.25), "cases may be added up"
    assert math.isnan(calibration_error(np.zeros((3, 15))))


def test_expected_dice_is_dice_where_probabilities_are_sure():
    mask = np.array([True, True, False, False])
    truth = np.array([1.0, 0.0, 1.0, 0.0])
    assert expected_dice(truth, mask) == pytest.approx(2 * 1 / (2 + 2))
    assert expected_dice(np.array([0.9, 0.7, 0.2, 0.0]), mask) == pytest.approx(2 * 1.6 / (1.8 + 2))
    assert math.isnan(expected_dice(truth, np.zeros(4, dtype=bool))), "nothing can be said of an empty mask"


def test_expected_dice_is_right_on_average_for_calibrated_probabilities():
    rng = np.random.default_rng(3)
    chances = rng.random(3000)
    mask = chances >= 0.5
    reached = []
    for _ in range(50):
        truth = rng.random(3000) < chances
        reached.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert expected_dice(chances, mask) == pytest.approx(np.mean(reached), abs=0.005)


def test_a_constructed_relation_is_found_and_is_cut_off():
    rng = np.random.default_rng(4)
    rows = {}
    for n in range(200):
        expected, volume_ml = rng.uniform(0.2, 0.9), rng.uniform(5, 400)
        rows[f"C{n}"] = [(expected, volume_ml, 0.5 + 0.6 * expected - 0.1 * math.log1p(volume_ml))]
    model = fit_dice(rows)
    assert model is not None
    assert model.n == 200
    assert model.slopes == (pytest.approx(0.6, rel=0.03), pytest.approx(-0.1, rel=0.03))
    assert model(0.5, 50.0) == pytest.approx(0.8 - 0.1 * math.log(51), abs=0.01)
    assert model(0.5, 1e6) == model(0.5, math.expm1(model.high[1])), "level beyond what was seen"
    assert DiceModel(0.0, (2.0, 0.0), (0.0, 0.0), (1.0, 9.0), 5)(0.9, 1.0) == 1.0
    assert math.isnan(model(math.nan, 0.0))


def test_few_cases_stay_near_their_mean_and_fewer_say_nothing():
    pairs = list(zip("ABCDE", (0.2, 0.4, 0.6, 0.8, 1.0), strict=True))
    model = fit_dice({case: [(x, 10.0, x)] for case, x in pairs})
    assert model is not None
    assert 0.5 < model.slopes[0] < 1
    assert model(0.6, 10.0) == pytest.approx(0.6)
    four = {case: [(x, 10.0, x)] * 3 for case, x in pairs[:4]}
    assert fit_dice({**four, "E": [(math.nan, 0.0, 0.0)]}) is None, "four cases, whatever the number of rows"


def test_cases_weigh_the_same_whatever_the_number_of_their_subsets():
    values = dict(zip("ABCDE", (1.0, 0.0, 0.25, 0.75, 0.5), strict=True))
    model = fit_dice({case: [(0.5, 10.0, y)] * (9 if case == "A" else 1) for case, y in values.items()})
    assert model is not None
    assert model(0.5, 10.0) == pytest.approx(0.5)
