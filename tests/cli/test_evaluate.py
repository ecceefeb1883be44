"""mindgap evaluate from end to end: presets, grids, protocols and subsets."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import mindgap
import mindgap.api
from mindgap.cli import main
from mindgap.cli.evaluate import print_scores
from mindgap.data.history import history_of
from mindgap.errors import SettingError
from mindgap.evaluation.presets import DEFINITIONS, PRESETS
from mindgap.evaluation.scores import Score, read_scores
from mindgap.inference.shipped import model_folder
from mindgap.sequences import SUBSETS, format_subset


@pytest.fixture
def anything(journey, tmp_path: Path) -> Path:
    """The teacher, said to take every subset: its encoders skip what is absent."""
    run = tmp_path / "any"
    shutil.copytree(journey.teacher, run, ignore=shutil.ignore_patterns("checkpoint", "predictions"))
    card = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps({**card, "any_subset": True}))
    return run


def _evaluate(journey, run: Path, *words: str) -> tuple[int, dict]:
    code = main(["evaluate", str(journey.cohort), "--model", str(run), "--coverage", "whole", *words])
    return code, json.loads((run / "evaluation.json").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_printed_and_recorded(preset: str, journey, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code, record = _evaluate(journey, journey.flair, "--metrics", preset, "--baseline", "none")
    assert code == 0
    text = capsys.readouterr().out
    computed = set(PRESETS[preset].columns)
    for name, definition in DEFINITIONS.items():
        assert (definition.text in text.replace("\n", "")) == (name in computed)
    assert "ETpp v1" in text
    assert "grid native: the files' own" in text
    assert "(4 x 4 x 4 mm)" in text
    assert "protocol strict" in text
    assert record["metrics"] == preset
    assert record["columns"] == {name: DEFINITIONS[name].version for name in PRESETS[preset].columns}
    assert record["subsets"] == ["FLAIR"]
    for score in read_scores(journey.flair / "scores.csv"):
        if "surface_dice" in computed:
            assert 0 <= score.surface_dice <= 1
        assert math.isnan(score.surface_dice) == ("surface_dice" not in computed)


def test_one_network_is_scored_on_all_fifteen_subsets(
    journey, anything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    code, record = _evaluate(journey, anything, "--metrics", "hd95")
    assert code == 0
    text = capsys.readouterr().out
    names = [format_subset(subset) for subset in SUBSETS]
    assert record["subsets"] == names
    assert "mean of 15" in text
    scores = read_scores(anything / "scores.csv")
    assert {(s.model, s.subset) for s in scores} == {(m, n) for m in ("any", "threshold") for n in names}
    case = record["cases"][0]
    assert all((anything / "predictions" / name / f"{case}.nii.gz").is_file() for name in names)
    page = anything / "report.html"
    assert main(["report", str(anything)]) == 0
    assert "mean of 15" in page.read_text()
    assert "ETpp" in page.read_text()


def test_the_mask_may_be_decided_by_expected_dice(journey) -> None:
    words, found = ("--metrics", "hd95", "--baseline", "none"), {}
    for decision in ("card", "most_probable", "expected_dice"):
        code, record = _evaluate(journey, journey.flair, *words, "--decision", decision)
        assert code == 0
        assert record["decision"] == ("most_probable" if decision == "card" else decision)
        found[decision] = [(row.region, row.predicted_ml) for row in read_scores(journey.flair / "scores.csv")]
    assert found["card"] == found["most_probable"] != found["expected_dice"]


def test_chosen_subsets_and_no_others(journey, anything: Path) -> None:
    code, record = _evaluate(journey, anything, "--subsets", "flair+t1c,T2", "--metrics", "hd95")
    assert code == 0
    assert record["subsets"] == ["T2", "T1ce+FLAIR"]


def test_a_fixed_network_refuses_other_subsets(journey, fails) -> None:
    words = ["evaluate", str(journey.cohort), "--model", str(journey.flair), "--subsets"]
    for subsets in ("all", "T1", "FLAIR,T1+FLAIR"):
        assert "takes FLAIR and no other subset" in fails([*words, subsets])
    assert "'PD' is no sequence" in fails([*words, "PD"])
    assert _evaluate(journey, journey.flair, "--subsets", "flair", "--metrics", "hd95")[0] == 0


def test_segment_takes_what_there_is(journey, anything: Path, tmp_path: Path) -> None:
    case = next(journey.cohort.glob("*GG/*"))
    for name, chosen in (("one", ("flair",)), ("two", ("flair", "t1"))):
        files = [word for key in chosen for word in (f"--{key}", str(next(case.glob(f"*_{key}.nii.gz"))))]
        out = tmp_path / f"{name}.nii.gz"
        assert main(["segment", *files, "--model", str(anything), "-o", str(out)]) == 0
        assert out.is_file()


def test_other_rules_are_printed_recorded_and_noted_in_the_report(
    journey, anything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ("--protocol", "leaky", "--grid", "model", "--subsets", "T1", "--metrics", "hd95")
    code, record = _evaluate(journey, anything, *words)
    assert code == 0
    text = capsys.readouterr().out
    assert "protocol leaky" in text
    assert "grid model" in text
    assert (record["protocol"], record["grid"], record["protokd_crop"]) == ("leaky", "model", False)
    assert main(["report", str(anything)]) == 0
    assert "any was scored with protocol leaky and grid model" in (anything / "report.html").read_text()


def test_what_a_case_lacks_is_said_and_is_no_failure(
    journey, anything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(journey.cohort, cohort)
    case = json.loads((anything / "manifest.json").read_text())["cases"]["test"][0]
    (path,) = cohort.rglob(f"{case}_t2.nii.gz")
    path.unlink()
    words = ["evaluate", str(cohort), "--model", str(anything), "--coverage", "whole", "--baseline", "none"]
    assert main([*words, "--subsets", "T1,T2"]) == 0
    record = json.loads((anything / "evaluation.json").read_text())
    assert (record["failed"], record["lacking"]) == ({}, {case: ["T2"]})
    assert f"{case} lacks a sequence and is not scored on T2" in capsys.readouterr().out
    assert ("T2" in {row.subset for row in read_scores(anything / "scores.csv") if row.case == case}) is False
    main(["report", str(anything), "-o", str(tmp_path / "page.html")])
    assert f"{case} lacks a sequence and was not scored on T2" in (tmp_path / "page.html").read_text()
    for left in cohort.rglob("*_t2.nii.gz"):
        left.unlink()
    assert main([*words, "--subsets", "T2"]) == 2
    assert f"{case} lacks a sequence for T2" in capsys.readouterr().err


def test_the_leaky_protocol_names_what_an_incomplete_case_lacks(journey, tmp_path: Path, fails) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(journey.cohort, cohort)
    for path in cohort.glob("*GG/*/*_t1.nii.gz"):
        path.unlink()
    words = ["evaluate", str(cohort), "--model", str(journey.flair), "--metrics", "hd95"]
    assert main(words) == 0
    message = fails([*words, "--protocol", "leaky"])
    assert "expected all four sequences" in message
    assert "--protocol strict" in message


def test_the_protokd_crop_needs_the_grid_of_brats(journey, fails) -> None:
    message = fails(["evaluate", str(journey.cohort), "--model", str(journey.flair), "--protokd-crop"])
    assert "the grid of BraTS" in message


def test_cases_a_network_has_learnt_are_named(journey, anything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    _evaluate(journey, anything, "--cases", "all", "--subsets", "FLAIR", "--metrics", "hd95", "--baseline", "none")
    learnt = history_of(anything).known
    assert f"{len(learnt)} of these cases show patients the network learnt from" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_the_network_in_the_box_is_scored_on_data_of_its_user(journey, tmp_path: Path, fails, capsys) -> None:
    words = ["evaluate", str(journey.cohort), "--model", "box", "--engine", "auto", "--subsets", "FLAIR"]
    out = tmp_path / "scores"  # without an ending
    assert "name a file for the scores" in fails([*words, "--cases", "all"])
    assert "--cases all" in fails([*words, "-o", str(out)])
    before = sorted(model_folder("box").rglob("*"))
    assert main([*words, "--cases", "all", "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert "no threshold baseline: box" in text
    assert "no estimate of its accuracy" not in text, "it has learnt none of these phantoms"
    scores = read_scores(out)
    record = json.loads((tmp_path / "scores-evaluation" / "evaluation.json").read_text())
    assert {score.model for score in scores} == {"box"}
    assert (record["coverage"], record["decision"], record["part"]) == ("whole", "expected_dice", "all")
    masks = (tmp_path / "scores-evaluation" / "predictions" / "FLAIR").glob("*.nii.gz")
    assert sorted(path.name.removesuffix(".nii.gz") for path in masks) == record["cases"]
    assert sorted(model_folder("box").rglob("*")) == before, "nothing is written into the package"


def test_what_is_undefined_is_printed_as_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [
        Score("m", "P1", "T1", region, 0.5, math.nan, 1.0, 0.0, surface_dice=0.25) for region in ("WT", "TC", "ET")
    ]
    print_scores(scores + [replace(score, subset="T2", hd95_mm=3.0) for score in scores])
    text = capsys.readouterr().out
    assert "nan" not in text
    first, second = (line for line in text.splitlines() if " / " in line and line.startswith("m "))
    assert "- / - / - / -" in first
    assert "3.0 / 3.0 / 3.0 / -" in second
    assert "0.250 / 0.250 / 0.250 / -" in second
    assert "protocol strict" in text


def test_functions_take_text_for_paths_and_the_name_of_the_network_in_the_box(journey, tmp_path: Path) -> None:
    page = mindgap.api.report([str(journey.flair)], str(tmp_path / "page.html"))
    assert page == tmp_path / "page.html"
    assert page.is_file()
    assert "@inproceedings" in mindgap.cite(str(journey.flair))
    data = str(journey.cohort)
    with pytest.raises(SettingError, match="is the folder of the images"):
        mindgap.segment_cohort(data, None, data)
    with pytest.raises(SettingError, match="name a file for the scores"):
        mindgap.evaluate("box", data, str(tmp_path))
    with pytest.raises(SettingError, match="neither the folder of a finished"):
        mindgap.evaluate("no such network", data, str(tmp_path / "scores.csv"))
