import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mindgap.errors import MindgapError
from mindgap.evaluation.calibration import DiceModel, Temperature
from mindgap.evaluation.conformal import volume_residual
from mindgap.inference.confidence import (
    POOLED,
    Confidence,
    Observed,
    entropy_bits,
    estimate,
    expected_by_region,
    read_confidence,
    shown_voxels,
    write_confidence,
)
from mindgap.inference.familiarity import describe_image
from mindgap.regions import REGIONS, Region
from mindgap.runfiles import CONFIDENCE
from mindgap.sequences import SEQUENCES, format_subset

ALL = format_subset(SEQUENCES)


@pytest.fixture(scope="module")
def found(anything, study):
    case = study.cases[0].load()
    return case, anything.segment(case)


@pytest.fixture
def confidence(anything) -> Confidence:
    """Known from nine invented cases whose volumes were off by at most a factor 1.5."""
    rows = tuple(
        Observed(f"K{n}", ALL, str(region), 0.5 + n / 32, 0.25 + n / 32, 10.0, 8.0 + 0.5 * n)
        for n in range(9)
        for region in REGIONS
    )
    return Confidence(
        model_sha256=anything.sha256,
        coverage="whole",
        part="all",
        level=0.9,
        review_below=0.1,
        observed=rows,
        temperatures={POOLED: Temperature(1.5, 1.2, math.nan, 9)},
        dice_models={
            POOLED: {str(region): DiceModel(0.1, (1.0, 0.0), (0.0, 0.0), (1.0, 9.0), 9) for region in REGIONS}
        },
        known={},
    )


def test_a_mask_that_is_empty_on_its_own_grid_is_to_be_looked_at(confidence, found):
    case, segmentation = found
    result = estimate(confidence, segmentation, case, coverage="whole")
    assert "no tumour was found" not in result.review
    gone = result.of_mask(dict.fromkeys(Region, 0.0), result.volumes)
    assert gone.review == ("no tumour was found", *result.review)
    assert all(math.isnan(value) for value in gone.dice.values())
    assert gone.of_mask(dict.fromkeys(Region, 0.0), result.volumes).review == gone.review


def test_an_estimate_is_calibrated_and_its_intervals_hold_the_mask(confidence, found):
    case, segmentation = found
    result = estimate(confidence, segmentation, case, coverage="whole")
    raw = expected_by_region(*shown_voxels(segmentation), 1.5)
    for region in REGIONS:
        assert result.dice[region] == pytest.approx(min(1.0, raw[region] + 0.1))
        interval = result.volumes[region]
        assert interval.low_ml < segmentation.volumes_ml[region] < interval.high_ml
    assert (result.n, result.temperature, result.review, result.notes) == (9, 1.5, (), ())
    assert json.loads(json.dumps(result.to_plain()))["expected_dice"]["WT"] == pytest.approx(
        result.dice[Region.WT], abs=1e-4
    )


def test_what_is_left_out_as_faint_does_not_count(found):
    segmentation = found[1]
    few = expected_by_region(*shown_voxels(segmentation), 1.0)
    everything = expected_by_region(segmentation.probabilities.reshape(3, -1), segmentation.target.ravel(), 1.0)
    assert few == pytest.approx(everything, abs=1e-3)


def test_reasons_to_look(confidence, found):
    case, segmentation = found
    strict = replace(confidence, review_below=1.0)
    (reason,) = estimate(strict, segmentation, case, coverage="whole").review
    assert reason.startswith("expected Dice of WT")
    empty = replace(segmentation, target=np.zeros_like(segmentation.target), volumes_ml=dict.fromkeys(REGIONS, 0.0))
    result = estimate(confidence, empty, case, coverage="whole")
    assert result.review == ("no tumour was found",)
    assert all(math.isnan(value) for value in result.dice.values())
    assert result.to_plain()["expected_dice"]["ET"] is None


