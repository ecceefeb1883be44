"""Commands of mindgap as jobs of a SLURM cluster, through submitit: arrays, time limits, requeues from checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindgap.errors import MindgapError, SettingError
from mindgap.files import read_json, write_json

JOBS = "jobs.json"
_LOGS = "slurm"
_REQUEUES = 1000  # a long training may pass its time limit again and again
_NEVER = "DependencyNeverSatisfied"  # why a job stays in the queue for ever when one that it waits for has failed
_ACTIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "PREEMPTED")
_WORDS = {"RUNNING": "running", "COMPLETING": "running", _NEVER: "blocked"}
"""What the states of the queue are called here; pending all others."""


@dataclass(frozen=True)
class Job:
    """One or more command lines, run one after the other; the first that fails ends the job.

    Attributes:
        name: Unique in its folder.
        commands: What follows ``mindgap`` in each. A training carries --resume, so that it goes on when it is requeued.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Resources:
    """What a job asks of the cluster.

    Attributes:
        partition: Queue; the cluster's default if none is named.
        time_minutes: Time limit. A training that reaches it saves a checkpoint and is queued again.
        cpus: Processors per node.
        gpus: GPUs per node.
        memory_gib: Memory per node.
        processes: Training processes per node, started by torchrun; with GPUs usually one each.
        nodes: Machines per job.
        account: Who is charged.
        qos: Quality of service.
        grace_seconds: How long before the time limit a training is told to save.
        sbatch: Further options of sbatch, as KEY=VALUE.
    """

    partition: str | None = None
    time_minutes: int = 240
    cpus: int = 4
    gpus: int = 0
    memory_gib: int = 16
    processes: int = 1
    nodes: int = 1
    account: str | None = None
    qos: str | None = None
    grace_seconds: int = 90
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("time_minutes", "cpus", "memory_gib", "processes", "nodes", "grace_seconds"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}: it has to be at least 1.")
        if self.gpus < 0:
            raise SettingError(f"gpus is {self.gpus}: it has to be at least 0.")
        if self.grace_seconds >= 60 * self.time_minutes:
            raise SettingError(
                f"grace_seconds is {self.grace_seconds}, which leaves nothing of {self.time_minutes} minutes."
            )
        wrong = [item for item in self.sbatch if "=" not in item]
        if wrong:
            raise SettingError(f"sbatch option {wrong[0]!r} has no value: write KEY=VALUE.")


@dataclass(frozen=True)
class Launched:
    """A job in the queue.

    Attributes:
        name: Of the job.
        job_id: SLURM's number, with the place in the array.
        commands: What it runs.
        stdout: What it prints.
        stderr: Its errors and progress.
    """

    name: str
    job_id: str
    commands: tuple[tuple[str, ...], ...]
    stdout: str
    stderr: str


