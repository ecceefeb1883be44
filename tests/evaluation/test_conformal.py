import math

import numpy as np
import pytest

from mindgap.evaluation.conformal import (
    conformal_ends,
    conformal_quantile,
    exact_binomial,
    highest_level,
    volume_interval,
    volume_residual,
)


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (19, 0.9), (40, 0.8)])
def test_new_values_are_covered_as_often_as_promised(n, level):
    values = np.random.default_rng(0).lognormal(0, 1, (20_000, n + 1))
    covered = np.mean([row[-1] <= conformal_quantile(row[:-1], level) for row in values])
    promised = math.ceil((n + 1) * level - 1e-9) / (n + 1)
    assert covered == pytest.approx(promised, abs=0.01)
    assert promised >= level


@pytest.mark.parametrize("n", [9, 19, 40])
def test_both_ends_together_hold_what_is_promised(n):
    values = np.random.default_rng(1).lognormal(0, 1, (20_000, n + 1)) - 3  # one-sided, and off the middle
    held = 0
    for row in values:
        low, high = conformal_ends(row[:-1], 0.9)
        held += low <= row[-1] <= high
    assert held / len(values) >= 0.9 - 0.007


def test_ends_follow_a_network_that_always_takes_too_much():
    residuals = list(np.linspace(-2, -1, 19))
    assert conformal_ends(residuals, 0.9) == (-2.0, -1.0)
    assert conformal_ends(residuals[1:], 0.9) == (residuals[1], -residuals[1]), "18 are too few for two ends"
    assert conformal_ends(residuals[:8], 0.9) is None


def test_a_level_out_of_reach_is_not_available():
    assert conformal_quantile([0.1] * 8, 0.9) is None
    assert conformal_quantile([*[0.1] * 8, 0.5], 0.9) == 0.5, "nine cases reach 90 %, with their largest residual"
    assert conformal_quantile([], 0.5) is None
    assert volume_interval(10.0, [0.1] * 8, 0.9) is None
    assert highest_level(9) == 0.9


def test_an_interval_holds_exactly_what_was_off_by_no_more():
    residuals = [volume_residual(50.0, reference) for reference in (40.0, 55.0, 48.0)]
    interval = volume_interval(50.0, residuals, 0.75)
    assert interval is not None
    assert interval.low_ml == pytest.approx(40.0)
    assert interval.high_ml == pytest.approx(51**2 / 41 - 1)
    assert (interval.level, interval.n) == (0.75, 3)
    empty = volume_interval(0.0, [0.5], 0.5)
    assert empty is not None
    assert (empty.low_ml, empty.high_ml) == (0.0, pytest.approx(math.exp(0.5) - 1))


def test_exact_binomial_by_its_closed_ends():
    low, high = exact_binomial(10, 10)
    assert (low, high) == (pytest.approx(0.025**0.1), 1.0)
    assert exact_binomial(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
