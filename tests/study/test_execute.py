"""A small study that is really run; what is finished, failed, skipped and refused."""

from dataclasses import replace

import pytest

from mindgap.errors import SettingError
from mindgap.files import read_json
from mindgap.runfiles import MANIFEST, SCORES, TERMS, read_lines
from mindgap.study import grid
from mindgap.study.execute import is_finished, run_here
from mindgap.study.scale import find_scale


def test_what_can_be_run_is_trained_and_scored(study):
    assert sorted(study.outcome.done) == ["teacher-mixture-s0", "teacher-none-s0"]
    for name in study.outcome.done:
        folder = study.place.run(name)
        assert len(read_lines(folder / TERMS)) == 3
        assert read_json(folder / MANIFEST)["finished"] is True
        assert (folder / SCORES).is_file()


def test_a_failure_is_named_with_its_reason_and_loses_only_what_needs_it(study):
    broken, lost = study.runs[1].name, study.runs[3].name
    assert list(study.outcome.failed) == [broken]
    assert "name its run folder with --teacher" in study.outcome.failed[broken]
    assert study.outcome.skipped == [lost]
    assert any(line.startswith(f"{broken} failed: ") for line in study.said)


def test_progress_counts_the_steps_of_all_runs_and_never_goes_back(study):
    done = [step for step, _ in study.steps]
    assert {total for _, total in study.steps} == {4 * 3}
    assert done == sorted(done)
    assert done[-1] == 4 * 3


def test_a_second_call_repeats_nothing(study):
    said = []
    before = {path: path.stat().st_mtime_ns for path in study.place.out.rglob("*") if path.is_file()}
    runs = [run for run in study.runs if run.name in study.outcome.done]
    silent = lambda done, total, what: None  # noqa: E731
    outcome = run_here(runs, study.scale, study.place, at_once=2, progress=silent, say=said.append)
    assert sorted(outcome.done) == sorted(study.outcome.done)
    assert said == ["2 of 2 runs are finished already"]
    assert before == {path: path.stat().st_mtime_ns for path in study.place.out.rglob("*") if path.is_file()}


def test_a_run_that_is_not_scored_yet_is_not_finished(study):
    assert is_finished(grid.teacher("none", 0), study.scale, study.place)
    assert not is_finished(grid.teacher("k", 0), study.scale, study.place)
    assert not is_finished(study.runs[1], study.scale, study.place)


def test_a_folder_made_with_other_orders_is_refused(study):
    longer = replace(study.scale, steps={"": 4})
    with pytest.raises(SettingError, match="other orders"):
        is_finished(grid.teacher("none", 0), longer, study.place)


def test_an_unknown_scale_is_refused():
    with pytest.raises(SettingError, match="paper, mini, phantom"):
        find_scale("huge")
