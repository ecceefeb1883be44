import math

import pytest

from mindgap.evaluation.scores import Score
from mindgap.report.collect import compare
from mindgap.sequences import SUBSETS, format_subset


def _scores(model, values, *, regions=("WT", "TC", "ET", "ETpp"), subset="T1"):
    return [
        Score(model, f"P{n}", subset, region, value, 1.0, 1.0, 1.0)
        for n, value in enumerate(values)
        for region in regions
    ]


def test_every_pair_is_compared_on_wt_tc_et_and_their_mean_with_a_p_value():
    first = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    scores = _scores("a", first) + _scores("b", [v + 0.01 * (n + 1) for n, v in enumerate(first)])
    found = compare([*scores, *_scores("threshold", first)])
    assert [(c.text, c.region) for c in found] == [("b minus a on T1", r) for r in ("WT", "TC", "ET", "mean")]
    for comparison in found:
        assert comparison.difference.mean == pytest.approx(0.035)
        assert comparison.difference.n == 6
        assert comparison.p == pytest.approx(2 / 2**6)


def test_without_a_case_in_common_there_is_no_p_value():
    others = [Score("b", "X", "T1", region, 0.5, 1.0, 1.0, 1.0) for region in ("WT", "TC", "ET")]
    found = compare(_scores("a", [0.1, 0.2]) + others)
    assert all(math.isnan(comparison.p) and comparison.difference.n == 0 for comparison in found)


def test_networks_for_every_subset_are_compared_on_the_mean_of_fifteen_first_and_in_few_tests():
    scores = []
    for number, subset in enumerate(map(format_subset, SUBSETS)):
        scores += _scores("a", [0.2, 0.3, 0.4], subset=subset) + _scores("c", [0.5, 0.6, 0.7], subset="T1")
        scores += _scores("b", [value + 0.01 * number for value in (0.2, 0.3, 0.4)], subset=subset)
    found = [comparison for comparison in compare(scores) if comparison.text.startswith("b minus a")]
    assert [(c.text, c.region) for c in found[:4]] == [
        ("b minus a on mean of 15", region) for region in ("WT", "TC", "ET", "mean")
    ]
    assert found[0].difference.mean == pytest.approx(0.07)
    assert [c.region for c in found[4:]] == ["mean"] * 15
    others = [c.region for c in compare(scores) if c.text == "c minus a on T1"]
    assert others == ["WT", "TC", "ET", "mean"], "one of the two saw one subset only"
