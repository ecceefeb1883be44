"""mindgap segment on a cohort from end to end: broken cases, kills, a full disk, shards, and what is refused."""

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import main
from mindgap.cli.segment_cohort import _say_what_to_look_at
from mindgap.files import sha256_of
from mindgap.inference.status import CaseStatus
from mindgap.runfiles import read_lines

WHOLE = ["--coverage", "whole"]
FINE = ("case-1", "case-5", "case-7")
BROKEN = {
    "case-2": "truncated",
    "case-3": "NaN",
    "case-4": "add FLAIR",
    "case-6": "expected shape",
    "case-8": "as in a label map",
}

# One process that imports everything and forks two lives: one is killed within the writing of its third mask, the
# other has a disk on which no mask fits. Prints how each ended and what it said.
LIVES = """
import json, os, resource, signal, sys
from pathlib import Path
import torch
from mindgap.api import segment_cohort
from mindgap.data import nifti
from mindgap.errors import MindgapError

def die_within_the_third_mask():
    whole, written = nifti.nib.save, []
    def save(image, path):
        whole(image, path)
        written.append(path)
        if len(written) == 3:
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    nifti.nib.save = save

def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))  # the settings fit, a mask does not

ends = []
cohort, model, out = map(Path, sys.argv[1:])
for fault in (die_within_the_third_mask, limit_files):
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)
        fault()
        try:
            segment_cohort(cohort, model, out / fault.__name__, coverage="whole")
        except MindgapError as error:
            print(error, flush=True)
            os._exit(2)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""


@pytest.fixture(scope="module")
def many(journey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight cases without labels; the teacher needs all four sequences."""
    root = tmp_path_factory.mktemp("many with spaces é")
    sources = sorted(journey.cohort.glob("*GG/*"))
    for number in range(1, 9):
        source, name = sources[number % len(sources)], f"case-{number}"
        for path in source.glob("*.nii.gz"):
            if not path.name.endswith("_seg.nii.gz"):
                target = root / "site" / name / path.name.replace(source.name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    return root


@pytest.fixture
def broken(journey, many: Path, tmp_path: Path) -> Path:
    """The same, five of them broken in five ways."""
    root = tmp_path / "broken"
    shutil.copytree(many, root)

    def flair(case: str) -> Path:
        return root / "site" / case / f"{case}_flair.nii.gz"

    flair("case-2").write_bytes(flair("case-2").read_bytes()[:3000])
    flair("case-4").unlink()
    shutil.copy(next(journey.cohort.glob("*GG/*/*_seg.nii.gz")), flair("case-8"))
    for case, change in (("case-3", _with_nan), ("case-6", lambda array: array[:-1])):
        image = nib.load(flair(case))
        nib.save(nib.Nifti1Image(change(image.get_fdata(dtype=np.float32)), image.affine), flair(case))
    return root


def _with_nan(array: np.ndarray) -> np.ndarray:
    array[5, 5, 5] = np.nan
    return array


def _masks(out: Path) -> dict[str, tuple[int, str]]:
    return {p.parent.name: (p.stat().st_mtime_ns, sha256_of(p)) for p in sorted(out.glob("*/[!.]*_seg.nii.gz"))}


def _summary(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_broken_cases_are_listed_and_the_others_are_as_alone(
    journey, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    words = ["segment", str(broken), "--model", str(journey.teacher), "--labels", "brats2023", *WHOLE]
    capsys.readouterr()
    assert main([*words, "-o", str(out)]) == 1
    printed = capsys.readouterr()
    failed = [line.removeprefix("failed: ") for line in printed.out.splitlines() if line.startswith("failed: ")]
    assert [line.split(":")[0] for line in failed] == list(BROKEN)
    assert all(word in line for word, line in zip(BROKEN.values(), failed, strict=True)), failed
    assert all("To mend" in line for line in failed)
    assert "3 segmented, 5 failed" in printed.out
    assert "segmenting: 8/8" in printed.err
    rows = _summary(out)
    assert {row["case"] for row in rows if row["status"] == "done"} == set(FINE)
    assert {row["case"]: row["reason"] for row in rows if row["status"] == "failed"} == dict(
        zip(BROKEN, failed, strict=True)
    )
    assert set(_masks(out)) == set(FINE)
    assert (out / "overlays.png").read_bytes()[:4] == b"\x89PNG"
    for case in FINE:
        alone = tmp_path / f"{case}.nii.gz"
        one = ["segment", str(broken / "site" / case), *words[2:], "-o", str(alone)]
        assert main(one) == 0
        mask = nib.load(out / case / f"{case}_seg.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(nib.load(alone).dataobj))
        _check_manifests(out / case / f"{case}_seg.manifest.json", tmp_path / f"{case}.manifest.json")
        (row,) = (row for row in rows if row["case"] == case)
        assert row["subset"] == "T1+T2+T1ce+FLAIR"
        tumour_ml = np.count_nonzero(mask.dataobj) * 0.064
        assert float(row["WT_ml"]) == pytest.approx(tumour_ml, abs=1e-3)


def _check_manifests(of_cohort: Path, alone: Path) -> None:
    first, second = (json.loads(path.read_text()) for path in (of_cohort, alone))
    assert first["mask"]["sha256"] == sha256_of(of_cohort.with_name(first["mask"]["file"]))
    for key in ("inputs", "model", "subset", "missing", "precision", "coverage", "volumes_ml", "versions"):
        assert first[key] == second[key]
    assert first["model"]["folder"] == "teacher"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")
def test_a_kill_and_a_full_disk_leave_nothing_half_written_and_resume_ends_it(
    journey, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-c", LIVES, str(many), str(journey.teacher), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    said, ends = done.stdout.strip().splitlines()
    assert json.loads(ends) == [-signal.SIGKILL, 2], done.stdout + done.stderr
    assert "could not be written" in said
    assert "Make room" in said

    full, killed = tmp_path / "limit_files", tmp_path / "die_within_the_third_mask"
    assert not [path for path in full.rglob("*") if path.is_file() and path.name not in ("cohort.json", "status.jsonl")]
    assert (full / "status.jsonl").read_text() == ""

    before = _masks(killed)
    assert set(before) == {"case-1", "case-2"}
    for case in before:
        with gzip.open(killed / case / f"{case}_seg.nii.gz") as handle:
            handle.read()  # whole
    assert list(killed.rglob(".*.part.*"))
    for out, expected in ((killed, "6 segmented, 2 done before, 0 failed"), (full, "8 segmented, 0 failed")):
        capsys.readouterr()
        assert main(["segment", str(many), "--model", str(journey.teacher), "-o", str(out), "--resume", *WHOLE]) == 0
        assert expected in capsys.readouterr().out
        assert len(_masks(out)) == 8
        assert all(row["status"] == "done" for row in _summary(out))
        assert not list(out.rglob(".*.part.*"))
    assert {case: _masks(killed)[case] for case in before} == before


def test_shards_cover_every_case_once_and_the_last_one_draws(
    journey, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masks"
    words = ["segment", str(many), "--model", str(journey.flair), "-o", str(out), *WHOLE, "--shard"]
    for number, count in ((1, 3), (3, 2), (2, 3)):
        assert not (out / "overlays.png").exists()
        capsys.readouterr()
        assert main([*words, f"{number}/3"]) == 0
        assert f"{count} segmented, 0 failed" in capsys.readouterr().out
    assert (out / "overlays.png").is_file()
    assert [row["case"] for row in _summary(out)] == [f"case-{n}" for n in range(1, 9)]
    lines = [line["case"] for path in out.glob("status-*-of-3.jsonl") for line in read_lines(path)]
    assert sorted(lines) == [f"case-{n}" for n in range(1, 9)]


def test_a_table_of_incomplete_cases_without_labels(journey, many: Path, tmp_path: Path) -> None:
    table = many / "some.csv"
    rows = "".join(f"P{n},site/case-{n}/case-{n}_flair.nii.gz\n" for n in (1, 2))
    table.write_text("case,flair\n" + rows)
    out = tmp_path / "masks"
    assert main(["segment", str(table), "--model", str(journey.flair), "-o", str(out), *WHOLE]) == 0
    assert set(_masks(out)) == {"P1", "P2"}
    record = json.loads((out / "P1" / "P1_seg.manifest.json").read_text())
    assert (record["missing"], record["missing_for_network"]) == (["T1", "T2", "T1ce"], [])


def test_masks_inside_the_cohort_are_no_cases_of_the_next_run(journey, many: Path, tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    for case in ("case-1", "case-2"):
        shutil.copytree(many / "site" / case, root / case)
    for name, labels in (("first", "brats2017"), ("second", "msd")):
        words = ["segment", str(root), "--model", str(journey.flair), "-o", str(root / name), "--labels", labels]
        assert main([*words, *WHOLE]) == 0
    assert set(_masks(root / "second")) == {"case-1", "case-2"}


def test_masks_to_review_and_warnings_are_named_after_a_cohort(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [CaseStatus(f"P{n:02d}", "done", review=["expected Dice of WT 0.51 is below 0.70"]) for n in range(12)]
    _say_what_to_look_at([*lines, CaseStatus("P20", "done", "T1ce absent, and files were left alone")])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "please review: P00: expected Dice of WT 0.51 is below 0.70"
    assert said[-2:] == [
        "please review: 2 more, see summary.csv",
        "beware: P20: T1ce absent, and files were left alone",
    ]
    assert len(said) == 12


def test_settings_that_do_not_fit_a_cohort_or_its_folder_are_refused(
    journey, many: Path, tmp_path: Path, fails: Callable[[list[str]], str]
) -> None:
    words = ["segment", str(many), "--model", str(journey.flair)]
    assert "-o OUTDIR" in fails(words)
    assert "folder of the images" in fails([*words, "-o", str(many)])
    assert "write 2/4" in fails([*words, "-o", str(tmp_path / "x"), "--shard", "5/4"])
    flair = str(next(many.rglob("*_flair.nii.gz")))
    assert "files of one patient" in fails([*words, "-o", str(tmp_path / "x"), "--flair", flair])
    one = ["segment", str(many / "site" / "case-1"), "--model", str(journey.flair), "-o", str(tmp_path / "m.nii.gz")]
    assert "are for cohorts" in fails([*one, "--resume"])
    assert "are for cohorts" in fails([*one, "--shard", "1/2"])
    out = tmp_path / "masks"
    out.mkdir()
    (out / "cohort.json").write_text(json.dumps({"model_sha256": "0" * 64}))
    (out / "status.jsonl").write_text("")
    assert "masks made otherwise" in fails([*words, "-o", str(out), "--resume"])
    (out / "cohort.json").unlink()
    assert "add --resume" in fails([*words, "-o", str(out)])
    assert not (tmp_path / "x").exists()
