import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from mindgap.evaluation.statistics import (
    bootstrap_mean,
    holm,
    paired_difference,
    seed_average,
    smallest_attainable_p,
    wilcoxon,
)


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


def _cases(values):
    return {f"P{n:02d}": float(value) for n, value in enumerate(values)}


def _against_zero(differences):
    return wilcoxon(_cases(differences), _cases([0.0] * len(differences)))


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 2 / 2**9),
        ([-1, -2, -3, -4, -5, -6, -7, -8, -9], 2 / 2**9),
        ([-1, 2, 3, 4, 5, 6, 7, 8, 9], 4 / 2**9),  # rank sums 1 and 0 are as far out
        ([1, -1, 2, -2], 1.0),
        ([3], 1.0),
        ([0, 0, 0], 1.0),
    ],
)
def test_wilcoxon_of_few_cases_by_hand(differences, expected):
    assert _against_zero(differences) == pytest.approx(expected)


def test_wilcoxon_ranks_zeros_and_then_leaves_them_out():
    """Pratt against enumeration of all signs, with the zeros holding the lowest ranks."""
    differences = [0.0, 0.0, -0.1, -0.2, 0.3, 0.4, 0.5, 0.6]
    ranks = np.arange(3, 9)
    observed = ranks[np.array(differences[2:]) > 0].sum()
    sums = np.array([(ranks * np.array(signs)).sum() for signs in product((0, 1), repeat=6)])
    expected = 2 * min(np.mean(sums >= observed), np.mean(sums <= observed))
    assert _against_zero(differences) == pytest.approx(expected)
    without = [value for value in differences if value]
    assert _against_zero(without) != pytest.approx(expected)


def test_wilcoxon_of_many_cases_is_that_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.1, 1, 57), rng.normal(0, 1, 57)
    found = wilcoxon(_cases(first), dict(reversed(_cases(second).items())))
    assert found == pytest.approx(stats.wilcoxon(first, second, zero_method="pratt").pvalue)
    assert found == wilcoxon(_cases(second), _cases(first))


def test_wilcoxon_takes_the_cases_both_have():
    first = _cases([1, 2, 3, 4, 5]) | {"X1": 100.0, "X2": math.nan}
    second = _cases([0, 0, 0, 0, 0]) | {"X2": 0.0, "X3": 7.0}
    assert wilcoxon(first, second) == pytest.approx(2 / 2**5)
    assert math.isnan(wilcoxon({"a": 1.0}, {"b": 1.0}))
    assert math.isnan(wilcoxon({}, {}))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_never_turns_the_order_round_and_never_helps():
    p_values = np.random.default_rng(0).uniform(0, 0.2, 12).tolist()
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert [adjusted[n] for n in np.argsort(p_values)] == sorted(adjusted)


def test_a_test_that_was_not_made_is_no_part_of_the_family():
    found = holm([0.01, math.nan, 0.02])
    assert found[0::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])


def test_nine_cases_reach_no_significance_in_a_family_of_16():
    assert smallest_attainable_p(9) == pytest.approx(0.00390625) == _against_zero(range(1, 10))
    assert smallest_attainable_p(9, 16) == pytest.approx(0.0625) == min(holm([_against_zero(range(1, 10))] * 16))
    assert smallest_attainable_p(57, 16) < 1e-10
    assert smallest_attainable_p(0) == smallest_attainable_p(1) == smallest_attainable_p(3, 1000) == 1


def test_seeds_are_averaged_within_each_case():
    runs = [{"a": 0.2, "b": 0.8, "c": 1.0}, {"b": 0.6, "a": 0.4}, {"a": 0.6, "b": 0.7, "d": 0.0}]
    assert seed_average(runs) == pytest.approx({"a": 0.4, "b": 0.7})
    assert math.isnan(seed_average([{"a": 1.0}, {"a": math.nan}])["a"])
    assert seed_average([]) == {}


def test_time_points_of_a_patient_are_no_cases_of_their_own():
    values = {f"BraTS-GLI-{n // 3:05d}-{100 + n % 3}": v for n, v in enumerate([0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.9])}
    found = bootstrap_mean(values)
    assert (found.n, found.mean) == (7, pytest.approx(np.mean(list(values.values()))))
    apart = bootstrap_mean({f"P{n}": v for n, v in enumerate(values.values())})
    assert found.high - found.low > apart.high - apart.low, "three patients know less than seven"
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.9)), "three times the same one"
    assert wilcoxon(values, dict.fromkeys(values, 0.0)) == stats.wilcoxon([0.1, 0.5, 0.9]).pvalue
    single = bootstrap_mean(dict(list(values.items())[:3]))
    assert math.isnan(single.low)
