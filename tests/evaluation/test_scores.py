import math
from pathlib import Path

import numpy as np
import pytest

from mindgap.errors import MindgapError
from mindgap.evaluation.metrics import dice, hd95_mm
from mindgap.evaluation.scores import COLUMNS, OPTIONAL_COLUMNS, Score, read_scores, score_case, values_of, write_scores
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS, REGIONS, region_mask

SPACING_MM = (1.0, 2.0, 0.5)


@pytest.fixture
def reference():
    target = np.zeros((12, 11, 10), np.uint8)
    target[2:9, 2:9, 2:9] = ED_CLASS
    target[3:7, 3:7, 3:7] = NCR_CLASS
    target[4:6, 4:6, 4:6] = ET_CLASS
    return target


@pytest.fixture
def rows(reference):
    predicted = np.roll(reference, 1, 0)
    predicted[predicted == ET_CLASS] = NCR_CLASS
    return score_case(predicted, reference, SPACING_MM, model="run", case="P01", subset="T1+FLAIR")


def test_each_region_has_a_row_with_its_own_metrics(rows, reference):
    assert [row.region for row in rows] == ["WT", "TC", "ET", "ETpp"]
    predicted = np.roll(reference, 1, 0)
    for row, region in zip(rows[:2], REGIONS[:2], strict=True):
        pair = region_mask(predicted, region), region_mask(reference, region)
        assert row.dice == dice(*pair) < 1
        assert row.hd95_mm == hd95_mm(*pair, SPACING_MM) > 0
        assert row.reference_ml == pytest.approx(pair[1].sum() / 1000)
        assert row.predicted_ml == pytest.approx(pair[0].sum() / 1000)
    assert (rows[2].dice, rows[2].predicted_ml, rows[2].reference_ml) == (0, 0, pytest.approx(8 / 1000))
    assert math.isnan(rows[2].hd95_mm)


def test_a_region_that_both_lack_is_perfect():
    nothing = np.zeros((4, 4, 4), np.uint8)
    for row in score_case(nothing, nothing, SPACING_MM, model="run", case="P01", subset="T1"):
        assert row.dice == 1
        assert math.isnan(row.hd95_mm)


def test_scores_survive_the_file(tmp_path, rows):
    more = [*rows, Score("threshold", 'odd, "case" é', "T1", "WT", 0.123456, math.inf, 1234.5, 0.0)]
    write_scores(tmp_path / "scores.csv", more)
    back = read_scores(tmp_path / "scores.csv")
    assert len(back) == len(more)
    for read, written in zip(back, more, strict=True):
        for name, value in vars(written).items():
            if isinstance(value, float):
                assert getattr(read, name) == pytest.approx(value, rel=1e-5, nan_ok=True)
            else:
                assert getattr(read, name) == value


def test_an_empty_table_has_columns_and_no_rows(tmp_path):
    write_scores(tmp_path / "scores.csv", [])
    assert read_scores(tmp_path / "scores.csv") == []
    assert (tmp_path / "scores.csv").read_text().startswith("model,case,subset,region,dice,hd95_mm,")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("dice", "jaccard", 1),
        lambda text: text.replace("model,case", "case,model", 1),
        lambda text: "",
        lambda text: text.replace("predicted_ml", "predicted_ml,extra", 1),
        lambda text: text.replace(",predicted_ml", "", 1),
    ],
)
def test_other_columns_are_refused(tmp_path, rows, change):
    path = tmp_path / "scores.csv"
    write_scores(path, rows)
    path.write_text(change(path.read_text()))
    with pytest.raises(MindgapError, match=r"scores\.csv has columns"):
        read_scores(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(MindgapError, match=r"scores\.csv does not exist.*mindgap evaluate"):
        read_scores(tmp_path / "scores.csv")


def test_values_are_picked_by_model_subset_and_region(rows):
    others = [
        Score("other", "P01", "T1+FLAIR", "WT", 0.1, 1.0, 1.0, 1.0),
        Score("run", "P01", "T1", "WT", 0.2, 2.0, 1.0, 1.0),
        Score("run", "P02", "T1+FLAIR", "WT", 0.3, 3.0, 1.0, 1.0),
    ]
    picked = values_of([*rows, *others], model="run", subset="T1+FLAIR", region="WT")
    assert picked == {"P01": rows[0].dice, "P02": 0.3}
    assert values_of(others, model="run", subset="T1", region="WT", column="hd95_mm") == {"P01": 2.0}


OLD = Path(__file__).parents[2] / "docs" / "results" / "real-2mm"


@pytest.mark.parametrize("path", sorted(OLD.glob("*.csv")), ids=lambda path: path.stem)
def test_files_without_the_optional_columns_are_read(path):
    rows = read_scores(path)
    assert {row.region for row in rows} == {"WT", "TC", "ET"}
    assert all(math.isnan(getattr(row, column)) for row in rows for column in OPTIONAL_COLUMNS)
    assert all(0 <= row.dice <= 1 for row in rows)


def test_some_optional_columns_and_empty_cells_are_read(tmp_path):
    words = ",".join(COLUMNS[: -len(OPTIONAL_COLUMNS)])
    path = tmp_path / "scores.csv"
    path.write_text(f"{words},lesionwise_dice,surface_dice\nm,P01,T1,WT,0.5,nan,1,2,0.25,\n")
    (row,) = read_scores(path)
    assert (row.dice, row.lesionwise_dice) == (0.5, 0.25)
    assert math.isnan(row.surface_dice)
    assert math.isnan(row.hd95_pooled_mm)


def _enhancing(voxels):
    target = np.full((12, 12, 12), 0, np.uint8)
    target.flat[:voxels] = ET_CLASS
    return target


@pytest.mark.parametrize(("voxels", "kept"), [(499, False), (500, True)])
def test_etpp_counts_a_small_prediction_as_none_and_touches_nothing_else(voxels, kept):
    predicted, reference = _enhancing(voxels), _enhancing(600)
    rows = score_case(predicted, reference, (1.0, 1.0, 1.0), model="m", case="P01", subset="T1")
    by_region = {row.region: row for row in rows}
    et, processed = by_region["ET"], by_region["ETpp"]
    assert et.dice == by_region["TC"].dice == pytest.approx(2 * voxels / (voxels + 600))
    assert et.predicted_ml == pytest.approx(voxels / 1000)
    if kept:
        assert processed == Score(**{**vars(et), "region": "ETpp"})
        return
    assert (processed.dice, processed.surface_dice, processed.lesionwise_dice, processed.predicted_ml) == (0, 0, 0, 0)
    assert processed.reference_ml == et.reference_ml
    assert math.isnan(processed.hd95_mm)
    nothing = score_case(predicted, _enhancing(0), (1.0, 1.0, 1.0), model="m", case="P01", subset="T1")
    assert {row.region: row.dice for row in nothing} == {"WT": 0, "TC": 0, "ET": 0, "ETpp": 1}


def test_etpp_is_a_volume_and_not_a_count():
    predicted, reference = _enhancing(200), _enhancing(220)
    for spacing_mm, kept in (((1.0, 1.0, 1.0), False), ((2.0, 1.0, 1.25), True), ((2.0, 1.0, 1.24), False)):
        rows = score_case(predicted, reference, spacing_mm, model="m", case="P01", subset="T1")
        assert (rows[-1].dice > 0) == kept
