"""Jobs as far as they can be tried without a cluster; tests/test_launch_slurm.py tries them on a real one."""

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, write_json
from mindgap.launch import JOBS, CommandTask, Job, Resources, launch, states

SAVES = """
import signal, sys, time
from pathlib import Path

def save(kind, frame):
    Path(sys.argv[1]).write_text("saved")
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1]).write_text("started")
time.sleep(60)
"""


class Child(CommandTask):
    """A task that runs a program of the test instead of mindgap."""

    def command_line(self, words):
        return [sys.executable, "-c", *words]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"cpus": 0}, "cpus is 0"),
        ({"gpus": -1}, "gpus is -1"),
        ({"time_minutes": 1, "grace_seconds": 60}, "leaves nothing of 1 minutes"),
        ({"sbatch": ("exclusive",)}, "write KEY=VALUE"),
    ],
)
def test_impossible_resources_are_refused(numbers, words):
    with pytest.raises(SettingError, match=words):
        Resources(**numbers)


def test_one_process_is_mindgap_itself_and_several_are_started_by_torchrun():
    words = ("train", "teacher", "--resume")
    assert CommandTask([words], Resources()).command_line(words) == [sys.executable, "-m", "mindgap", *words]
    several = CommandTask([words], Resources(processes=4, cpus=8))
    assert several.command_line(("evaluate", "DATA")) == [sys.executable, "-m", "mindgap", "evaluate", "DATA"]
    assert several.command_line(words)[1:] == [
        *("-m", "torch.distributed.run", "--nproc-per-node", "4", "--standalone", "-m", "mindgap"),
        *words,
    ]
    assert several.environment()["OMP_NUM_THREADS"] == "2"
    assert CommandTask([words], Resources(processes=4, cpus=1)).environment()["OMP_NUM_THREADS"] == "1"


def test_machines_meet_at_the_first_of_them(monkeypatch):
    names = ("a1", "a2")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "70003")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJobEnvironment.hostnames", names)
    command = CommandTask([("train",)], Resources(nodes=2, processes=8)).command_line(("train",))
    assert command[command.index("--nnodes") + 1] == "2"
    assert command[command.index("--rdzv-endpoint") + 1] == "a1:30003"
    assert command[command.index("--rdzv-id") + 1] == "70003"


def test_a_command_that_fails_is_an_error_that_names_it():
    assert Child([("print(1)",), ("print(2)",)], Resources())() == 0
    with pytest.raises(RuntimeError, match="ended with code 3"):
        Child([("raise SystemExit(3)",), ("raise SystemExit(4)",)], Resources())()


def test_time_up_lets_the_child_save_and_hands_back_a_fresh_task(tmp_path):
    """submitit calls checkpoint() in a signal handler, while the task waits for its child."""
    mark = tmp_path / "mark"
    task = Child([(SAVES, str(mark))], Resources())
    handed = []

    class TimeUp(Exception):
        pass

    def handler(kind, frame):
        handed.append(task.checkpoint())
        raise TimeUp

    def send():
        while not mark.is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handler)
    thread = threading.Thread(target=send)
    thread.start()
    try:
        with pytest.raises(TimeUp):
            task()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert task.child.wait() == 143
    assert mark.read_text() == "saved"
    again = pickle.loads(pickle.dumps(handed[0].function))
    assert (again.commands, again.child) == (task.commands, None)


def test_a_child_that_has_ended_before_is_left_in_peace():
    task = Child([("pass",)], Resources())
    task()
    assert task.child.returncode == 0
    assert task.checkpoint().function.commands == task.commands


def test_a_child_that_does_not_listen_is_ended(tmp_path):
    deaf = "import signal as s, sys, time; s.signal(s.SIGTERM, s.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(60)"
    mark = tmp_path / "mark"
    task = Child([(deaf, str(mark))], Resources(grace_seconds=1))
    task.child = subprocess.Popen(task.command_line(task.commands[0]))
    while not mark.is_file():
        time.sleep(0.02)
    began = time.monotonic()
    task.checkpoint()
    assert task.child.wait() == -signal.SIGKILL
    assert time.monotonic() - began < 20


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MindgapError, match=r"pip install 'mindgap\[cluster\]'"):
        launch([Job("a", (("doctor",),))], tmp_path, Resources())


def test_names_are_unique_and_nothing_is_nothing(tmp_path):
    assert launch([], tmp_path, Resources()) == []
    with pytest.raises(SettingError, match="two jobs have the same name"):
        launch([Job("a", ()), Job("a", ())], tmp_path, Resources())


def squeue(folder, monkeypatch, text):
    """A queue that says what it is told to."""
    program = folder / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_states_come_from_the_queue_and_from_what_jobs_leave_behind(tmp_path, monkeypatch):
    numbers = {"waits": "7_0", "runs": "7_1", "well": "7_2", "badly": "7_3", "gone": "8"}
    write_json(tmp_path / JOBS, {name: {"name": name, "job_id": number} for name, number in numbers.items()})
    squeue(tmp_path, monkeypatch, "7_0 PENDING\n7_1 RUNNING\n7_2 COMPLETED")
    (tmp_path / "slurm").mkdir()
    for number, outcome in (("7_2", "success"), ("7_3", "error"), ("7_1", "error")):  # 7_1 failed once, and runs again
        (tmp_path / "slurm" / f"{number}_0_result.pkl").write_bytes(pickle.dumps((outcome, 0)))
    expected = {"waits": "pending", "runs": "running", "well": "done", "badly": "failed", "gone": "lost"}
    assert states(tmp_path) == expected
    with pytest.raises(SettingError, match=r"runs in .* is queued or running already"):
        launch([Job("runs", ())], tmp_path, Resources())
    assert set(read_json(tmp_path / JOBS)) == set(numbers)


def test_what_waits_for_a_failed_job_is_blocked_and_makes_room_for_its_second_try(tmp_path, monkeypatch):
    write_json(tmp_path / JOBS, {name: {"name": name, "job_id": f"7_{n}"} for n, name in enumerate(("stuck", "waits"))})
    squeue(tmp_path, monkeypatch, "7_0 PENDING DependencyNeverSatisfied\n7_1 PENDING Dependency")
    assert states(tmp_path) == {"stuck": "blocked", "waits": "pending"}
    for name, text in {"scancel": f'echo "$@" > {tmp_path}/cancelled', "sbatch": "echo job 9", "srun": ":"}.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    (launched,) = launch([Job("stuck", (("doctor",),))], tmp_path, Resources())
    assert launched.job_id == "9"
    assert (tmp_path / "cancelled").read_text() == "7_0\n"
    assert read_json(tmp_path / JOBS)["stuck"]["job_id"] == "9"
    with pytest.raises(SettingError, match=r"waits in .* is queued or running already"):
        launch([Job("waits", (("doctor",),))], tmp_path, Resources())


def test_no_cluster_is_said(tmp_path, monkeypatch):
    write_json(tmp_path / JOBS, {"a": {"name": "a", "job_id": "1"}})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MindgapError, match="squeue was not found"):
        states(tmp_path)


def test_launching_imports_no_torch():
    assert importlib.util.find_spec("submitit") is not None
    program = "import sys; sys.modules['torch'] = None; sys.modules['submitit'] = None; import mindgap.launch"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
