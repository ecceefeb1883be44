"""What is kept of finished runs, and what it spares another machine."""

from dataclasses import replace

import pytest

from mindgap.errors import SettingError
from mindgap.files import read_json
from mindgap.study import grid
from mindgap.study.execute import split_runs
from mindgap.study.grid import Choice
from mindgap.study.keep import is_kept, keep_runs
from mindgap.study.outputs import make_output
from mindgap.study.scale import Place


@pytest.fixture
def kept(study, tmp_path) -> Place:
    place = replace(study.place, keep=tmp_path / "kept")
    keep_runs(study.runs, study.scale, place)
    return place


def elsewhere(kept, tmp_path) -> Place:
    """The same study on a machine that has only what was kept."""
    out = tmp_path / "elsewhere"
    return Place(out, out / "cohort", out / "store", "cpu", kept.keep)


def test_finished_runs_are_kept_without_images_networks_or_paths(study, kept):
    names = sorted(path.name for path in (kept.keep / "runs").iterdir())
    assert names == ["teacher-mixture-s0", "teacher-none-s0"]
    files = {path.name for path in kept.kept(names[0]).iterdir()}
    assert files == {
        "scores.csv",
        "evaluation.json",
        "experiment.json",
        "validations.jsonl",
        "manifest.json",
        "study.json",
    }
    for path in kept.keep.rglob("*.*"):
        assert str(study.place.out) not in path.read_text(encoding="utf-8")
    assert read_json(kept.kept(names[0]) / "experiment.json")["data"] == "store"


def test_another_machine_repeats_no_kept_run_but_trains_a_teacher_that_a_student_needs(study, kept, tmp_path):
    place = elsewhere(kept, tmp_path)
    first, student = grid.student("pmkl", "none", "T1", 0)
    runs = [first, student, grid.teacher("mixture", 0)]
    done, missing = split_runs(runs, study.scale, place)
    assert [run.name for run in done] == ["teacher-mixture-s0"]
    assert missing == [first, student]
    assert split_runs(runs, study.scale, kept)[1] == [student]  # here the teacher's network lies beside
    second = replace(grid.teacher("mixture", 0), start=first.name)
    chain = [first, second, replace(student, teacher=second.name)]
    assert split_runs(chain, study.scale, place)[1] == chain, "what a needed network needs is run again, too"


def test_tables_rebuild_from_what_is_kept(study, kept, tmp_path):
    places = (study.place, elsewhere(kept, tmp_path), Place(kept.keep, tmp_path, tmp_path))
    texts = [make_output("table4", place, Choice(), say=lambda line: None)[0].read_text("utf-8") for place in places]
    assert texts[0] == texts[1] == texts[2]
    assert "2 runs of 3 steps on phantoms (synthetic patients); cases: 2 to train, 1 to validate, 3 to test" in texts[0]


def test_what_is_kept_stays_and_other_orders_are_refused(study, kept):
    run = grid.teacher("none", 0)
    scores = kept.kept(run.name) / "scores.csv"
    scores.write_text("mine", encoding="utf-8")
    keep_runs(study.runs, study.scale, kept)
    assert scores.read_text(encoding="utf-8") == "mine"
    with pytest.raises(SettingError, match="other orders"):
        is_kept(run, replace(study.scale, steps={"": 4}), kept)