def launch(
    jobs: Sequence[Job], folder: Path, resources: Resources, *, after: Sequence[str] = (), at_once: int = 256
) -> list[Launched]:
    """Queue jobs as one array and write down what was queued in ``folder/jobs.json``.

    Args:
        jobs: What to run; names are new in the folder, or take the place of a job that is over, or that is blocked and
            is taken out of the queue.
        folder: Where logs and ``jobs.json`` lie; jobs start in the present working directory.
        resources: Of each job.
        after: Numbers of jobs that have to end well first; if one fails, these are never started.
        at_once: How many of them may run at the same time.

    Raises:
        SettingError: Names are not unique, or a job of that name is still queued.
        MindgapError: submitit or SLURM is not there, or the cluster refuses.
    """
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise SettingError("two jobs have the same name.")
    if not jobs:
        return []
    submitit = _submitit()
    known = _read_jobs(folder)
    found = states(folder)
    active = {name for name, state in found.items() if state in ("pending", "running")}
    if active & set(names):
        raise SettingError(f"{', '.join(sorted(active & set(names)))} in {folder} is queued or running already.")
    _cancel([known[name]["job_id"] for name in names if found.get(name) == "blocked"])
    executor = submitit.SlurmExecutor(folder=folder / _LOGS, max_num_timeout=_REQUEUES)
    name = names[0] if len(names) == 1 else folder.name
    executor.update_parameters(**_parameters(resources, after, name=name), array_parallelism=at_once)
    try:
        with executor.batch():
            queued = [executor.submit(CommandTask(job.commands, resources)) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        raise MindgapError(f"the cluster refused the jobs: {str(error).strip()}") from error
    launched = [
        Launched(job.name, str(ran.job_id), job.commands, str(ran.paths.stdout), str(ran.paths.stderr))
        for job, ran in zip(jobs, queued, strict=True)
    ]
    write_json(folder / JOBS, {**known, **{one.name: asdict(one) for one in launched}})
    return launched


def states(folder: Path) -> dict[str, str]:
    """State of every job of a folder: pending, running, blocked, done, failed, or lost (ended without a word).

    Blocked is what still stands in the queue and never starts, because a job that it waits for has failed. It asks the
    queue and reads what jobs leave behind, and needs no accounting.
    """
    known = _read_jobs(folder)
    if not known:
        return {}
    submitit = _submitit()
    queue = _queue()
    found = {}
    for name, job in known.items():
        paths = submitit.core.utils.JobPaths(folder / _LOGS, job_id=job["job_id"])
        waiting = queue.get(job["job_id"])
        if waiting is not None:
            found[name] = _WORDS.get(waiting, "pending")
        elif paths.result_pickle.is_file():
            outcome, _ = submitit.core.utils.pickle_load(paths.result_pickle)
            found[name] = "done" if outcome == "success" else "failed"
        else:
            found[name] = "lost"
    return found


class CommandTask:
    """Commands of mindgap as submitit runs them: child processes, stopped with a checkpoint when time is up.

    Args:
        commands: What follows ``mindgap`` in each.
        resources: What the job was given.
    """

    def __init__(self, commands: Sequence[Sequence[str]], resources: Resources) -> None:
        self.commands, self.resources = tuple(tuple(words) for words in commands), resources
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the commands to their end.

        Raises:
            RuntimeError: One ended with another code than 0.
        """
        for words in self.commands:
            self._run(words)
        return 0

    def checkpoint(self) -> Any:
        """Called by submitit before the time limit: the child saves and ends, and the job is queued again."""
        if self.child is not None and self.child.returncode is None and not _has_ended(self.child.pid):
            self.child.send_signal(signal.SIGTERM)
            patience = time.monotonic() + max(self.resources.grace_seconds - 10, 5)
            while not _has_ended(self.child.pid) and time.monotonic() < patience:
                time.sleep(0.1)
            if not _has_ended(self.child.pid):
                self.child.kill()
        return _submitit().helpers.DelayedSubmission(CommandTask(self.commands, self.resources))

    def command_line(self, words: Sequence[str]) -> list[str]:
        """Mindgap itself, or torchrun with several processes of it where it trains."""
        if self.resources.processes == self.resources.nodes == 1 or words[0] != "train":
            return [sys.executable, "-m", "mindgap", *words]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.resources.processes)]
        if self.resources.nodes == 1:
            torchrun.append("--standalone")
        else:
            place = _submitit().JobEnvironment()
            port = 20000 + int(place.raw_job_id) % 20000
            torchrun += ["--nnodes", str(self.resources.nodes), "--rdzv-backend", "c10d"]
            torchrun += ["--rdzv-endpoint", f"{place.hostnames[0]}:{port}", "--rdzv-id", place.raw_job_id]
        return [*torchrun, "-m", "mindgap", *words]

    def environment(self) -> Mapping[str, str]:
        """The job's environment: each process's share of the processors, and the time torchrun gives them to save."""
        threads = max(self.resources.cpus // self.resources.processes, 1)
        patience = max(self.resources.grace_seconds - 10, 5)
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(patience),
        }

    def _run(self, words: Sequence[str]) -> None:
        self.child = subprocess.Popen(
            self.command_line(words), env=self.environment(), preexec_fn=_leave_warning_to_parent
        )
        while not _has_ended(self.child.pid):
            time.sleep(0.2)
        code = self.child.wait()
        if code in (143, -signal.SIGTERM):
            # The cluster wants this place back: it ends this process too, and starts the job again if it may.
            time.sleep(60)
        if code:
            raise RuntimeError(f"mindgap {' '.join(words)} ended with code {code}; see the log")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "child": None}


def _leave_warning_to_parent() -> None:
    """Ignore the cluster's warning in a child.

    SLURM sends it to every process of a step; it would end a child on the spot, before this process asks it to save.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _parameters(resources: Resources, after: Sequence[str], *, name: str) -> dict[str, Any]:
    """Of submitit's SLURM executor."""
    given = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "gpus_per_node": resources.gpus or None,
        "dependency": f"afterok:{':'.join(after)}" if after else None,
    }
    return {
        "job_name": name,
        "time": resources.time_minutes,
        "nodes": resources.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus,
        "mem": f"{resources.memory_gib}G",
        "signal_delay_s": resources.grace_seconds,
        "additional_parameters": dict(item.split("=", 1) for item in resources.sbatch),
        **{key: value for key, value in given.items() if value is not None},
    }


def _submitit() -> Any:
    try:
        import submitit
        import submitit.helpers
    except ImportError as error:
        raise MindgapError("jobs need submitit: pip install 'mindgap[cluster]'") from error
    return submitit


def _queue() -> dict[str, str]:
    """SLURM's states of what is queued or running, by number; the reason of what never starts."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", "--format", "%i %T %r"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise MindgapError("SLURM is not here: squeue was not found. Use a login node of the cluster.") from error
    except subprocess.CalledProcessError as error:
        raise MindgapError(f"the cluster does not answer: {error.stderr.strip()}") from error
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    return {number: _NEVER if _NEVER in reason else state for number, state, *reason in lines if state in _ACTIVE}


def _cancel(numbers: Sequence[str]) -> None:
    """Take jobs out of the queue."""
    if not numbers:
        return
    try:
        subprocess.run(["scancel", *numbers], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise MindgapError("SLURM is not here: scancel was not found. Use a login node of the cluster.") from error
    except subprocess.CalledProcessError as error:
        raise MindgapError(f"the cluster does not take {', '.join(numbers)} out: {error.stderr.strip()}") from error


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; takes no lock, since a signal handler asks while the main program waits."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _read_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / JOBS
    known: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
    return known
