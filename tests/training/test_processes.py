"""Several processes do what one does; torchrun starts them, gloo lets them talk."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mindgap.data.store import open_store
from mindgap.errors import SettingError
from mindgap.experiment import course_hash, to_plain
from mindgap.files import read_json
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.networks.card import read_card
from mindgap.runfiles import CHECKPOINTS, read_lines
from mindgap.session import open_session, train
from mindgap.training.checkpoint import load_newest
from mindgap.training.loop import Schedule
from mindgap.training.optimisation import Optimisation

STEPS = 20

PROGRAM = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from mindgap.experiment import from_plain
from mindgap.errors import Interrupted
from mindgap.session import train

stop_at = int(sys.argv[3])

def progress(done, total, what):
    if done == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)

try:
    train(from_plain(json.loads(sys.argv[1])), Path(sys.argv[2]), resume=True, progress=progress, say=print)
except Interrupted as error:
    print(f"interrupted {os.environ['RANK']}")
assert not torch.distributed.is_initialized()
"""


def run_in_processes(count, experiment, out, stop_at=0):
    """Train in several processes, as ``torchrun --nproc-per-node`` does, and give what they printed."""
    program = out.with_suffix(".py")
    program.write_text(PROGRAM)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, str(program), json.dumps(to_plain(experiment)), str(out), str(stop_at)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def course_of(experiment):
    path = experiment.method.teacher_path()
    sha256 = None if path is None else read_card(path)[1]
    return course_hash(experiment, data=open_store(experiment.data).fingerprint, teacher=sha256)


def state_of(experiment, out):
    state, warnings = load_newest(out / CHECKPOINTS, settings=course_of(experiment))
    assert warnings == []
    return state


def assert_equal_weights(one, other, relative=1e-5):
    """Every tensor of the networks but the running averages of the norms, which each process has of its own."""
    compared = 0
    for name, network in one.networks.items():
        for key, value in network.items():
            if any(word in key for word in ("running_", "num_batches", "norm.mean", "norm.variance")):
                continue
            apart = (value - other.networks[name][key]).norm() / value.norm().clamp_min(1e-12)
            assert float(apart) <= relative, (name, key, float(apart))
            compared += 1
    assert compared > 10


def settings(make_experiment, accumulate, method=None, **changes):
    schedule = Schedule(steps=STEPS, batch=4, crop=16, foreground=0.5, accumulate=accumulate)
    optimisation = Optimisation(optimiser="adam", learning_rate=1e-3, clip=5.0, average=0.9)
    return make_experiment(method, schedule=schedule, optimisation=optimisation, validate_every=10, **changes)


@pytest.fixture(scope="module")
def accumulated(make_experiment, tmp_path_factory):
    """One process that takes its batch of four in two micro-batches; read-only."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("accumulated") / "teacher"
    train(settings(make_experiment, 2), out)
    return out


def test_two_processes_equal_one_that_accumulates_and_one_of_them_writes(accumulated, make_experiment, tmp_path):
    experiment = settings(make_experiment, 1)
    printed = run_in_processes(2, experiment, tmp_path / "two")
    assert printed.count("2 processes of 2 cases a step") == 1
    one, two = (state_of(experiment, folder) for folder in (accumulated, tmp_path / "two"))
    assert (one.step, two.step) == (STEPS, STEPS)
    assert_equal_weights(one, two)
    ours, theirs = (read_lines(folder / "terms.jsonl") for folder in (accumulated, tmp_path / "two"))
    assert [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for mine, other in zip(ours, theirs, strict=True):
        assert {name: pytest.approx(value, rel=1e-4) for name, value in mine.items()} == other
    assert [line["step"] for line in read_lines(tmp_path / "two" / "validations.jsonl")] == [10, 20]
    manifest = read_json(tmp_path / "two" / "manifest.json")
    assert (manifest["finished"], manifest["processes"]) == (True, 2)


def test_a_run_goes_on_with_another_number_of_processes(accumulated, make_experiment, tmp_path):
    experiment, out = settings(make_experiment, 1), tmp_path / "run"
    printed = run_in_processes(2, experiment, out, stop_at=7)
    assert (printed.count("interrupted 0"), printed.count("interrupted 1")) == (1, 1)
    assert state_of(experiment, out).step == 7
    lines = []
    train(settings(make_experiment, 2), out, resume=True, say=lines.append)
    assert f"resumed at step 7 of {STEPS}" in lines
    assert_equal_weights(state_of(experiment, accumulated), state_of(experiment, out))
    assert [line["step"] for line in read_lines(out / "terms.jsonl")] == list(range(1, STEPS + 1))


def test_where_one_process_has_nobody_to_distil_the_others_do_not_wait(accumulated, make_experiment, tmp_path):
    """Some batches of a process hold only the case that lacks T1, on which the teacher is silent."""
    recipe = PmklRecipe(teacher=accumulated)
    schedule = Schedule(steps=4, batch=2, crop=32, foreground=0.5)
    experiment = replace(settings(make_experiment, 1, recipe, subset="T1ce"), schedule=schedule)
    train(replace(experiment, schedule=replace(schedule, accumulate=2)), tmp_path / "one")
    run_in_processes(2, experiment, tmp_path / "two")
    assert_equal_weights(*(state_of(experiment, tmp_path / name) for name in ("one", "two")), relative=1e-4)


def test_two_players_in_two_processes_do_what_they_do_in_one(make_experiment, tmp_path):
    """Without dropout, which each process draws for itself."""
    schedule = Schedule(steps=4, batch=2, crop=32, foreground=0.5)
    experiment = replace(settings(make_experiment, 1, SmuNetRecipe(dropout=0.0), subset="T1ce"), schedule=schedule)
    train(replace(experiment, schedule=replace(schedule, accumulate=2)), tmp_path / "one")
    run_in_processes(2, experiment, tmp_path / "two")
    assert_equal_weights(*(state_of(experiment, tmp_path / name) for name in ("one", "two")), relative=1e-4)


def test_a_batch_that_cannot_be_shared_equally_is_refused(make_experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(SettingError, match=r"a batch of 4 cannot be shared equally by 3 processes.*--batch 3"):
        open_session(settings(make_experiment, 1), tmp_path)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 4)
    with pytest.raises(SettingError, match="one value per channel"):
        open_session(settings(make_experiment, 1), tmp_path)
