"""A small study that is really run; what is finished, failed, skipped and refused."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mindgap.errors import SettingError
from mindgap.files import read_json, write_json, write_text
from mindgap.launch import JOBS, Launched, Resources
from mindgap.runfiles import CHECKPOINTS, MANIFEST, SCORES, TERMS, read_lines
from mindgap.study import execute, grid
from mindgap.study.execute import Outcome, _work, is_finished, queue, run_here
from mindgap.study.grid import Choice, Run, runs_of
from mindgap.study.scale import Place, find_scale

BROKEN = Run("pmkl-broken-T1-s0", "pmkl", "T1", 0)


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


def test_progress_counts_the_work_of_all_runs_and_never_goes_back(study):
    done = [second for second, _ in study.steps]
    total = 4 * round(study.scale.seconds_of(study.runs[0]))
    assert {second for _, second in study.steps} == {total}
    assert done == sorted(done)
    assert done[-1] == total


def test_progress_weighs_slow_methods_more_and_scoring_is_not_done(tmp_path):
    scale, place = find_scale("mini"), Place(tmp_path, tmp_path, tmp_path)
    fast, slow = grid.student("kdnet", "none", "T1", 0)[-1], grid.student("smunet", "none", "T1", 0)[-1]
    write_text(place.run(fast.name) / TERMS, '{"step": 1200, "loss": 0.1}\n')
    total, finished = _work([fast, slow], scale, place, Outcome())
    assert total == 1200 * 0.15 + 60 + 1200 * 0.6 + 60
    assert finished == 1200 * 0.15  # trained to the end, and its scores are not there yet
    write_text(place.run(fast.name) / "study.log", "training: 1200/1200\nscoring: 4/9  20 s left\n")
    assert _work([fast, slow], scale, place, Outcome())[1] == 1200 * 0.15 + int(60 * 4 / 9)
    assert _work([fast, slow], scale, place, Outcome(done=[fast.name])) == (total, 1200 * 0.15 + 60)
    assert _work([fast, slow], scale, place, Outcome(done=[fast.name], failed={slow.name: ""})) == (total, total)


def test_a_network_for_every_subset_is_scored_on_fifteen_and_costs_as_much():
    scale = find_scale("phantom")
    one, every = grid.teacher("none", 0), grid.for_any_subset("anysubset", 0)
    assert (one.scored_subsets, every.scored_subsets) == (1, 15)
    assert scale.seconds_of(one) == scale.training_seconds_of(one, 600) + 40
    assert scale.seconds_of(every) == pytest.approx(400 * 0.3 + 40 + 14 * scale.scoring_s)


def test_a_trained_teacher_teaches_though_its_scoring_failed(study, tmp_path, monkeypatch):
    monkeypatch.setattr(execute._Child, "__init__", lambda child, run, *_, **__: None)  # nothing is trained
    place = Place(tmp_path, study.place.data, study.place.store)
    teacher, other = study.runs[0], grid.teacher("k", 0)
    shutil.copytree(study.place.run(teacher.name), place.run(teacher.name))
    students = [grid.student("pmkl", anchor, "T1", 0)[-1] for anchor in ("none", "k")]
    outcome, waiting, children = Outcome(failed={teacher.name: "a case", other.name: "no memory"}), students[:], {}
    execute._start_what_can(waiting, children, outcome, at_once=2, scale=study.scale, place=place)
    assert (list(children), outcome.skipped, waiting) == ([students[0].name], [students[1].name], [])


def test_no_training_at_a_time_is_refused(study):
    with pytest.raises(SettingError, match="never end"):
        run_here([BROKEN], study.scale, study.place, at_once=-1, progress=lambda *_: None, say=print)


class Cluster:
    """A queue of our own: what is launched waits for what it is told to."""

    def __init__(self, monkeypatch):
        self.states, self.arrays = {}, []
        monkeypatch.setattr(execute, "states", lambda folder: self.states)
        monkeypatch.setattr(execute, "launch", self.launch)

    def launch(self, jobs, folder, resources, *, after=(), at_once):
        names = [job.name for job in jobs]
        if not names:
            return []
        number = 100 + len(self.arrays)
        self.arrays.append((names, list(after)))
        launched = [Launched(job.name, f"{number}_{n}", job.commands, "", "") for n, job in enumerate(jobs)]
        path = folder / JOBS
        known = read_json(path) if path.is_file() else {}
        write_json(path, {**known, **{one.name: {"job_id": one.job_id} for one in launched}})
        self.states |= dict.fromkeys(names, "pending")
        return launched


def test_students_in_the_queue_wait_for_their_own_teacher_only(tmp_path, monkeypatch):
    cluster, place = Cluster(monkeypatch), Place(tmp_path, tmp_path, tmp_path)
    choice = Choice(("pmkl",), ("mixture",), ("T1", "T2"), 1)
    runs, scale = runs_of(["table1"], choice), find_scale("mini")
    outcome = queue(runs, scale, place, Resources(), at_once=4)
    assert sorted(outcome.queued) == sorted(run.name for run in runs)
    first = ["unimodal-T1-s0", "unimodal-T2-s0", "teacher-none-s0", "teacher-mixture-s0"]
    none, mixture = (["pmkl-none-T1-s0", "pmkl-none-T2-s0"], ["pmkl-mixture-T1-s0", "pmkl-mixture-T2-s0"])
    assert [sorted(names) for names, _ in cluster.arrays] == [sorted(first), sorted(none), sorted(mixture)]
    names = cluster.arrays[0][0]
    assert [after for _, after in cluster.arrays] == [
        [],
        [f"100_{names.index('teacher-none-s0')}"],
        [f"100_{names.index('teacher-mixture-s0')}"],
    ]

    # the teacher without alignment fails, and its students stand in the queue for ever
    cluster.states |= {"teacher-none-s0": "failed", **dict.fromkeys(none, "blocked")}
    cluster.arrays.clear()
    outcome = queue(runs, scale, place, Resources(), at_once=4)
    assert cluster.arrays == [(["teacher-none-s0"], []), (none, ["100_0"])]
    assert set(outcome.queued) == {run.name for run in runs}


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


STUDY = """
import sys
from dataclasses import replace
from pathlib import Path
from mindgap.study import grid
from mindgap.study.execute import run_here
from mindgap.study.scale import Place, Scale

