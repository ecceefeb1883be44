"""Networks that were never trained, measured on two cases, and held against others."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindgap.data.cohort import discover
from mindgap.errors import SettingError
from mindgap.evaluation.scores import score_case
from mindgap.inference.assessment import Trial, _verdict, assess, write_trials
from mindgap.inference.calibration import View, calibrate, reference_volumes_ml, segmented
from mindgap.inference.confidence import POOLED, estimate
from mindgap.inference.predictor import Predictor
from mindgap.regions import REGIONS, Region, find_convention
from mindgap.sequences import SEQUENCES, Sequence, format_subset

LABELS = "brats2017"
FLAIR_ONLY = (Sequence.FLAIR,)
WANTED = [FLAIR_ONLY, SEQUENCES]


@pytest.fixture(scope="module")
def cohort(study, tmp_path_factory) -> Path:
    """Seven cases on disk, of which one lacks T1."""
    root = tmp_path_factory.mktemp("seven")
    sources = [files.label.path.parent for files in study.cases]
    for number in range(7):
        source = sources[number % 2]
        (root / f"Q{number}").mkdir()
        for path in source.iterdir():
            shutil.copyfile(path, root / f"Q{number}" / path.name.replace(source.name, f"Q{number}"))
    (root / "Q4" / "Q4_T1.nii").unlink()
    return root


@pytest.fixture(scope="module")
def run(study, tmp_path_factory) -> Predictor:
    """A run folder that learnt from Q0, is judged by Q1 and has Q2 for validation."""
    folder = tmp_path_factory.mktemp("runs") / "any"
    shutil.copytree(study.any_subset, folder)
    cases = {"train": ["Q0"], "validation": ["Q2"], "test": ["Q1"], "before": {"train": ["elsewhere"]}}
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}))
    return Predictor.load(folder, device="cpu", precision="fp32", coverage="whole")


@pytest.fixture(scope="module")
def known(run, cohort):
    return calibrate(run, cohort, cases="all", subsets=WANTED, level=0.5, labels=LABELS)


def test_cases_of_training_and_test_are_kept_out(run, cohort, known):
    assert {row.case for row in known.observed} == {"Q2", "Q3", "Q4", "Q5", "Q6"}
    assert {row.case for row in known.observed if row.subset != "FLAIR"} == {"Q2", "Q3", "Q5", "Q6"}, "Q4 has no T1"
    assert set(known.known) == {"Q0", "Q2", "Q3", "Q4", "Q5", "Q6"}, "training cases count as known"
    for name in ("Q0", "Q3,Q1"):
        with pytest.raises(SettingError, match="training or test cases"):
            calibrate(run, cohort, cases=name, labels=LABELS)
    only = calibrate(run, cohort, subsets=[FLAIR_ONLY], labels=LABELS)
    assert {row.case for row in only.observed} == {"Q2"}, "the validation cases by default"
    with pytest.raises(SettingError, match="Q9 not among them"):
        calibrate(run, cohort, cases="Q9", labels=LABELS)
    with pytest.raises(SettingError, match="name a cohort with --data"):
        calibrate(run, labels=LABELS)


def test_rows_are_the_scores_of_the_evaluation(run, cohort, known):
    files = next(files for files in discover(cohort, labels=LABELS).cases if files.case_id == "Q3")
    case = files.load(convention=find_convention(LABELS))
    found = run.segment(case, FLAIR_ONLY)
    wanted = score_case(found.target, case.target, case.reference.spacing_mm, model="m", case="Q3", subset="FLAIR")
    rows = {row.region: row for row in known.observed if (row.case, row.subset) == ("Q3", "FLAIR")}
    for score in wanted:
        if score.region in rows:
            row = rows[score.region]
            assert row.dice == pytest.approx(score.dice)
            assert row.reference_ml == pytest.approx(score.reference_ml)
            assert row.predicted_ml == pytest.approx(score.predicted_ml)
    told = estimate(replace(known, dice_models={POOLED: {}}), found, case, coverage="whole")
    assert told.temperature == known.temperatures[POOLED].value, "few cases: one temperature for all subsets"
    assert all(math.isnan(value) for value in told.dice.values()), "no model, no expected Dice"


def test_each_sequence_is_prepared_once_and_nothing_changes(run, cohort, monkeypatch):
    cases = discover(cohort, labels=LABELS)
    files = next(files for files in cases.cases if files.case_id == "Q3")
    plain = {subset: run.segment(files.load(subset), subset) for subset in WANTED}
    monkeypatch.setattr("mindgap.inference.predictor.prepare_case", None)
    for view in segmented(run, [files], cases, WANTED):
        np.testing.assert_array_equal(view.segmentation.maps, plain[view.segmentation.subset].maps)
        np.testing.assert_array_equal(view.segmentation.target, plain[view.segmentation.subset].target)


def test_a_sheared_grid_overstates_no_reference(run, cohort):
    files = discover(cohort, labels=LABELS).cases[0]
    case = files.load(FLAIR_ONLY, convention=find_convention(LABELS))
    tilt = np.eye(4)
    tilt[1, 2] = 0.5
    images = {s: replace(volume, affine=tilt @ volume.affine) for s, volume in case.images.items()}
    views = [
        View(replace(case, images=there), run.segment(case, FLAIR_ONLY), case.target) for there in (case.images, images)
    ]
    straight, sheared = (reference_volumes_ml(view)[str(Region.WT)] for view in views)
    assert straight > 0
    assert sheared == pytest.approx(straight)


def test_estimates_are_held_against_cases_that_are_news_to_the_network(run, cohort, known, tmp_path):
    everyone = discover(cohort, labels=LABELS)
    with pytest.raises(SettingError, match="knows all 1 cases"):
        assess(run, known, replace(everyone, cases=everyone.cases[:1]))
    flairless = {s: source for s, source in everyone.cases[1].images.items() if s != Sequence.FLAIR}
    with pytest.raises(SettingError, match=r"none of the 1 cases left in .* has all of FLAIR, T1"):
        assess(run, known, replace(everyone, cases=(replace(everyone.cases[1], images=flairless),)))
    found = assess(run, replace(known, observed=tuple(row for row in known.observed if row.case != "Q3")), everyone)
    assert {trial.case for trial in found.trials} == {"Q1", "Q3"}
    assert found.left_out == ["Q0", "Q2", "Q4", "Q5", "Q6"], "learnt from, and measured"
    assert [(v.subset, v.region, v.n) for v in found.verdicts] == [
        (format_subset(subset), str(region), 2) for subset in WANTED for region in REGIONS
    ]
    for verdict in found.verdicts:
        mine = [t for t in found.trials if (t.subset, t.region) == (verdict.subset, verdict.region)]
        assert verdict.covered == sum(t.low_ml <= t.reference_ml <= t.high_ml for t in mine)
        assert verdict.intervals == 2
        assert verdict.error.mean == pytest.approx(np.mean([abs(t.expected_dice - t.dice) for t in mine]))
        assert 0 <= verdict.ece_after <= 1
    # Q1 and Q3 are the images of cases that were measured, and the level takes the outermost residuals: an end is met
    assert all(t.low_ml - 1e-9 <= t.reference_ml <= t.high_ml + 1e-9 for t in found.trials)
    write_trials(tmp_path / "t.csv", found.trials)
    with (tmp_path / "t.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(found.trials)
    assert float(rows[0]["dice"]) == pytest.approx(found.trials[0].dice, abs=1e-4)


def test_coverage_counts_patients(known):
    def trial(case, reference_ml):
        return Trial(case, "FLAIR", "WT", 0.8, 0.7, 10.0, 5.0, 15.0, reference_ml, False, False)

    scans = [("BraTS-GLI-00001-000", 10.0), ("BraTS-GLI-00001-001", 99.0), ("BraTS-GLI-00002-000", 99.0)]
    nothing = np.zeros((3, 10))
    verdict = _verdict([trial(*scan) for scan in scans], known, "FLAIR", "WT", (nothing, nothing))
    assert (verdict.n, verdict.covered, verdict.intervals) == (3, 1, 2), "of each patient the first scan by name"
