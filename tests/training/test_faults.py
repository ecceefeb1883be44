"""Real kills and a real full disk; fifty random kills are in scripts/kill_training.py, their result in docs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mindgap.api import Interrupted, train
from mindgap.errors import MindgapError
from mindgap.experiment import to_plain
from mindgap.files import remove_leftovers
from mindgap.networks.build import build_network
from mindgap.networks.card import MODEL_CARD, ModelCard
from mindgap.networks.weights import load_network, save_network
from mindgap.runfiles import LOCK, read_lines
from mindgap.sequences import parse_subset
from mindgap.training import checkpoint
from mindgap.training.checkpoint import TrainingState, load_newest, save_checkpoint
from mindgap.training.folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="lives are forked")

# One process that imports everything and forks a life for each experiment; prints how each ended and what it said.
LIVES = """
import json, os, resource, signal, sys
from pathlib import Path
import torch, torch._dynamo
from mindgap.errors import MindgapError
from mindgap.experiment import from_plain
from mindgap.networks import weights
from mindgap.session import train
from mindgap.training import checkpoint

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_in_half_a_checkpoint():
    whole = Path.write_bytes
    def write(self, data):
        if self.name.endswith("step_00000006.pt"):
            whole(self, bytes(data)[: len(data) // 2])
            die()
        return whole(self, data)
    Path.write_bytes = write

def die_before_the_hash():
    whole = checkpoint.write_text
    checkpoint.write_text = lambda path, text: die() if "00000006" in path.name else whole(path, text)

def die_between_network_and_card():
    whole = weights.write_json
    seen = []
    def write(path, value):
        seen.append("before" in value)
        if seen[-2:] == [True, False]:
            die()
        whole(path, value)
    weights.write_json = write

def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # a network fits, a checkpoint does not

def live(settings, out, fault, resume):
    torch.set_num_threads(1)  # renews the thread pool, which two threads must not do together
    globals()[fault]()
    try:
        train(from_plain(settings), Path(out), resume=resume)
    except MindgapError as error:
        print(error, flush=True)
        os._exit(2)
    os._exit(0)

ends = []
for life in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        live(**life)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""
KILLS = {
    "die_in_half_a_checkpoint": ("resumed at step 3 of 8", 6, []),
    "die_before_the_hash": (
        "resumed at step 3 of 8",
        6,
        ["step_00000006.pt is damaged (its hash is missing) and was passed over."],
    ),
    "die_between_network_and_card": ("resumed at step 3 of 8", 4, []),
}
"""Where a life dies: what the next one says, how many steps it had logged, what else is said."""


@pytest.fixture(scope="module")
def settings(make_experiment):
    return make_experiment(validate_every=2)


@pytest.fixture(scope="module")
def reference(settings, tmp_path_factory):
    """The run that nothing happens to."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(settings, folder)
    return folder


@pytest.fixture(scope="module")
def lives(settings, tmp_path_factory):
    """A run for each kill, and one whose disk is full at step 6; and what was said about that."""
    folder = tmp_path_factory.mktemp("lives")

    def stop(done, total, what):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(settings, folder / "limit_files", progress=stop)
    faults = [(name, False) for name in KILLS] + [("limit_files", True)]
    plain = to_plain(settings)
    words = [{"settings": plain, "out": str(folder / n), "fault": n, "resume": resume} for n, resume in faults]
    done = subprocess.run(
        [sys.executable, "-c", LIVES, json.dumps(words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    *said, ends = done.stdout.splitlines()
    assert json.loads(ends) == [-signal.SIGKILL] * len(KILLS) + [2], done.stdout + done.stderr
    return folder, said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def halves(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*")]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", MODEL_CARD, "thresholds.json", "terms.jsonl", "validations.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert [line["step"] for line in read_lines(other / "terms.jsonl")] == list(range(1, 9))
    assert names(one / "checkpoint") == names(other / "checkpoint")
    assert names(one) == names(other)
    states = [torch.load(run / "checkpoint" / "step_00000008.pt", weights_only=True) for run in (one, other)]
    first, second = (state["networks"]["segmenter"] for state in states)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("kill", KILLS)
def test_killed_in_the_midst_of_writing_and_resumed_is_uninterrupted(kill, lives, reference, settings):
    run, (resumed, logged, warnings), lines = lives[0] / kill, KILLS[kill], []
    assert [line["step"] for line in read_lines(run / "terms.jsonl")] == list(range(1, logged + 1))
    load_network(run)
    left = [name for name in halves(run) if name != LOCK]  # nobody holds the lock of a killed training
    assert [name.split(".part.")[1] for name in left] == (["step_00000006.pt"] if "half" in kill else [])
    train(settings, run, resume=True, say=lines.append)
    assert lines[: len(warnings)] == warnings
    assert resumed in lines
    assert halves(run) == []
    assert_same_run(reference, run)


def test_a_full_disk_ends_with_a_line_and_costs_nothing_finished(lives, reference, settings):
    folder, (line,) = lives
    run, lines = folder / "limit_files", []
    path = run / "checkpoint" / "step_00000006.pt"
    assert line.startswith(f"{path} could not be written: File too large.")
    assert line.endswith("Make room there and run it again (a training or a cohort goes on with --resume).")
    assert names(run / "checkpoint") == [f"step_0000000{n}.{end}" for n in (3, 5) for end in ("pt", "sha256")]
    train(settings, run, resume=True, say=lines.append)
    assert "resumed at step 5 of 8" in lines
    assert not any("damaged" in line for line in lines)
    assert_same_run(reference, run)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_does_not_fit_is_named(tmp_path):
    (tmp_path / "terms.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(MindgapError, match=r"terms\.jsonl could not be written: No space left.*Make room"),
        RunFolder(tmp_path, resume_at=0) as folder,
    ):
        folder.log_terms({"step": 1})


def test_leftovers_of_the_dead_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f".{os.getppid()}.part.a.pt", f".{os.getppid()}.0123abcd.part.a.pt", ".hidden", "12.part.a", ".x.part.a"]
    removed = [
        f".{dead.pid}.part.a.pt",
        f".{dead.pid}.0123abcd.part.a.pt",
        f".{os.getpid()}.part.model.json",
        f".{10**12}.part.a",
    ]
    for name in kept + removed:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(kept)
    remove_leftovers(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["no text", "unreadable"])
def test_a_hash_of_no_text_or_a_bad_sector_is_passed_over(tmp_path, monkeypatch, damage):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, TrainingState(step, {}, {}, settings="one"))
    if damage == "no text":
        path.with_suffix(".sha256").write_bytes(b"\xff" * 64)
    else:
        whole = checkpoint.sha256_of

        def read(file):
            if file == path:
                raise OSError(5, "Input/output error")
            return whole(file)

        monkeypatch.setattr(checkpoint, "sha256_of", read)
    state, (line,) = load_newest(tmp_path, settings="one")
    assert state.step == 1
    problem = "its hash does not match" if damage == "no text" else "it cannot be read: Input/output error"
    assert line == f"step_00000002.pt is damaged ({problem}) and was passed over."


def test_a_checkpoint_spoilt_on_its_way_to_the_disk_is_noticed(tmp_path, monkeypatch):
    whole = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: whole(self, bytes(data)[:-1] + b"x"))
    save_checkpoint(tmp_path, TrainingState(1, {}, {}, settings="one"))
    assert load_newest(tmp_path, settings="one")[0] is None


@pytest.mark.parametrize("moment", range(4))
def test_a_network_is_whole_at_every_moment_of_its_replacement(tmp_path, monkeypatch, moment):
    """Crash at each rename in turn; the old network and its card have to be there, or the new ones."""
    networks, cards = [], []
    for width, subset in ((1, "T1+FLAIR"), (2, "T1+T2")):
        arguments = {"sequences": 2, "latent_channels": 2, "width": width, "weighted": True}
        networks.append(build_network("aligned", arguments))
        cards.append(ModelCard("aligned", arguments, parse_subset(subset), {}, crop=16, method="teacher"))
    save_network(tmp_path, networks[0], cards[0])
    whole, renamed = Path.replace, []

    def crash(self, target):
        if len(renamed) == moment:
            raise KeyboardInterrupt
        renamed.append(target.name)
        return whole(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        if moment < 3:
            with pytest.raises(KeyboardInterrupt):
                save_network(tmp_path, networks[1], cards[1])
        else:
            save_network(tmp_path, networks[1], cards[1])
    assert renamed == [MODEL_CARD, "model.safetensors", MODEL_CARD][:moment]
    assert load_network(tmp_path).card == cards[moment > 1]
    save_network(tmp_path, networks[0], cards[0])  # and it can be replaced again
    assert load_network(tmp_path).card == cards[0]
    assert "before" not in json.loads((tmp_path / MODEL_CARD).read_text())


def test_a_damaged_card_does_not_keep_a_network_from_being_written(tmp_path):
    arguments = {"sequences": 2, "latent_channels": 2, "width": 1, "weighted": True}
    card = ModelCard("aligned", arguments, parse_subset("T1+T2"), {}, crop=16, method="teacher")
    (tmp_path / MODEL_CARD).write_bytes(b"{half")
    save_network(tmp_path, build_network("aligned", arguments), card)
    assert load_network(tmp_path).card == card
