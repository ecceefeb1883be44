import math

import numpy as np
import pytest

from mindgap.evaluation.statistics import bootstrap_mean, paired_difference


def _values(count, seed=0):
    return {f"P{n:03d}": float(v) for n, v in enumerate(np.random.default_rng(seed).uniform(0, 1, count))}


@pytest.mark.parametrize("count", [2, 5, 9, 57])
def test_the_interval_contains_the_mean_and_stays_within_the_values(count):
    values = _values(count)
    found = bootstrap_mean(values)
    assert found.mean == pytest.approx(np.mean(list(values.values())))
    assert min(values.values()) <= found.low < found.mean < found.high <= max(values.values())
    assert found.n == count


def test_the_interval_is_reproducible():
    values = _values(20)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_the_order_of_the_cases_makes_no_difference():
    values = _values(20)
    assert bootstrap_mean(dict(reversed(values.items()))) == bootstrap_mean(values)


def test_more_cases_make_the_interval_narrower():
    widths = []
    for count in (8, 32, 128, 512):
        found = bootstrap_mean(_values(count))
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[-1] == pytest.approx(8, rel=0.4)  # with the square root of the number


def test_the_width_is_that_of_the_normal_approximation():
    values = _values(200)
    found = bootstrap_mean(values)
    expected = 2 * 1.96 * np.std(list(values.values())) / np.sqrt(200)
    assert found.high - found.low == pytest.approx(expected, rel=0.1)


def test_the_true_mean_is_covered_about_as_often_as_promised():
    covered = 0
    for seed in range(200):
        found = bootstrap_mean(_values(30, seed), draws=500, seed=seed)
        covered += found.low <= 0.5 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_what_is_not_finite_is_left_out():
    values = _values(10)
    spoilt = values | {"Z1": math.nan, "Z2": math.inf, "A0": math.nan}
    assert bootstrap_mean(spoilt) == bootstrap_mean(values)


def test_one_case_has_a_mean_and_no_interval():
    found = bootstrap_mean({"P01": 0.7, "P02": math.nan})
    assert (found.mean, found.n) == (0.7, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("values", [{}, {"P01": math.nan}])
def test_without_cases_there_is_nothing(values):
    found = bootstrap_mean(values)
    assert found.n == 0
    assert all(math.isnan(value) for value in (found.mean, found.low, found.high))


def test_differences_are_paired_by_case():
    first = _values(20)
    second = {case: value - 0.1 for case, value in reversed(first.items())}
    found = paired_difference(first, second)
    # Unpaired, the interval would be as wide as the spread between cases.
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.n == 20
    turned = paired_difference(second, first)
    assert turned.mean == pytest.approx(-0.1)


def test_only_cases_that_both_have_are_compared():
    first = {"P01": 0.5, "P02": 0.9, "P03": math.nan, "P05": 0.4}
    second = {"P01": 0.4, "P03": 0.1, "P04": 0.0, "P05": 0.1}
    found = paired_difference(first, second)
    assert found.n == 2
    assert found.mean == pytest.approx(0.2)
