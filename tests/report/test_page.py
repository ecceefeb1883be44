import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mindgap.evaluation.scores import Score
from mindgap.evaluation.statistics import Interval, bootstrap_mean
from mindgap.evaluation.summary import summarise
from mindgap.report.figures import Picture
from mindgap.report.page import (
    Comparison,
    RunSection,
    build_page,
    format_mm,
    format_p,
    format_signed,
    result_sentence,
    true_coverage,
)
from mindgap.sequences import SUBSETS, format_subset

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x.png>"


class Collector(HTMLParser):
    """Tags with their attributes, and whether every tag is closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_scores(model="m", subset="T1", *, dice=0.5, hd95=3.25, cases="ab"):
    return [Score(model, case, subset, region, dice, hd95, 1.0, 1.0) for case in cases for region in ("WT", "TC", "ET")]


def make_picture(*, case_id="a", seen=("T1",), reference=True, model="m"):
    image = np.zeros((8, 8, 6), dtype=np.float32)
    image[1:-1, 1:-1, 1:-1] = 1
    target = np.zeros(image.shape, dtype=np.uint8)
    target[2:5, 2:5, 2:4] = 1
    return Picture(
        case_id=case_id,
        caption="best of 2",
        model=model,
        seen=seen,
        images={"T1": image, "FLAIR": image},
        reference=target if reference else None,
        predicted=target,
        affine=np.eye(4),
    )


def make_run(name="run"):
    return RunSection(
        name=name,
        settings={"method": {"name": "pmkl", "k": "T1ce"}, "seed": 0, "flag": True, "nothing": None},
        facts={
            "finished": False,
            "cases": {"train": [f"case{i}" for i in range(12)], "test": ["t1"], "taught": 0},
            "split": {"name": "protokd", "sha256": "9e8b"},
            "citations": ["mindgap", "brats"],
        },
        terms=[{"step": step, "lr": 0.1, "loss": 1.0} for step in (1, 2)],
        validations=[{"step": 2, "WT": 0.5, "TC": 0.4, "ET": 0.3, "mean": 0.4, "anchor_weight/T1": 1.0}],
    )


def page_of(**parts):
    empty = {"runs": [], "scores": [], "comparisons": [], "pictures": [], "notes": []}
    return build_page(title=parts.pop("title", "A page"), **{**empty, **parts})


def words_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_an_empty_page_stands():
    page = page_of()
    Collector(page)
    words = words_of(page)
    assert "There are no scores" in words
    assert "Research use only, not a medical device" in words
    assert "Comparisons" not in words


def test_nothing_is_loaded_from_anywhere_and_hostile_names_are_text():
    page = page_of(
        title=HOSTILE,
        runs=[make_run(HOSTILE)],
        scores=make_scores(HOSTILE, cases=[HOSTILE, "b"]),
        comparisons=[Comparison(HOSTILE, "WT", Interval(0.1, 0.0, 0.2, 2, 2))],
        pictures=[make_picture(case_id=HOSTILE, model=HOSTILE)],
        notes=[HOSTILE],
    )
    tags = Collector(page).tags
    names = {tag for tag, _ in tags}
    assert not names & {"script", "link", "iframe", "object", "a", "svg"}
    sources = [attrs[key] for _, attrs in tags for key in ("src", "href", "srcset") if key in attrs]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_every_picture_has_an_alternative_text():
    page = page_of(runs=[make_run()], scores=make_scores(), pictures=[make_picture()])
    images = [attrs for tag, attrs in Collector(page).tags if tag == "img"]
    assert len(images) == 3
    assert all(len(attrs["alt"]) > 30 for attrs in images)


def test_scores_are_printed_to_three_decimals_and_an_undefined_distance_as_a_dash():
    scores = [replace(score, hd95_mm=math.nan) if score.region == "ET" else score for score in make_scores()]
    page = page_of(scores=scores)
    assert "0.500" in page
    distances = re.findall(r"<td>(.*?)</td>", page[page.index("<summary>HD95") :])
    assert distances[:3] == [format_mm(3.25), format_mm(3.25), "–"]
    assert "nan" not in words_of(page)
    assert format_mm(3.25) in {"3.2", "3.3"}


def test_means_over_fewer_cases_than_the_row_has_say_over_how_many():
    scores = make_scores(cases="abc")
    scores = [replace(s, hd95_mm=math.nan) if (s.case, s.region) == ("a", "ET") else s for s in scores]
    distances = page_of(scores=scores).partition("<summary>HD95")[2]
    assert [re.sub("<.*?>", " ", cell).split()[1:] for cell in re.findall(r"<td>(.*?)</td>", distances)[:3]] == [
        [],
        [],
        ["2", "of", "3"],
    ]


@pytest.mark.parametrize(
    ("cases", "said"),
    [
        ("abcdefghi", "Intervals over 9 cases are too narrow: about 90&nbsp;% true coverage"),
        ("abcdefghijkl", "Intervals over 12 cases are too narrow: about 91&nbsp;% true coverage"),
        ("ab", "Intervals over 2 cases are too narrow: about 50&nbsp;% true coverage"),
        ("abcdefghijklmnopqrst", None),
        ("a", None),
    ],
)
def test_intervals_over_few_cases_are_called_too_narrow(cases, said):
    words = words_of(page_of(scores=make_scores(cases=cases)))
    assert (said in words) if said else ("too narrow" not in words)
    assert ("interval" in words.partition("Settings and facts")[0].partition("What the numbers mean")[0]) == (
        len(cases) > 1
    )


def test_the_coverage_that_is_said_is_that_of_the_intervals():
    rng = np.random.default_rng(0)
    intervals = [
        bootstrap_mean(dict(zip("abcdefghi", row, strict=True)), draws=400) for row in rng.normal(size=(600, 9))
    ]
    hit = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert hit == pytest.approx(true_coverage(9), abs=0.03)


def test_the_baseline_is_marked():
    page = page_of(scores=make_scores() + make_scores("threshold", dice=0.2))
    assert page.count('<tr class="baseline">') == 2, "among the Dice and among the distances"
    assert words_of(page).count("best single threshold baseline") == 2
    assert "best single threshold 0.200" in words_of(page)


@pytest.mark.parametrize(
    ("interval", "words", "style"),
    [
        (Interval(0.02, 0.01, 0.03, 9, 9), "higher; interval lies above 0", "up"),
        (Interval(-0.02, -0.03, -0.01, 9, 9), "lower; interval lies below 0", "down"),
        (Interval(0.02, -0.01, 0.03, 9, 9), "undecided; interval contains 0", "open"),
        (Interval(0.02, 0.0, 0.03, 9, 9), "undecided; interval contains 0", "open"),
        (Interval(0.02, math.nan, math.nan, 1, 1), "no interval: too few cases", "open"),
        (Interval(math.nan, math.nan, math.nan, 0, 0), "no case in common", "open"),
    ],
)
def test_a_difference_is_said_in_words(interval, words, style):
    page = page_of(comparisons=[Comparison("a minus b", "WT", interval)])
    assert f'<td class="name {style}">{words}</td>' in page
    assert "nan" not in words_of(page)


def test_signs_are_real_signs():
    assert format_signed(-0.0214) == "−0.021"
    assert format_signed(0.0214) == "+0.021"
    assert format_signed(math.nan) == "–"


def test_the_result_is_one_sentence():
    scores = make_scores("a", dice=0.4) + make_scores("b", dice=0.6) + make_scores("threshold", dice=0.2)
    assert result_sentence(summarise(scores)) == (
        "Mean Dice over WT, TC and ET: 0.600 [0.600, 0.600] for b seeing T1 (2 cases, best single threshold 0.200)."
    )
    assert result_sentence([]) == "No network has been scored."
    single = result_sentence(summarise(make_scores(cases="a")))
    assert single == "Mean Dice over WT, TC and ET: 0.500 for m seeing T1 (1 case)."


def test_captions_say_what_was_seen_and_the_dice():
    words = words_of(page_of(pictures=[make_picture(), make_picture(seen=("T1", "FLAIR"), reference=False)]))
    assert "Dice WT 1.000, TC 1.000, ET 1.000." in words
    assert "FLAIR is shown for the reader; the network did not see it." in words
    assert "There is no reference for this case." in words
    words = words_of(page_of(pictures=[make_picture()], scores=make_scores(dice=0.25)))
    assert "Dice WT 0.250" in words, "scores.csv has the last word"


def test_settings_and_facts_are_laid_open():
    words = words_of(page_of(runs=[make_run()]))
    expectations = [
        "method.name pmkl",
        "flag yes",
        "nothing –",
        "split.sha256 9e8b",
        "12 entries case0, case1",
        "cases.test 1: t1",
        "not finished",
        "mindgap cite run",
        "Anchor weights are not identifiable",
    ]
    for expected in expectations:
        assert expected in words


def test_a_run_without_logs_or_facts_stands():
    run = RunSection("bare", {}, {}, [], [])
    words = words_of(page_of(runs=[run]))
    assert "Nothing was logged." in words
    only_terms = RunSection("r", {}, {}, [{"step": 1, "loss": 1.0}], [])
    assert "Anchor weights" not in words_of(page_of(runs=[only_terms]))


def test_etpp_and_other_metrics_stand_where_they_were_computed():
    words = words_of(page_of(scores=make_scores()))
    assert "ETpp" not in words
    assert "Surface Dice" not in words
    scores = [replace(score, surface_dice=0.625) for score in make_scores()]
    scores += [replace(score, region="ETpp", dice=0.125) for score in scores if score.region == "ET"]
    page = page_of(scores=scores)
    words = words_of(page)
    assert "ETpp Dice" in words
    assert "ETpp HD95" not in words
    assert "0.125" in words
    assert "Surface Dice" in words
    assert words.count("0.625") == 4
    assert "ETpp v1: " in words
    assert "surface Dice v1: " in words
    assert "lesion-wise" not in words
    Collector(page)


def test_p_values_are_adjusted_and_their_reach_is_said():
    nine = Interval(0.02, 0.01, 0.03, 9, 9)
    comparisons = [Comparison(f"a minus b on {n}", "WT", nine, p) for n, p in enumerate((2 / 2**9, 0.5))]
    words = words_of(page_of(comparisons=comparisons))
    assert "0.0039 0.0078" in words
    assert "0.5 0.5" in words
    assert "with 9 cases and 2 tests the smallest adjusted p within reach is 0.0078." in words
    scans = Interval(0.02, 0.01, 0.03, 12, 9)
    words = words_of(page_of(comparisons=[Comparison("a minus b", "WT", scans, 2 / 2**9)]))
    assert "with 9 patients and 1 tests the smallest adjusted p within reach is 0.0039." in words
    words = words_of(page_of(comparisons=comparisons[:1] * 16))
    assert "is 0.062: no difference, however large, can be significant here." in words
    words = words_of(page_of(comparisons=[Comparison("a minus b", "WT", nine)]))
    assert "within reach" not in words
    assert format_p(1e-9) == "< 0.0001"


def test_the_mean_of_fifteen_subsets_is_a_row_and_no_part_of_the_sentence():
    scores = [score for subset in SUBSETS for score in make_scores(subset=format_subset(subset))]
    words = words_of(page_of(scores=scores))
    assert "mean of 15" in words
    assert "mean of 15" not in result_sentence(summarise(scores))