out, data, store, flags = sys.argv[1:]
runs = [grid.teacher("none", 0), replace(grid.unimodal("T1", 0), extra=("--validate-every", "60"))]
scale = Scale("tiny", 4.0, tuple(flags.split()), {"": 3, runs[1].name: 60}, {"": 0.1})
place = Place(Path(out), Path(data), Path(store), "cpu")
run_here(runs, scale, place, at_once=1, progress=lambda done, total, what: None, say=print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="children are told to save when their parent dies on Linux")
def test_a_study_that_was_killed_repeats_no_finished_run_and_goes_on_with_the_one_it_was_at(study, tmp_path):
    first, second = grid.teacher("none", 0), replace(grid.unimodal("T1", 0), extra=("--validate-every", "60"))
    place, words = Place(tmp_path, study.place.data, study.place.store, "cpu"), " ".join(study.scale.flags)
    scale = replace(study.scale, steps={"": 3, second.name: 60})
    shutil.copytree(study.place.run(first.name), place.run(first.name))
    before = {path: path.stat().st_mtime_ns for path in place.run(first.name).rglob("*") if path.is_file()}
    command = [sys.executable, "-c", STUDY, str(tmp_path), str(place.data), str(place.store), words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        while not any((place.run(second.name) / CHECKPOINTS).glob("*.sha256")):
            assert killed.poll() is None, "the study ended before it could be killed"
            time.sleep(0.05)
        killed.kill()
    assert not is_finished(second, scale, place)
    said = []
    outcome = run_here([first, second], scale, place, at_once=1, progress=lambda *_: None, say=said.append)
    assert outcome.done == [first.name, second.name]
    assert said[0] == "1 of 2 runs are finished already"
    assert before == {path: path.stat().st_mtime_ns for path in place.run(first.name).rglob("*") if path.is_file()}
    assert [line["step"] for line in read_lines(place.run(second.name) / TERMS)] == list(range(1, 61))
    assert "resumed at step" in (place.run(second.name) / "study.log").read_text(encoding="utf-8")
