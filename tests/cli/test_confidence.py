"""From a trained network to a mask that says how far it can be trusted, by the command line."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main
from mindgap.data.history import history_of

QUICK = ["--coverage", "whole"]


@pytest.fixture(scope="module")
def runs(journey, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Copies of both students, measured on their validation case, found by the manifest and by the store."""
    root = tmp_path_factory.mktemp("calibrated é")
    made = []
    for run, data in ((journey.flair, []), (journey.t1ce, ["--data", str(journey.store)])):
        shutil.copytree(run, root / run.name)
        words = ["calibrate", str(root / run.name), "--level", "0.5", "--review-below", "1", *QUICK, *data]
        assert main(words) == 0
        made.append(root / run.name)
    return made[0], made[1]


@pytest.fixture
def patient(journey, tmp_path: Path) -> Path:
    """A case with FLAIR and T1ce."""
    source = sorted(journey.cohort.glob("*GG/*"))[0]
    folder = tmp_path / "patient"
    folder.mkdir()
    for name in ("flair", "t1ce"):
        for path in source.glob(f"*_{name}.nii.gz"):
            shutil.copyfile(path, folder / path.name)
    return folder


def test_a_mask_comes_with_what_is_known(runs, patient, tmp_path, capsys):
    capsys.readouterr()
    words = ["segment", str(patient), "--model", str(runs[0]), "-o", str(tmp_path / "s.nii.gz"), *QUICK]
    assert main([*words, "--entropy", str(tmp_path / "entropy.nii.gz")]) == 0
    printed = capsys.readouterr().out
    assert "expected Dice" in printed
    assert "50% interval mL" in printed
    assert "answers from FLAIR" in printed
    known = json.loads((tmp_path / "s.manifest.json").read_text())["confidence"]
    assert known["calibration_cases"] == 1
    assert set(known["expected_dice"]) == set(known["volume_intervals_ml"]) == {"WT", "TC", "ET"}
    low, high = known["volume_intervals_ml"]["WT"]
    assert 0 <= low <= high
    entropy, mask = nib.load(tmp_path / "entropy.nii.gz"), nib.load(tmp_path / "s.nii.gz")
    assert entropy.shape == mask.shape
    np.testing.assert_allclose(entropy.affine, mask.affine)
    assert 0 < np.asarray(entropy.dataobj).max() <= 2
    assert main([*words, "--entropy", str(tmp_path / "s.nii.gz")]) == 2, "an entropy map replaces nothing"
    twice = str(tmp_path / "t.nii.gz")
    assert main([*words, "-o", twice, "--entropy", twice]) == 2
    beside = str(tmp_path / "t_probabilities.nii.gz")
    assert main([*words, "-o", twice, "--probabilities", "--entropy", beside]) == 2
    (tmp_path / "e.json").write_text("{}")
    assert main([*words, "-o", twice, "--entropy", str(tmp_path / "e.nii.gz")]) == 2, "nor somebody's notes"
    assert not (tmp_path / "t.nii.gz").exists(), "refused before any work"


