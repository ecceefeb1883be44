"""Run a study here, a few trainings at a time, or on SLURM; what is finished is not run again."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from mindgap.errors import Interrupted, SettingError
from mindgap.files import read_json, write_json
from mindgap.launch import Job, Resources, launch, states
from mindgap.processor import calm_threads, cpu_count
from mindgap.progress import Progress, Say
from mindgap.runfiles import TERMS, read_lines
from mindgap.study.grid import Run
from mindgap.study.keep import (
    ORDERS,
    has_network,
    is_kept,
    is_trained,
    is_whole,
    keep_runs,
    orders_of,
    refuse_other_cohort,
)
from mindgap.study.scale import Place, Scale, commands_of
from mindgap.training.stopping import stop_request

_LOG = "study.log"
_PR_SET_PDEATHSIG = 1


@dataclass
class Outcome:
    """How the runs of a study ended.

    Attributes:
        done: Finished and scored.
        failed: Names with the last line of their log.
        skipped: Students whose teacher failed.
        queued: Given to a cluster.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    queued: list[str] = field(default_factory=list)


def is_finished(run: Run, scale: Scale, place: Place) -> bool:
    """Whether a run was trained to its end here and scored, with the same orders.

    Raises:
        SettingError: The folder holds a run of other orders.
    """
    whole = is_whole(place.run(run.name), run, scale)
    if whole:
        refuse_other_cohort(place.run(run.name), place.store_of(run))
    return whole


def split_runs(
    runs: Sequence[Run], scale: Scale, place: Place, *, networks: Collection[str] = ()
) -> tuple[list[Run], list[Run]]:
    """What has its scores, and what has to be run.

    A teacher whose scores are kept but whose network is not here is run again if a student needs it, and so is what it
    started from itself.

    Args:
        runs: Teachers before students.
        scale: How large.
        place: Where.
        networks: Names of the runs whose networks are needed, too (:func:`mindgap.study.outputs.networks_needed`).

    Raises:
        SettingError: A folder holds a run of other orders.
    """
    finished = {run.name for run in runs if is_finished(run, scale, place)}
    scored = finished | {run.name for run in runs if is_kept(run, scale, place)}
    here = {name for name in finished if has_network(place.run(name))}
    missing: list[Run] = []
    needed: set[str | None] = set(networks)
    for run in reversed(runs):
        if run.name not in scored or (run.name in needed and run.name not in here):
            missing.insert(0, run)
            needed.add(run.after)
    return [run for run in runs if run not in missing], missing


def run_here(
    runs: Sequence[Run],
    scale: Scale,
    place: Place,
    *,
    at_once: int,
    progress: Progress,
    say: Say,
    networks: Collection[str] = (),
) -> Outcome:
    """Run what is missing, at most ``at_once`` at a time; a student starts when its teacher is done.

    One failure loses only what depends on it; a teacher that was trained teaches, also where a test case of its could
    not be scored. Ctrl-C, SIGTERM or SIGHUP lets all trainings save; a second call goes on.

    Args:
        runs: Teachers before students.
        scale: How large.
        place: Where.
        at_once: Trainings at the same time; each gets its share of the processors.
        progress: Called with estimated seconds of work that are done, and in all.
        say: Takes a line when a run begins or ends.
        networks: Names of the runs whose networks are needed, too.

    Raises:
        SettingError: A folder holds a run of other orders, or nothing may run at the same time.
        Interrupted: SIGTERM, SIGHUP or Ctrl-C came.
    """
    if at_once < 1:
        raise SettingError(f"{at_once} trainings at the same time never end: it has to be at least 1.")
    keep_runs(runs, scale, place)
    done, waiting = split_runs(runs, scale, place, networks=networks)
    outcome = Outcome(done=[run.name for run in done])
    if outcome.done:
        say(f"{len(outcome.done)} of {len(runs)} runs are finished already")
    children: dict[str, _Child] = {}
    with stop_request() as stop:
        while waiting or children:
            _start_what_can(waiting, children, outcome, at_once=at_once, scale=scale, place=place)
            ended = _collect(children, outcome, say)
            keep_runs([run for run in runs if run.name in ended], scale, place)
            total, finished = _work(runs, scale, place, outcome)
            progress(finished, total, ", ".join(children))
            if stop.is_set():
                _let_save(list(children.values()))
                raise Interrupted("stopped; every training was told to save. The same command goes on.")
            time.sleep(0.5)
    return outcome


