import math

import numpy as np
import pytest

from mindgap.evaluation.calibration import (
    TEMPERATURES,
    Line,
    calibration_error,
    expected_dice,
    fit_line,
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


def test_a_line_rises_or_is_level_and_stays_within_0_and_1():
    pairs = {case: [(x, 0.1 + 0.5 * x)] for case, x in zip("ABCD", (0.2, 0.4, 0.6, 0.8), strict=True)}
    line = fit_line(pairs)
    assert line is not None
    assert (line.slope, line.offset, line.n) == (pytest.approx(0.5), pytest.approx(0.1), 4)
    falling = fit_line({case: [(x, 1 - x)] for case, x in zip("ABC", (0.1, 0.5, 0.9), strict=True)})
    assert falling is not None
    assert (falling.slope, falling.offset, falling.n) == (0.0, pytest.approx(0.5), 3)
    assert Line(2.0, 0.0, 3)(0.9) == 1.0
    assert math.isnan(Line(2.0, 0.0, 3)(math.nan))
    assert fit_line({"A": [(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)], "B": [(math.nan, 0.0)]}) is None, (
        "one case is not three"
    )


def test_cases_weigh_the_same_whatever_the_number_of_their_subsets():
    line = fit_line({"A": [(0.5, 1.0)] * 9, "B": [(0.5, 0.0)], "C": [(0.5, 0.5)]})
    assert line is not None
    assert (line.slope, line.offset, line.n) == (0.0, pytest.approx(0.5), 3)
