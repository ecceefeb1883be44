import math
from dataclasses import replace

import pytest

from mindgap.evaluation.scores import Score
from mindgap.evaluation.summary import ALL_SUBSETS, average_subsets, mean_dice_of_cases, summarise
from mindgap.sequences import SUBSETS, format_subset


def make_scores(model, subset, cases, *, hd95=2.0):
    return [
        Score(model, case, subset, region, dice, hd95, 1.0, 1.0)
        for case, values in cases.items()
        for region, dice in zip(("WT", "TC", "ET"), values, strict=True)
    ]


CASES = {"a": (0.9, 0.6, 0.3), "b": (0.8, 0.7, 0.6)}


def test_rows_hold_means_intervals_and_counts():
    (row,) = summarise(make_scores("m", "T1", CASES))
    assert (row.model, row.subset, row.n) == ("m", "T1", 2)
    assert row.dice["WT"].mean == pytest.approx(0.85)
    assert row.mean.mean == pytest.approx((0.6 + 0.7) / 2)
    assert row.mean.low == pytest.approx(0.6)
    assert row.mean.high == pytest.approx(0.7)
    assert row.hd95_mm == pytest.approx({"WT": 2.0, "TC": 2.0, "ET": 2.0, "ETpp": math.nan}, nan_ok=True)
    assert row.dice["ETpp"].n == 0
    assert set(row.means) == {"hd95_mm"}


def test_undefined_distances_are_left_out():
    scores = make_scores("m", "T1", {"a": CASES["a"]}) + make_scores("m", "T1", {"b": CASES["b"]}, hd95=math.nan)
    assert summarise(scores)[0].hd95_mm["ET"] == 2.0
    assert math.isnan(summarise(make_scores("m", "T1", CASES, hd95=math.nan))[0].hd95_mm["ET"])


def test_who_saw_the_same_stands_together_and_the_threshold_behind():
    named = [
        ("threshold", "T1"),
        ("u", "T1"),
        ("u", "T2"),
        ("p", "T1"),
        ("threshold", "FLAIR"),
        ("threshold", "T2"),
    ]
    scores = [score for model, subset in named for score in make_scores(model, subset, CASES)]
    order = [(row.model, row.subset) for row in summarise(scores)]
    assert order == [
        ("u", "T1"),
        ("p", "T1"),
        ("threshold", "T1"),
        ("u", "T2"),
        ("threshold", "T2"),
        ("threshold", "FLAIR"),
    ]
    assert [row.is_baseline for row in summarise(scores)] == [False, False, True, False, True, True]


def test_a_case_without_a_region_has_no_mean():
    scores = make_scores("m", "T1", CASES)[:-1]
    assert set(mean_dice_of_cases(scores, model="m", subset="T1")) == {"a"}
    assert summarise(scores)[0].n == 2


def test_no_scores_no_rows():
    assert summarise([]) == []


def test_etpp_stands_beside_et_and_changes_no_mean():
    scores = make_scores("m", "T1", CASES)
    processed = [replace(score, region="ETpp", dice=0.0, hd95_mm=9.0) for score in scores if score.region == "ET"]
    (plain,), (row,) = summarise(scores), summarise([*scores, *processed])
    assert (row.mean, row.dice["ET"], row.n) == (plain.mean, plain.dice["ET"], plain.n)
    assert row.dice["ETpp"].mean == 0
    assert row.hd95_mm["ETpp"] == 9


def test_optional_columns_are_summed_up_where_they_were_computed():
    scores = make_scores("m", "T1", CASES)
    scores = [replace(score, surface_dice=score.dice / 2) for score in scores]
    (row,) = summarise([*scores[:-1], replace(scores[-1], surface_dice=math.nan)])
    assert row.means["surface_dice"]["WT"] == pytest.approx(0.425)
    assert row.means["surface_dice"]["ET"] == pytest.approx(0.15)
    assert "lesionwise_dice" not in row.means


def test_fifteen_subsets_are_averaged_within_each_case():
    names = [format_subset(subset) for subset in SUBSETS]
    scores = [
        replace(score, dice=n / 14, hd95_mm=math.nan if n == 0 else 2.0)
        for n, name in enumerate(names)
        for score in make_scores("any", name, CASES)
    ]
    others = make_scores("fixed", "T1", CASES) + make_scores("threshold", "T1", CASES)
    (row,) = summarise(average_subsets([*scores, *others]))
    assert (row.model, row.subset, row.n) == ("any", ALL_SUBSETS, 2)
    assert row.dice["WT"].mean == row.mean.mean == pytest.approx(0.5)
    assert row.hd95_mm["WT"] == 2.0
    less = [score for score in scores if (score.case, score.subset) != ("b", names[3])]
    (row,) = summarise(average_subsets(less))
    assert row.n == 1
