"""On a real SLURM of one node (scripts/slurm-node.sh); skipped where none answers."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap.data.codes import decode
from mindgap.data.prepared import Placement, Preparation, PreparedCase
from mindgap.data.store import Store, write_case, write_index
from mindgap.files import read_json
from mindgap.launch import Job, Resources, launch, states
from mindgap.runfiles import read_lines
from mindgap.sequences import SEQUENCES

STEPS = 60
SMALL = Resources(time_minutes=2, cpus=1, memory_gib=2, grace_seconds=30)


def answers() -> bool:
    """Whether a cluster is there."""
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(not answers(), reason='no SLURM answers: eval "$(scripts/slurm-node.sh start DIR)"'),
    pytest.mark.filterwarnings("ignore::UserWarning:submitit"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two cases to train from."""
    folder, shape = tmp_path_factory.mktemp("slurm") / "store", (20, 20, 20)
    entries = {}
    for number, name in enumerate(("P01", "P02")):
        codes = np.random.default_rng(number).integers(1, 256, (4, *shape)).astype(np.uint8)
        target = np.zeros(shape, np.uint8)
        target[5:15, 5:15, 5:15] = 3
        box = tuple((0, n) for n in shape)
        placement = Placement(shape, (0, 1, 2), (False, False, False), shape, box)
        image = decode(torch.from_numpy(codes)).numpy()
        case = PreparedCase(name, image, SEQUENCES, (box,) * 4, target, placement, (2.0, 2.0, 2.0))
        entries[name] = write_case(folder, case, fingerprint="none")
    split = {"name": "lists", "sha256": "", "train": ["P01", "P02"], "validation": [], "test": [], "unassigned": []}
    write_index(Store(folder, Preparation(), entries, {}, split, "nowhere", "brats2017"))
    return folder


def training(store, out, *, steps=STEPS, method="teacher"):
    numbers = ("--width", "2", "--latent-channels", "2", "--batch", "2", "--crop", "16", "--save-every", "5")
    place = ("--data", str(store), "--out", str(out), "--device", "cpu", "--precision", "fp32", "--resume")
    return ("train", method, *place, *numbers, "--steps", str(steps))


def wait_for(question, seconds=300, every=0.3):
    """Wait until something is so; the cluster looks at its queue every two seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = question()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"not so after {seconds} s: {question}")


def steps_of(out):
    path = out / "terms.jsonl"
    return [line["step"] for line in read_lines(path)] if path.is_file() else []


def ended(folder, *names):
    found = states(folder)
    return found if all(found[name] in ("done", "failed", "lost") for name in names) else None


def logs(jobs):
    return "\n".join(Path(p).read_text() for job in jobs for p in (job.stdout, job.stderr) if Path(p).is_file())


def test_an_array_runs_and_what_waits_for_it_comes_after(store, tmp_path):
    jobs = [Job(f"run{k}", (training(store, tmp_path / f"run{k}", steps=5), ("doctor",))) for k in range(2)]
    first = launch(jobs, tmp_path, SMALL, at_once=2)
    assert first[0].job_id.split("_")[0] == first[1].job_id.split("_")[0]  # one array
    student = training(store, tmp_path / "after", steps=3, method="unimodal")
    second = launch([Job("after", (student,))], tmp_path, SMALL, after=[job.job_id for job in first])
    bad = launch([Job("bad", (("train", "nobody"),))], tmp_path, SMALL)
    found = wait_for(lambda: ended(tmp_path, "run0", "run1", "after", "bad"))
    assert found == {"run0": "done", "run1": "done", "after": "done", "bad": "failed"}, logs([*first, *second, *bad])
    for name, steps in (("run0", 5), ("run1", 5), ("after", 3)):
        assert steps_of(tmp_path / name) == list(range(1, steps + 1))
    finished = [(tmp_path / name / "manifest.json").stat().st_mtime for name in ("run0", "run1")]
    assert (tmp_path / "after" / "experiment.json").stat().st_mtime >= max(finished)
    assert "there is no method 'nobody'" in logs(bad)


@pytest.mark.parametrize("way", ["signal", "requeue"])
def test_a_job_put_back_into_the_queue_goes_on_from_its_checkpoint(store, tmp_path, way):
    """By submitit's signal before the time limit, and by the cluster itself (preemption)."""
    out = tmp_path / "run"
    steps = 1500
    words = [*training(store, out, steps=steps), "--save-every", "1000", "--validate-every", "1000"]
    (job,) = launch([Job("run", (tuple(words),))], tmp_path, SMALL)
    wait_for(lambda: len(steps_of(out)) > 20)
    assert not list((out / "checkpoint").glob("*"))  # so the only one to go on from is that of the signal
    if way == "signal":
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    else:
        subprocess.run(["scontrol", "requeue", job.job_id], check=True)
    wait_for(lambda: "resumed at step" in logs([job]))
    found = wait_for(lambda: ended(tmp_path, "run"))
    assert found == {"run": "done"}, logs([job])
    assert steps_of(out) == list(range(1, steps + 1))
    assert read_json(out / "manifest.json")["finished"] is True


def test_mindgap_train_slurm_queues_itself_with_two_processes(store, tmp_path):
    out = tmp_path / "run"
    words = [word for word in training(store, out, steps=4) if word != "--resume"]
    resources = ["--slurm", "--processes", "2", "--cpus", "2", "--memory-gib", "2", "--time-minutes", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "mindgap", *words, "--crop", "32", *resources],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is queued" in done.stdout
    assert "squeue --job" in done.stdout
    found = wait_for(lambda: ended(out / "jobs", "run"))
    (job,) = read_json(out / "jobs" / "jobs.json").values()
    assert found == {"run": "done"}, Path(job["stderr"]).read_text()
    assert read_json(out / "manifest.json")["processes"] == 2
    assert steps_of(out) == [1, 2, 3, 4]


def test_bad_settings_are_refused_before_anything_is_queued(store, tmp_path):
    words = [*training(store, tmp_path / "run"), "--k", "T2", "--anchor", "k", "--subset", "T1+FLAIR", "--slurm"]
    done = subprocess.run([sys.executable, "-m", "mindgap", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "choose k among them" in done.stderr
    assert not (tmp_path / "run" / "jobs").exists()