def queue(
    runs: Sequence[Run],
    scale: Scale,
    place: Place,
    resources: Resources,
    *,
    at_once: int,
    networks: Collection[str] = (),
) -> Outcome:
    """Give what is missing to SLURM: what needs nothing as one array, then the students of each teacher as one.

    An array of students waits for its own teacher only, so that a teacher that fails holds up no other's students.
    Those it does hold up never start; a second call takes them out of the queue and queues them again behind it.

    Args:
        runs: Teachers before students.
        scale: How large.
        place: Where, on storage that the nodes share.
        resources: Of each run.
        at_once: Runs of an array at the same time.
        networks: Names of the runs whose networks are needed, too.
    """
    keep_runs(runs, scale, place)
    done, waiting = split_runs(runs, scale, place, networks=networks)
    outcome = Outcome(done=[run.name for run in done])
    known = states(place.out)
    busy = {name for name, state in known.items() if state in ("pending", "running")}
    outcome.queued = [run.name for run in runs if run.name in busy]
    missing = [run for run in waiting if run.name not in busy]
    numbers = {name: job["job_id"] for name, job in _known_jobs(place.out).items()}
    for name in dict.fromkeys([None, *(run.after for run in missing)]):  # what is waited for stands before what waits
        wave = [run for run in missing if run.after == name]
        for run in wave:
            _give_orders(run, scale, place)
        after = [numbers[name]] if name is not None and name not in outcome.done else []
        jobs = [Job(run.name, commands_of(run, scale, place)) for run in wave]
        for job in launch(jobs, place.out, resources, after=after, at_once=at_once):
            numbers[job.name] = job.job_id
            outcome.queued.append(job.name)
    return outcome


class _Child:
    """A run as a child process that trains, then scores."""

    def __init__(self, run: Run, scale: Scale, place: Place, *, threads: int) -> None:
        self.folder = place.run(run.name)
        _give_orders(run, scale, place)
        self.commands = list(commands_of(run, scale, place))
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        calm_threads(self.environment)
        self.began = time.monotonic()
        self.log: IO[str] = (self.folder / _LOG).open("a", encoding="utf-8")
        self.process = self._start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """None while it runs; then the first code that is not 0, or 0."""
        code = self.process.poll()
        if code == 0 and self.commands:
            self.process = self._start()
            return None
        if code is not None:
            self.log.close()
        return code

    def last_line(self) -> str:
        lines = (self.folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no word"

    def _start(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "mindgap", *self.commands.pop(0)]
        return subprocess.Popen(
            words,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the study, which lets its children save
            preexec_fn=_end_with_parent,
        )


def _give_orders(run: Run, scale: Scale, place: Place) -> None:
    folder = place.run(run.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ORDERS, orders_of(run, scale))


def _known_jobs(out: Path) -> dict[str, dict[str, str]]:
    path = out / "jobs.json"
    known: dict[str, dict[str, str]] = read_json(path) if path.is_file() else {}
    return known


def _work(runs: Sequence[Run], scale: Scale, place: Place, outcome: Outcome) -> tuple[int, int]:
    """Estimated seconds of work in all, and those that are over.

    What failed or waits for a failed teacher counts as over; of what is being scored, as many cases as its log tells.
    """
    over = {*outcome.done, *outcome.failed, *outcome.skipped}
    total = finished = 0
    for run in runs:
        seconds = max(round(scale.seconds_of(run)), 1)
        total += seconds
        if run.name in over:
            finished += seconds
        else:
            folder = place.run(run.name)
            trained = scale.training_seconds_of(run, _last_step(folder / TERMS))
            scored = scale.overhead_s_of(run) * _share_scored(folder / _LOG)
            finished += min(int(trained + scored), seconds - 1)
    return total, finished


def _tail(path: Path) -> list[str]:
    """The last lines of a log that may be long; nothing where there is none."""
    if not path.is_file():
        return []
    with path.open("rb") as handle:
        handle.seek(max(path.stat().st_size - 4096, 0))
        return handle.read().decode(errors="replace").splitlines()


def _share_scored(log: Path) -> float:
    """How much of the scoring a run's log tells of."""
    told = [match for line in _tail(log) if (match := re.match(r"scoring: (\d+)/(\d+)", line))]
    return int(told[-1][1]) / max(int(told[-1][2]), 1) if told else 0.0


def _last_step(terms: Path) -> int:
    """The last step of a log."""
    if not terms.is_file():
        return 0
    for line in reversed(_tail(terms)):
        if line.startswith('{"step": ') and line.endswith("}"):
            return int(line.removeprefix('{"step": ').split(",")[0])
    lines = read_lines(terms)
    return int(lines[-1]["step"]) if lines else 0


def _start_what_can(
    waiting: list[Run], children: dict[str, _Child], outcome: Outcome, *, at_once: int, scale: Scale, place: Place
) -> None:
    for run in list(waiting):
        there = run.after is None or run.after in outcome.done
        if run.after in outcome.failed and is_trained(place.run(run.after)):
            there = True  # what failed was the scoring; its network teaches all the same
        if not there and (run.after in outcome.failed or run.after in outcome.skipped):
            waiting.remove(run)
            outcome.skipped.append(run.name)
        elif len(children) < at_once and there:
            waiting.remove(run)
            children[run.name] = _Child(run, scale, place, threads=max(cpu_count() // at_once, 1))


def _collect(children: dict[str, _Child], outcome: Outcome, say: Say) -> list[str]:
    """Sort the children that have ended; gives the names of those that ended well."""
    ended = []
    for name, child in list(children.items()):
        code = child.poll()
        if code is None:
            continue
        del children[name]
        if code == 0:
            outcome.done.append(name)
            ended.append(name)
            say(f"{name} done in {child.seconds / 60:.1f} min")
        else:
            outcome.failed[name] = child.last_line()
            say(f"{name} failed: {outcome.failed[name]}")
    return ended


def _let_save(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    for child in children:
        try:
            child.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            child.process.kill()


def _end_with_parent() -> None:
    """Let a child be told to save when the study is killed, so that a second call finds nobody at work (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