def test_a_network_nobody_measured_says_so_once(journey, patient, tmp_path, capsys):
    capsys.readouterr()
    assert main(["segment", str(patient), "--model", str(journey.flair), "-o", str(tmp_path / "s.nii"), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert printed.count("no estimate of reliability") == 1
    assert "expected Dice" not in printed
    assert json.loads((tmp_path / "s.manifest.json").read_text())["confidence"] is None


def test_a_set_of_networks_answers_and_advises(runs, patient, tmp_path, capsys, fails):
    model = tmp_path / "set"
    assert main(["bundle", *map(str, runs), "-o", str(model)]) == 0
    printed = capsys.readouterr().out
    assert "T1ce+FLAIR" in printed
    assert "none" in printed, "nobody answers T2"
    assert main(["segment", str(patient), "--model", str(model), "-o", str(tmp_path / "s.nii"), *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "none is for T1ce+FLAIR; best for less" in printed
    for path in patient.glob("*_flair*"):
        path.unlink()
    assert main(["segment", str(patient), "--model", str(model), "-o", str(tmp_path / "s.nii"), *QUICK]) == 0
    assert "t1ce answers from T1ce (trained for T1ce)" in capsys.readouterr().out
    assert main(["advise", str(patient), "--model", str(model)]) == 0
    printed = capsys.readouterr().out
    assert "FLAIR" in printed
    assert "change of mean Dice" in printed
    assert "nothing is known of acquiring T1, T2" in printed
    (image,) = patient.iterdir()
    image.rename(patient / image.name.replace("t1ce", "t2"))
    said = fails(["segment", str(patient), "--model", str(model), "-o", str(tmp_path / "t.nii"), *QUICK])
    assert "flair needs FLAIR; t1ce needs T1ce" in said


def test_a_cohort_has_columns_of_expected_dice_and_review(runs, patient, tmp_path):
    (tmp_path / "many").mkdir()
    for name in ("A", "B"):
        shutil.copytree(patient, tmp_path / "many" / name)
    assert main(["segment", str(tmp_path / "many"), "--model", str(runs[0]), "-o", str(tmp_path / "out"), *QUICK]) == 0
    with (tmp_path / "out" / "summary.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["case"] for row in rows] == ["A", "B"]
    for row in rows:
        known = json.loads((tmp_path / "out" / row["case"] / f"{row['case']}_seg.manifest.json").read_text())
        assert row["review"] == "; ".join(known["confidence"]["review"])
        told = known["confidence"]["expected_dice"]["WT"]
        assert row["WT_expected_dice"] == ("" if told is None else f"{told:.3f}")


def test_what_speaks_of_other_weights_is_refused(runs, patient, tmp_path, fails):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    shutil.copyfile(runs[1] / "confidence.json", run / "confidence.json")
    said = fails(["segment", str(patient), "--model", str(run), "-o", str(tmp_path / "s.nii.gz"), *QUICK])
    assert "speaks of other weights" in said
    assert not (tmp_path / "s.nii.gz").exists()


def test_a_test_cohort_is_held_against_the_estimates(runs, journey, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    words = [
        "calibrate",
        str(run),
        "--level",
        "0.5",
        "--test",
        str(journey.cohort),
        "-o",
        str(tmp_path / "held"),
        *QUICK,
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "MAE of expected Dice" in printed
    assert (tmp_path / "held" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    shutil.copyfile(tmp_path / "held" / "reliability.png", run / "reliability.png")
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    assert "Reliability curves of run" in (tmp_path / "page.html").read_text()
    news = {path.name for path in journey.cohort.glob("*GG/*")} - history_of(run).known
    assert len((tmp_path / "held" / "confidence-test.csv").read_text().splitlines()) == 1 + 3 * len(news)
    assert "left out, as the network has learnt from them" in printed


def test_what_is_known_can_be_held_against_others_without_being_changed(runs, journey, tmp_path, fails):
    known = (runs[0] / "confidence.json").read_bytes()
    words = ["calibrate", str(runs[0]), "--cases", "none", *QUICK]
    assert main([*words, "--test", str(journey.cohort), "-o", str(tmp_path)]) == 0
    assert (runs[0] / "confidence.json").read_bytes() == known
    with (tmp_path / "confidence-test.csv").open() as handle:
        cases = {row["case"] for row in csv.DictReader(handle)}
    assert cases.isdisjoint(history_of(runs[0]).known), "none of those it was calibrated on or has learnt"
    assert cases
    assert "--level would do nothing" in fails([*words, "--test", str(journey.cohort), "-o", "x", "--level", "0.5"])
    assert "--cases none" in fails(["calibrate", "box", "--data", str(journey.cohort), "--cases", "all"])
    assert "--out" in fails([*words, "--test", str(journey.cohort)])
    assert "was not calibrated" in fails(
        ["calibrate", str(journey.flair), "--cases", "none", "--test", str(journey.cohort), "-o", str(tmp_path)]
    )
