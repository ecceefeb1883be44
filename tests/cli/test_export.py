"""mindgap export at the command line, and what segment makes of it."""

import json
import shutil
from pathlib import Path

import pytest

from mindgap.cli import main


@pytest.fixture(scope="module")
def exported(journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("exported") / "flair"
    shutil.copytree(journey.flair, run)
    assert main(["export", str(run), "--data", str(journey.cohort), "--no-int8"]) == 0
    return run


def test_export_writes_what_it_measured(exported: Path) -> None:
    record = json.loads((exported / "exported.json").read_text())
    assert record["int8"] is None
    assert set(record["whole"]["dice"]) == {"whole", "tiles"}
    validation = json.loads((exported / "manifest.json").read_text())["cases"]["validation"]
    assert record["whole"]["cases"] == len(validation) > 0


def test_segment_says_which_engine_and_coverage_it_took(exported: Path, journey, tmp_path: Path) -> None:
    case = next(path for path in journey.cohort.glob("*/*") if path.is_dir())
    passed = json.loads((exported / "exported.json").read_text())["whole"]["passed"]
    for words, engine, coverage in (
        ([], "openvino", "whole" if passed else "tiles"),
        (["--engine", "torch", "--coverage", "tiles", "--tta"], "torch", "tiles"),
    ):
        out = tmp_path / engine / "seg.nii.gz"
        assert main(["segment", str(case), "--model", str(exported), "-o", str(out), *words]) == 0
        manifest = json.loads((out.parent / "seg.manifest.json").read_text())
        assert (manifest["engine"], manifest["coverage"]) == (engine, coverage)
        assert manifest["mirrored"] == ("--tta" in words)


def test_export_needs_the_cases_of_the_run(exported: Path, tmp_path: Path, fails) -> None:
    assert main(["phantom", str(tmp_path / "others"), "--cases", "1", "--spacing-mm", "6", "--seed", "9"]) == 0
    assert "validation cases" in fails(["export", str(exported), "--data", str(tmp_path / "others"), "--no-int8"])
