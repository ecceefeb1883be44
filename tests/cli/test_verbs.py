import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import VERBS, main
from mindgap.evaluation.scores import read_scores
from mindgap.study.grid import PRESETS

_ROLE = re.compile(r":[a-z]+:`|``")
"""Marks for those who read the code, not the help."""


def test_help_and_unknown_verbs_import_nothing_heavy() -> None:
    code = (
        "import sys; from mindgap.cli import main; assert main(['--help']) == 0; assert main(['sgment']) == 2;"
        "heavy = {'torch', 'numpy', 'tyro', 'monai', 'nibabel', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)
    assert "Did you mean segment?" in done.stderr


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"mindgap {verb}" in said
    assert not _ROLE.search(said)


def test_train_explains_methods_and_their_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "unimodal" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "pmkl", "--help"])
    text = capsys.readouterr().out
    assert "--pixel-weight" in text
    assert "--anchor " not in text
    assert not _ROLE.search(text)


def test_a_study_lists_its_presets_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for preset in (*PRESETS, "box"):
        assert sum(line.startswith(f"- {preset} ") for line in lines) == 1, preset


@pytest.mark.parametrize(
    ("method", "words", "said"),
    [
        ("teacher", ["--data", "nowhere"], "no prepared cohort"),
        ("pmkl", ["--data", "STORE", "--teacher", "nobody"], "no trained model"),
        ("teacher", ["--data", "STORE", "--start", "nobody"], "nobody"),
        ("teacher", ["--data", "STORE", "--out", "TEACHER"], "holds a run already"),
    ],
)
def test_what_a_glance_tells_is_refused_before_the_settings_are_printed(
    method: str, words: list[str], said: str, journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"STORE": str(journey.store), "TEACHER": str(journey.teacher)}
    capsys.readouterr()
    assert main(["train", method, "--out", str(tmp_path / "run"), *(places.get(word, word) for word in words)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_dry_run_prints_the_resolved_settings_and_trains_nothing(
    journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ["train", "teacher", "--data", str(journey.store), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*words, "--preset", "paper", "--anchor", "k"]) == 0
    text = capsys.readouterr().out
    assert "50000" in text
    assert "anchor_gradient" in text
    assert not (tmp_path / "run").exists()


def test_doctor_names_device_precision_and_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "training   torch, " in text
    assert "segmenting by the box: openvino, " in text
    assert "nothing is missing" in text


def test_doctor_tells_of_a_torch_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libgomp.so.1 is not there')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "mindgap", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "torch cannot be loaded (libgomp.so.1 is not there): install it again." in done.stdout


def test_doctor_lists_optional_packages_with_version_or_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    version = importlib.metadata.version

    def without_pydicom(name: str) -> str:
        if name == "pydicom":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_pydicom)
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "pydicom not installed: pip install 'mindgap[dicom]'; for DICOM in" in text
    assert f"submitit {version('submitit')} jobs on SLURM" in text
    assert "nothing is missing" in text


def test_cite_prints_exactly_what_a_run_used(journey, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["cite", str(journey.t1ce)]) == 0
    text = capsys.readouterr().out
    assert "chen2022pmkl" in text
    assert "liu2024mindgap" in text, "its teacher is aligned"
    assert main(["cite", str(journey.flair)]) == 0
    assert "liu2024mindgap" not in capsys.readouterr().out, "nothing of it is"
    assert main(["cite", str(journey.teacher)]) == 0
    assert "liu2024mindgap" in capsys.readouterr().out


def test_run_folder_explains_itself(journey) -> None:
    manifest = json.loads((journey.t1ce / "manifest.json").read_text())
    assert manifest["finished"]
    assert manifest["cases"]["taught"] == len(manifest["cases"]["train"])
    steps = [json.loads(line)["step"] for line in (journey.t1ce / "terms.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
    for name in ("experiment.json", "model.json", "model.safetensors", "thresholds.json", "validations.jsonl"):
        assert (journey.t1ce / name).is_file()


def test_segment_writes_a_mask_in_the_grid_of_the_input(
    journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(journey.cohort.glob("*GG/*"))
    out = tmp_path / "mask.nii.gz"
    assert main(["segment", str(case), "--model", str(journey.flair), "-o", str(out), "--labels", "brats2023"]) == 0
    text = capsys.readouterr().out
    assert "not used by this model" in text
    source, mask = nib.load(next(case.glob("*_flair.nii.gz"))), nib.load(out)
    assert mask.shape == source.shape
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.affine, source.affine)
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}
    assert json.loads((tmp_path / "mask.json").read_text())["LabelConvention"] == "brats2023"


def test_segment_replaces_its_own_mask_and_nothing_else_in_a_folder_with_several(journey, tmp_path: Path) -> None:
    flair = next(journey.cohort.glob("*GG/*/*_flair.nii.gz"))
    (tmp_path / flair.name).write_bytes(flair.read_bytes())
    for name in ("seg.nii.gz", "seg_again.nii.gz", "seg.nii.gz"):
        assert main(["segment", str(tmp_path), "--model", str(journey.flair), "-o", str(tmp_path / name)]) == 0


def test_segment_opens_only_the_files_the_model_needs(journey, tmp_path: Path) -> None:
    case = next(journey.cohort.glob("*GG/*"))
    for path in case.iterdir():
        name = path.name
        content = path.read_bytes() if name.endswith("flair.nii.gz") else b"garbage"
        (tmp_path / name).write_bytes(content)
    whole, alone = tmp_path / "out" / "a.nii.gz", tmp_path / "out" / "b.nii.gz"
    assert main(["segment", str(tmp_path), "--model", str(journey.flair), "-o", str(whole)]) == 0
    flair = next(case.glob("*_flair.nii.gz"))
    assert main(["segment", "--flair", str(flair), "--model", str(journey.flair), "-o", str(alone)]) == 0
    np.testing.assert_array_equal(nib.load(whole).get_fdata(), nib.load(alone).get_fdata())


def test_evaluate_and_report(journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in (journey.flair, journey.t1ce):
        assert main(["evaluate", str(journey.cohort), "--model", str(run), "-o", str(tmp_path / "scores.csv")]) == 0
    assert "threshold" in capsys.readouterr().out
    scores = read_scores(tmp_path / "scores.csv")
    assert {score.model for score in scores} == {"t1ce", "threshold"}
    assert {score.region for score in scores} == {"WT", "TC", "ET", "ETpp"}
    assert {score.subset for score in scores} == {"T1ce"}
    assert len(scores) == 2 * 4 * len({score.case for score in scores})
    page = tmp_path / "page.html"
    assert main(["report", str(journey.flair), str(journey.t1ce), "-o", str(page)]) == 0
    text = page.read_text()
    assert text.count("data:image/png;base64") >= 4
    told = re.sub(r"base64,[^\"']+", "", text)  # four letters of a picture may spell anything
    assert "http" not in told.split("<body")[1].split("BibTeX")[0].replace("http://www.w3.org", "")


def test_test_cases_that_are_not_there_are_listed(journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = json.loads((journey.flair / "manifest.json").read_text())["cases"]["test"]
    source = next(journey.cohort.glob(f"*GG/{wanted[0]}"))
    for path in source.iterdir():
        target = tmp_path / "cohort" / wanted[0] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert main(["evaluate", str(tmp_path / "cohort"), "--model", str(journey.flair)]) == 1
    assert f"not scored: {wanted[1]}" in capsys.readouterr().out
    assert set(json.loads((journey.flair / "evaluation.json").read_text())["failed"]) == set(wanted[1:])


def test_runs_of_the_same_name_stand_side_by_side_in_a_report(journey, tmp_path: Path) -> None:
    assert main(["evaluate", str(journey.cohort), "--model", str(journey.flair)]) == 0
    for seed in ("seed0", "seed1"):
        shutil.copytree(journey.flair, tmp_path / seed / "flair")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "seed0" / "flair"), str(tmp_path / "seed1" / "flair"), "-o", str(page)]) == 0
    assert "seed1/flair minus flair" in page.read_text()


def test_a_model_may_be_named_by_a_dot(journey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(journey.flair)
    out = tmp_path / "scores.csv"
    assert main(["evaluate", str(journey.cohort), "--model", ".", "-o", str(out)]) == 0
    assert {score.model for score in read_scores(out)} == {"flair", "threshold"}


def test_a_bad_case_is_listed_and_the_rest_goes_on(journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = tmp_path / "cohort"
    for case in journey.cohort.glob("*GG/*"):
        target = cohort / case.name
        target.mkdir(parents=True)
        for path in case.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    broken = sorted(cohort.iterdir())[0]
    flair = next(broken.glob("*_flair.nii.gz"))
    flair.write_bytes(flair.read_bytes()[:5000])
    unlabelled = sorted(cohort.iterdir())[1]
    next(unlabelled.glob("*_seg.nii.gz")).unlink()
    capsys.readouterr()
    store = tmp_path / "store"
    assert main(["prepare", str(cohort), "-o", str(store), "--split", "0.5/0.2/0.3"]) == 1
    text = capsys.readouterr().out
    assert f"left out: {broken.name}" in text
    assert f"left out: {unlabelled.name}" in text
    assert len(json.loads((store / "store.json").read_text())["cases"]) == 5
    out = tmp_path / "scores.csv"
    assert main(["evaluate", str(cohort), "--model", str(journey.flair), "--cases", "all", "-o", str(out)]) == 1
    assert len({score.case for score in read_scores(out)}) == 5
    assert f"not scored: {broken.name}" in capsys.readouterr().out


def test_files_that_are_not_ours_are_never_written_over(
    journey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes, page = tmp_path / "notes.csv", tmp_path / "notes.html"
    notes.write_text("case,t1\nA,a.nii.gz\n")
    page.write_text("<p>my notes</p>")
    assert main(["evaluate", str(journey.cohort), "--model", str(journey.flair), "-o", str(notes)]) == 2
    assert main(["report", str(journey.flair), "-o", str(page)]) == 2
    said = capsys.readouterr().err
    assert "notes.csv exists and holds no scores" in said
    assert "notes.html exists and is no report of ours" in said
    assert (notes.read_text(), page.read_text()) == ("case,t1\nA,a.nii.gz\n", "<p>my notes</p>")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--steps", "0", "-o", "demo"], "--steps 0 trains nothing"),
        (["study", "-o", "study"], "no study is named: choose among table1"),
        (["study", "table4", "-o", "study", "--data", "nowhere"], "nowhere does not exist"),
        (["prepare", "nowhere", "-o", "store", "--spacing-mm", "none"], "no such folder"),
    ],
)
def test_what_would_do_nothing_is_refused_before_any_work(
    words: list[str], said: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