def test_a_mask_that_too_few_cases_can_vouch_for_is_to_be_looked_at(confidence, found):
    case, segmentation = found
    result = estimate(replace(confidence, dice_models={POOLED: {}}), segmentation, case, coverage="whole")
    (reason,) = result.review
    assert reason.startswith("no Dice can be expected")


def test_a_case_that_the_network_knows_is_said_to_come_out_better_than_others(confidence, found):
    case, segmentation = found
    features = {sequence: describe_image(volume) for sequence, volume in case.images.items()}
    rounded = {s: tuple(round(x, 5) for x in values) for s, values in features.items()}
    other = {s: (*values[:-1], values[-1] + 0.01) for s, values in rounded.items()}
    for known, said in ({"K1": other, "K2": rounded}, True), ({"K1": other}, False):
        notes = estimate(replace(confidence, known=known), segmentation, case, coverage="whole").notes
        assert any("these are images of K2, which the network was trained" in note for note in notes) is said


def test_cases_that_chose_the_network_are_said_to_be_too_hopeful(confidence, found):
    case, segmentation = found
    (note,) = estimate(replace(confidence, part="validation"), segmentation, case, coverage="whole").notes
    assert "expected Dice may be too high" in note


def test_a_level_out_of_reach_and_unknown_subsets_are_said(confidence, found):
    case, segmentation = found
    result = estimate(replace(confidence, level=0.95), segmentation, case, coverage="tiles")
    assert set(result.volumes.values()) == {None}
    assert "9 calibration cases reach 90% at most" in result.notes[0]
    assert result.notes[1] == "calibrated with coverage whole, applied with tiles"
    other = replace(segmentation, subset=(SEQUENCES[0],))
    result = estimate(confidence, other, case, coverage="whole")
    assert (result.n, set(result.volumes.values())) == (0, {None})
    assert "not calibrated on T1" in result.notes[0]


def test_entropy_is_two_bits_where_nothing_is_known_and_rises_with_temperature():
    even = np.array([0.75, 0.5, 0.25], np.float32).reshape(3, 1, 1, 1)
    assert entropy_bits(even, 1.0).item() == pytest.approx(2.0)
    sure = np.array([0.9, 0.85, 0.8], np.float32).reshape(3, 1, 1, 1)
    assert 0 < entropy_bits(sure, 1.0).item() < entropy_bits(sure, 3.0).item() < 2
    assert entropy_bits(np.zeros((3, 2, 2, 2), np.float32), 1.0).max() == 0


def test_what_is_written_is_read(confidence, tmp_path):
    assert read_confidence(tmp_path, confidence.model_sha256) is None
    known = {"K0": {SEQUENCES[0]: (0.1, 0.2)}}
    rows = (*confidence.observed, Observed("K9", ALL, "WT", 0.0, math.nan, 0.0, 3.0))
    written = replace(confidence, observed=rows, known=known)
    write_confidence(tmp_path, written)
    read = read_confidence(tmp_path, confidence.model_sha256)
    assert str(read) == str(written)  # NaN is not NaN
    assert "NaN" not in (tmp_path / CONFIDENCE).read_text()
    with pytest.raises(MindgapError, match="speaks of other weights"):
        read_confidence(tmp_path, "0" * 64)
    value = json.loads((tmp_path / CONFIDENCE).read_text())
    del value["dice_models"]
    (tmp_path / CONFIDENCE).write_text(json.dumps(value))
    with pytest.raises(MindgapError, match="damaged"):
        read_confidence(tmp_path, confidence.model_sha256)


def test_several_scans_of_one_patient_give_one_residual(confidence):
    scans = [f"BraTS-GLI-00001-00{n}" for n in range(3)]
    rows = [Observed(case, ALL, "WT", 0.9, 0.9, 10.0, 10.0 * (n + 1)) for n, case in enumerate(scans)]
    before = confidence.residuals(ALL, "WT")
    more = replace(confidence, observed=(*reversed(rows), *confidence.observed)).residuals(ALL, "WT")
    assert sorted(more) == sorted([*before, volume_residual(10.0, 10.0)]), "the first of them by name"
