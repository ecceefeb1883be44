import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from mindgap.api import Interrupted, cite, train
from mindgap.data.store import open_store, write_index
from mindgap.errors import MindgapError, SettingError
from mindgap.experiment import course_hash, to_plain
from mindgap.files import read_json
from mindgap.lock import hold
from mindgap.methods.anysubset import AnySubsetRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.networks.weights import load_network
from mindgap.runfiles import LOCK
from mindgap.session import open_session
from mindgap.training import turn
from mindgap.training.checkpoint import load_newest
from mindgap.training.folder import read_lines

KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from mindgap.api import train
from mindgap.experiment import from_plain

def progress(done, total, what):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

train(from_plain(json.loads(sys.argv[1])), Path(sys.argv[2]), progress=progress)
"""


def stop_at(step, kind=signal.SIGTERM):
    """Progress that asks the run to stop, as a scheduler does."""

    def progress(done, total, what):
        if done == step:
            os.kill(os.getpid(), kind)

    return progress


def leaves(value, name=""):
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{name}/{key}")]
    if isinstance(value, list | tuple):
        return [leaf for key, item in enumerate(value) for leaf in leaves(item, f"{name}/{key}")]
    return [(name, value)]


def course_of(experiment):
    teacher = experiment.method.teacher_path()
    sha256 = None if teacher is None else load_network(teacher).sha256
    return course_hash(experiment, data=open_store(experiment.data).fingerprint, teacher=sha256)


def assert_same_run(one, other, experiment, steps=8):
    """Two run folders hold the same network, the same logs and the same last checkpoint, bit for bit."""
    for name in ("model.safetensors", "model.json", "thresholds.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    lines = read_lines(one / "terms.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines == read_lines(other / "terms.jsonl")
    assert read_lines(one / "validations.jsonl") == read_lines(other / "validations.jsonl")
    states = [load_newest(f / "checkpoint", settings=course_of(experiment))[0] for f in (one, other)]
    for state in states:
        del state.random["python"]  # the type checks of the tests draw from it
    first, second = (leaves(vars(state)) for state in states)
    assert [name for name, _ in first] == [name for name, _ in second]
    for (name, a), (_, b) in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name
    assert any(isinstance(value, torch.Tensor) for _, value in first)


@pytest.fixture(scope="session")
def trained(make_experiment, tmp_path_factory):
    """A mixture teacher, trained without interruption; read-only."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained") / "teacher"
    result = train(make_experiment(), folder)
    return folder, result


def test_a_run_folder_explains_itself(trained, make_experiment):
    folder, result = trained
    assert read_json(folder / "experiment.json") == to_plain(make_experiment())
    manifest = read_json(folder / "manifest.json")
    assert manifest["finished"] is True
    cases = {"train": ["a", "b", "lacks-t1"], "validation": ["v"], "test": ["t"], "taught": 0}
    assert manifest["cases"] == {**cases, "before": {"train": [], "validation": []}}
    assert manifest["precision"] == "fp32"
    assert set(manifest["versions"]) == {"mindgap", "python", "torch", "accelerate", "numpy"}
    validations = read_lines(folder / "validations.jsonl")
    assert [line["step"] for line in validations] == [4, 8]
    assert result.best == max(line["mean"] for line in validations)
    assert sum(v for name, v in validations[-1].items() if name.startswith("anchor_weight/")) == pytest.approx(4)
    loaded = load_network(folder)
    assert result.parameters == sum(p.numel() for p in loaded.network.parameters())
    assert loaded.card.crop == 16
    assert loaded.card.preparation["spacing_mm"] == 2.0


@pytest.fixture
def terminal():
    """A terminal that may hang up: `nohup`, under which the tests may run, ignores that."""
    if hasattr(signal, "SIGHUP"):
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        yield
        signal.signal(signal.SIGHUP, before)
    else:
        yield


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("step", "name"), [(2, "SIGTERM"), (5, "SIGHUP")])
def test_stopped_by_a_signal_and_resumed_is_uninterrupted_bit_for_bit(trained, make_experiment, tmp_path, step, name):
    experiment, lines = make_experiment(), []
    kind = getattr(signal, name, signal.SIGTERM)
    before = signal.getsignal(kind)
    with pytest.raises(Interrupted, match=f"stopped at step {step}; everything is saved"):
        train(experiment, tmp_path / "run", progress=stop_at(step, kind))
    assert signal.getsignal(kind) is before
    assert read_json(tmp_path / "run" / "manifest.json")["finished"] is False
    result = train(experiment, tmp_path / "run", resume=True, say=lines.append)
    assert f"resumed at step {step} of 8" in lines
    assert_same_run(trained[0], tmp_path / "run", experiment)
    assert (result.best, result.best_step) == (trained[1].best, trained[1].best_step)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_in_another_process_and_resumed_is_uninterrupted_bit_for_bit(trained, make_experiment, tmp_path):
    """Killed at step 5: checkpoint 3 is there, steps 4 and 5 are in the log and have to be taken out of it."""
    experiment, run = make_experiment(), tmp_path / "run"
    command = [sys.executable, "-c", KILLED, json.dumps(to_plain(experiment)), str(run), "5"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [line["step"] for line in read_lines(run / "terms.jsonl")] == [1, 2, 3, 4, 5]
    with (run / "terms.jsonl").open("a") as handle:
        handle.write('{"step": 6, "lo')  # a line the kill cut in half
    lines = []
    train(experiment, run, resume=True, say=lines.append)
    assert "resumed at step 3 of 8" in lines
    assert_same_run(trained[0], run, experiment)


def test_resuming_past_a_damaged_checkpoint_is_uninterrupted_too(trained, make_experiment, tmp_path):
    experiment, run, lines = make_experiment(), tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(experiment, run, progress=stop_at(5))
    (run / "checkpoint" / "step_00000005.pt").write_bytes(b"half")
    train(experiment, run, resume=True, say=lines.append)
    assert lines[0].startswith("step_00000005.pt is damaged")
    assert "resumed at step 3 of 8" in lines
    assert_same_run(trained[0], run, experiment)


def test_resuming_a_finished_run_changes_nothing(trained, make_experiment):
    folder, result = trained
    before = (folder / "model.safetensors").read_bytes()
    again = train(make_experiment(), folder, resume=True)
    assert (again.best, again.best_step) == (result.best, result.best_step)
    assert (folder / "model.safetensors").read_bytes() == before
    assert_same_run(folder, folder, make_experiment())


def test_a_new_run_is_refused_where_one_lies(trained, make_experiment):
    with pytest.raises(MindgapError, match="holds a run already"):
        train(make_experiment(), trained[0])


def test_resuming_with_other_settings_is_refused(trained, make_experiment):
    with pytest.raises(SettingError, match="other settings"):
        train(make_experiment(seed=1), trained[0], resume=True)


def test_complete_cases_only_unless_asked(make_experiment, tmp_path):
    lines = []
    train(make_experiment(TeacherRecipe(), steps=1), tmp_path / "run", say=lines.append)
    assert "1 train cases lack a sequence this method needs and are left out" in lines
    assert read_json(tmp_path / "run" / "manifest.json")["cases"]["train"] == ["a", "b"]


def test_a_student_leaves_its_teacher_alone_and_counts_whom_it_taught(trained, make_experiment, tmp_path):
    teacher = trained[0]
    before = {path.name: path.read_bytes() for path in teacher.glob("*.*")}
    experiment = make_experiment(PmklRecipe(teacher=teacher), subset="T1ce+FLAIR", steps=4)
    train(experiment, tmp_path / "whole")
    manifest = read_json(tmp_path / "whole" / "manifest.json")
    weights = load_network(teacher).sha256
    taught_by = {"weights_sha256": weights, "processor": manifest["processor"]["kind"], "precision": "fp32"}
    assert manifest["teacher"] == taught_by
    assert "teacher" not in read_json(teacher / "manifest.json")
    assert manifest["citations"] == ["pmkl", "protokd", "mindgap", "brats"], "the alignment is its teacher's"
    assert "Mind the Gap" in cite(tmp_path / "whole")
    cases = manifest["cases"]
    assert cases["train"] == ["a", "b", "lacks-t1"]
    assert cases["taught"] == 2
    assert cases["before"]["train"], "what the teacher has learnt"
    assert {path.name: path.read_bytes() for path in teacher.glob("*.*")} == before
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "run", progress=stop_at(2))
    train(experiment, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", experiment, steps=4)
    state, _ = load_newest(tmp_path / "run" / "checkpoint", settings=course_of(experiment))
    assert set(state.networks) == {"segmenter", "student_head", "teacher_head"}
    assert load_network(tmp_path / "run").card.method == "pmkl"
    other = tmp_path / "other teacher"
    train(make_experiment(steps=1, seed=9), other)
    with pytest.raises(SettingError, match="other settings"):
        train(make_experiment(PmklRecipe(teacher=other), subset="T1ce+FLAIR", steps=4), tmp_path / "run", resume=True)


def test_two_players_resumed_are_uninterrupted_bit_for_bit(make_experiment, tmp_path):
    """SMU-Net, whose full path begins as a teacher; its dropout goes on where it stood."""
    teacher = tmp_path / "teacher"
    train(make_experiment(TeacherRecipe(anchor="k", backbone="smunet"), steps=1), teacher)
    before = (teacher / "model.safetensors").read_bytes()
    experiment = make_experiment(SmuNetRecipe(teacher=teacher), subset="T1ce+FLAIR", steps=4, save_every=2)
    said = []
    train(experiment, tmp_path / "whole", progress=lambda done, total, what: said.append(what))
    assert all(what.startswith("loss ") and "nan" not in what for what in said)
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "run", progress=stop_at(3))
    train(experiment, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run", experiment, steps=4)
    assert (teacher / "model.safetensors").read_bytes() == before
    state, _ = load_newest(tmp_path / "run" / "checkpoint", settings=course_of(experiment))
    assert set(state.networks) == {"segmenter", "full", "discriminator"}
    assert set(state.optimisers) == {"segmenter", "discriminator"}
    line = read_lines(tmp_path / "run" / "terms.jsonl")[0]
    assert {"segmenter/dice", "segmenter/alignment", "discriminator/discrimination"} <= set(line)
    kept = load_network(tmp_path / "run")
    assert (kept.card.method, kept.card.architecture) == ("smunet", "smunet")
    assert read_json(tmp_path / "run" / "manifest.json")["cases"]["train"] == ["a", "b"]  # complete cases


def test_a_student_of_a_teacher_with_another_preparation_is_refused(trained, make_experiment, tmp_path):
    folder = tmp_path / "teacher"
    folder.mkdir()
    card = read_json(trained[0] / "model.json")
    card["preparation"]["spacing_mm"] = 1.0
    (folder / "model.json").write_text(json.dumps(card))
    (folder / "model.safetensors").write_bytes((trained[0] / "model.safetensors").read_bytes())
    experiment = make_experiment(PmklRecipe(teacher=folder), subset="T1ce")
    with pytest.raises(SettingError, match="use the same preparation for both"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_validation_cases_the_last_network_is_kept(make_experiment, store, tmp_path):
    folder = tmp_path / "store"
    write_index(replace(store, folder=folder, split={**store.split, "validation": []}))
    (folder / "cases").symlink_to(store.folder / "cases")
    experiment = make_experiment(UnimodalRecipe(), subset="FLAIR", steps=2, data=folder)
    result = train(experiment, tmp_path / "run")
    assert result.best_step == 2
    assert result.best != result.best  # not a number
    json.loads((tmp_path / "run" / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert load_network(tmp_path / "run").card.method == "unimodal"


def test_no_usable_case_is_explained(make_experiment, store, tmp_path):
    folder = tmp_path / "store"
    write_index(replace(store, folder=folder, split={**store.split, "train": ["lacks-t1"]}))
    (folder / "cases").symlink_to(store.folder / "cases")
    with pytest.raises(SettingError, match=r"no training case .*T1"):
        train(make_experiment(UnimodalRecipe(), subset="T1", data=folder), tmp_path / "run")


def test_a_sequence_that_no_training_case_has_is_refused_for_any_subset_too(make_experiment, store, tmp_path):
    folder = tmp_path / "store"
    write_index(replace(store, folder=folder, split={**store.split, "train": ["lacks-t1"]}))
    (folder / "cases").symlink_to(store.folder / "cases")
    experiment = make_experiment(AnySubsetRecipe(), subset="all", data=folder, steps=1)
    with pytest.raises(SettingError, match=r"no training case .*has T1: choose --subset T2\+T1ce\+FLAIR"):
        train(experiment, tmp_path / "run")


def test_a_run_of_a_given_precision_can_be_checked_where_there_is_another(make_experiment, tmp_path):
    experiment = make_experiment(steps=4, precision="fp32")
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "run", progress=stop_at(2))
    session = open_session(experiment, tmp_path / "run", resume=True, elsewhere=True)
    assert session.training.finished == 2
    missing = replace(experiment, device="cuda")
    assert open_session(missing, tmp_path / "run", resume=True, elsewhere=True).processor.device == "cpu"


def test_progress_says_the_loss_that_was_logged_last(make_experiment, tmp_path):
    experiment, said = make_experiment(steps=4), []
    sparse = replace(experiment, schedule=replace(experiment.schedule, log_every=3))
    train(sparse, tmp_path / "run", progress=lambda done, total, what: said.append(what))
    assert not any("nan" in what for what in said)
    assert said[-1].startswith("loss ")
    assert read_json(tmp_path / "run" / "manifest.json")["peak_memory_gib"] > 0


def test_a_run_does_not_go_on_with_other_data(trained, make_experiment, tmp_path):
    experiment = make_experiment(steps=4)
    with pytest.raises(Interrupted):
        train(experiment, tmp_path / "run", progress=stop_at(2))
    swapped = _store_with(experiment.data, tmp_path / "swapped", lambda split: split | {"sha256": "other"})
    with pytest.raises(SettingError, match="other settings"):
        train(replace(experiment, data=swapped), tmp_path / "run", resume=True)


def test_a_teacher_that_learnt_from_test_cases_is_refused(trained, make_experiment, tmp_path):
    learnt = read_json(trained[0] / "manifest.json")["cases"]["train"]
    experiment = make_experiment(PmklRecipe(teacher=trained[0]), subset="T1ce", steps=1)
    swapped = _store_with(experiment.data, tmp_path / "swapped", lambda split: split | {"test": learnt[:1]})
    with pytest.raises(SettingError, match=f"test cases.*{learnt[0]}"):
        train(replace(experiment, data=swapped), tmp_path / "run")


def test_a_prepared_file_that_is_not_the_one_of_the_index_is_refused(make_experiment, tmp_path):
    experiment = make_experiment(steps=1)
    copied = _store_with(experiment.data, tmp_path / "copied", lambda split: split)
    path = copied / "cases" / "a.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(MindgapError, match=r"a\.npy is not the file"):
        train(replace(experiment, data=copied), tmp_path / "run")


def _store_with(source, folder, change):
    """A copy of a store with another split."""
    shutil.copytree(source, folder)
    index = read_json(folder / "store.json")
    index["split"] = change(index["split"])
    (folder / "store.json").write_text(json.dumps(index))
    return folder


class Cut(Exception):
    """What ends a run from within, without a word."""


def cut_at(step):
    def progress(done, total, what):
        if done == step:
            raise Cut

    return progress


def test_the_hours_of_a_run_are_written_with_every_checkpoint(make_experiment, tmp_path):
    out, experiment = tmp_path / "run", make_experiment()
    with pytest.raises(Cut):
        train(experiment, out, progress=cut_at(5))
    first = read_json(out / "manifest.json")
    assert first["finished"] is False
    assert first["seconds"] > 0  # of the checkpoint of step 3
    with pytest.raises(Cut):
        train(experiment, out, resume=True, progress=cut_at(8))
    second = read_json(out / "manifest.json")["seconds"]
    assert second > first["seconds"]
    train(experiment, out, resume=True)
    assert read_json(out / "manifest.json")["seconds"] > second


def test_a_run_folder_takes_one_training_at_a_time_and_is_free_after_a_kill(make_experiment, tmp_path, monkeypatch):
    out, experiment = tmp_path / "run", make_experiment()
    with pytest.raises(Cut):
        train(experiment, out, progress=cut_at(5))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mindgap.lock import hold\n"
        "with hold(Path(sys.argv[1]), what='it'):\n    print('held', flush=True)\n    time.sleep(120)\n"
    )
    monkeypatch.setattr(turn, "_PATIENCE_S", 0.0)
    words = [sys.executable, "-c", program, str(out / LOCK)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match=r"a training in .*run is at work in another process"):
            train(experiment, out, resume=True)
        assert before == {path: path.read_bytes() for path in before}
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    train(experiment, out, resume=True)
    assert not (out / LOCK).exists()
    assert [line["step"] for line in read_lines(out / "terms.jsonl")] == list(range(1, 9))


def test_a_training_waits_for_one_that_is_about_to_end(make_experiment, tmp_path):
    out, said = tmp_path / "run", []
    out.mkdir()
    with hold(out / LOCK, what="it"):
        waiting = threading.Thread(target=train, args=(make_experiment(steps=1), out), kwargs={"say": said.append})
        waiting.start()
        while not said:
            time.sleep(0.01)
        assert not (out / "terms.jsonl").exists()
    waiting.join()
    assert said[0].startswith(f"another training is at work in {out}: waiting")
    assert read_json(out / "manifest.json")["finished"] is True


def test_what_is_refused_leaves_no_folder_behind(make_experiment, tmp_path):
    with pytest.raises(SettingError):
        train(make_experiment(PmklRecipe()), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
