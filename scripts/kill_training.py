"""Kill a training with SIGKILL at random moments, let it go on each time, and see whether anything is lost.

    python scripts/kill_training.py --kills 50 --seed 0

A reference is trained without interruption. The same run is then killed again and again: at random moments, and, by
intention, while a checkpoint, its hash or the network is being written. After every kill the folder has to hold a
whole checkpoint that is at most the unsaved steps old, a network that loads, and logs that read as the reference's.
In the end the weights and logs have to be those of the reference, bit for bit. Exits 1 if anything is not so.

Every tenth life is an interpreter of its own, as are the reference and the last life; the others are forked from this
process, which has imported everything, and call the same command line. SIGKILL does the same to both.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # read once, when torch is loaded

import argparse
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # this and the next are what the forked lives need, imported once
import tyro  # noqa: F401

import mindgap.api
import mindgap.cli.train
import mindgap.launch  # noqa: F401
from mindgap.cli import main as command_line
from mindgap.data.prepared import Placement, Preparation, PreparedCase
from mindgap.data.store import Store, open_store, write_case, write_index
from mindgap.errors import MindgapError
from mindgap.experiment import course_hash, from_plain
from mindgap.files import read_json
from mindgap.networks.weights import load_network
from mindgap.processor import detect_processor
from mindgap.runfiles import CHECKPOINTS, MANIFEST, SETTINGS, TERMS, THRESHOLDS, VALIDATIONS, read_lines
from mindgap.sequences import SEQUENCES
from mindgap.training.checkpoint import load_newest

STEPS_PER_KILL, SAVE_EVERY, VALIDATE_EVERY = 5, 2, 5
LONGEST_S = 2.0  # from the first step of a life to its end
PATIENCE_S = 120.0
AIMS = {"any moment": 0.4, "checkpoint": 0.3, "hash": 0.1, "network": 0.1, "start": 0.1}
SHAPE = (22, 20, 18)


@dataclass
class Life:
    """One process that trains, from its start to its end.

    Attributes:
        number: Counted from 1.
        aim: Where the kill was meant to fall.
        resumed: Finished steps of the checkpoint it goes on from.
        warnings: What it has to say about damaged checkpoints.
        fresh: Whether it is an interpreter of its own.
        log: What it printed.
        began_ns: When.
        unhashed: Checkpoints without a hash at its start.
        process: The process itself.
    """

    number: int
    aim: str
    resumed: int
    warnings: list[str]
    fresh: bool
    log: Path
    began_ns: int
    unhashed: set[str]
    process: Any
    moved: bool = False

    def ended(self) -> bool:
        """Whether it came to an end by itself."""
        code = self.process.poll() if self.fresh else self.process.exitcode
        return code is not None

    def end(self) -> int:
        """Wait for its end and return its exit code."""
        if self.fresh:
            return int(self.process.wait(PATIENCE_S * 5))
        self.process.join(PATIENCE_S)
        return int(self.process.exitcode)


@dataclass
class Experiment:
    """The folders of one experiment and what was found."""

    folder: Path
    steps: int
    problems: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run that is killed."""
        return self.folder / "killed"

    @property
    def reference(self) -> Path:
        """The run that is not."""
        return self.folder / "reference"

    def words(self, out: Path) -> list[str]:
        """The command line of a training."""
        flags = {
            "data": self.folder / "store", "out": out, "width": 4, "latent-channels": 2, "steps": self.steps,
            "batch": 2, "crop": 16, "foreground": 0.5, "save-every": SAVE_EVERY, "validate-every": VALIDATE_EVERY,
            "device": "cpu", "precision": "fp32",
        }  # fmt: skip
        return ["train", "teacher", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]

    def course(self) -> str:
        """The hash its checkpoints have to carry."""
        settings = from_plain(read_json(self.reference / SETTINGS))
        return course_hash(settings, data=open_store(settings.data).fingerprint)

    def begin(self, number: int, aim: str, *, fresh: bool) -> Life:
        """Start a life where the one before was killed."""
        state, warnings = load_newest(self.run / CHECKPOINTS, settings=self.course())
        log = self.folder / "logs" / f"life_{number:03d}.txt"
        log.parent.mkdir(exist_ok=True)
        words = [*self.words(self.run), *(["--resume"] if number > 1 else [])]
        process: Any
        began = time.time_ns()
        if fresh:
            with log.open("w") as handle:
                command = [sys.executable, "-m", "mindgap", *words]
                process = subprocess.Popen(command, stdout=handle, stderr=subprocess.STDOUT)
        else:
            process = multiprocessing.get_context("fork").Process(target=_live, args=(words, log))
            process.start()
        step = 0 if state is None else state.step
        return Life(number, aim, step, warnings, fresh, log, began, unhashed(self.run), process)


def _live(words: list[str], log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(1)  # torch renews its thread pool after a fork, which no two threads may begin together
    os._exit(command_line(words))


def make_store(folder: Path) -> None:
    """Five cases of noise with a tumour of three nested cubes."""
    entries = {}
    for seed, case_id in enumerate(("a", "b", "c", "d", "v")):
        rng = np.random.default_rng(seed)
        target = np.zeros(SHAPE, np.uint8)
        for half, class_ in ((6, 3), (4, 2), (2, 1)):
            target[tuple(slice(9 - half, 9 + half) for _ in range(3))] = class_
        image = rng.uniform(-0.6, 0.1, (len(SEQUENCES), *SHAPE)) + 0.15 * target
        box = tuple((0, n) for n in SHAPE)
        case = PreparedCase(
            case_id=case_id,
            image=image.clip(-0.99, 1).astype(np.float32),
            sequences=SEQUENCES,
            boxes=(box,) * len(SEQUENCES),  # type: ignore[arg-type]
            target=target,
            placement=Placement(SHAPE, (0, 1, 2), (False, False, False), SHAPE, box),  # type: ignore[arg-type]
            spacing_mm=(2.0, 2.0, 2.0),
        )
        entries[case_id] = write_case(folder, case, fingerprint=case_id)
    split = {"name": "hand", "sha256": "0" * 64, "train": ["a", "b", "c", "d"], "validation": ["v"], "test": []}
    write_index(Store(folder, Preparation(spacing_mm=2.0), entries, {}, split, "nowhere", "brats2017"))


def checkpoints(run: Path) -> list[Path]:
    """Files of checkpoints, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step_*.pt"))


def newest(run: Path) -> int:
    """Step of the newest checkpoint, whole or not."""
    files = checkpoints(run)
    return int(files[-1].stem.removeprefix("step_")) if files else 0


def unhashed(run: Path) -> set[str]:
    """Checkpoints without a hash."""
    return {path.name for path in checkpoints(run) if not path.with_suffix(".sha256").is_file()}


def halves(run: Path) -> list[str]:
    """Temporary files, such as ".123.part.checkpoint/step_00000002.pt" without the folder."""
    return [path.name for place in (run, run / CHECKPOINTS) if place.is_dir() for path in place.glob(".*.part.*")]


def wait(life: Life, condition: Callable[[], bool], pause_s: float = 0.0002) -> bool:
    """Wait until a condition holds; False if the life came to its end before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if life.ended() or time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def moved(run: Path, life: Life) -> bool:
    """Whether a life has finished a step: the log is younger than the life and knows a step it had to make."""
    log = run / TERMS
    if not log.is_file() or log.stat().st_mtime_ns < life.began_ns:
        return False
    lines = read_lines(log)
    return bool(lines) and lines[-1]["step"] > life.resumed


def aim(run: Path, life: Life, rng: random.Random, longest_s: float, last_step: int) -> None:
    """Wait for the moment of the kill: where it is aimed at, or when the life comes too near the end of the run."""
    if life.aim == "start":
        time.sleep(rng.uniform(0, 4.0 if life.fresh else 0.8))
        return
    if not wait(life, lambda: moved(run, life), 0.002):
        return
    moment = time.monotonic() + rng.uniform(0, longest_s)
    targets: dict[str, Callable[[], bool]] = {
        "any moment": lambda: True,
        "checkpoint": lambda: any(name.endswith(".pt") for name in halves(run)),
        "hash": lambda: bool(unhashed(run) - life.unhashed),
        "network": lambda: any(".model." in name for name in halves(run)),
    }
    for condition in (lambda: time.monotonic() >= moment, targets[life.aim]):
        wait(life, lambda reached=condition: reached() or newest(run) >= last_step)  # type: ignore[misc]
    if life.aim in ("checkpoint", "network"):
        time.sleep(rng.uniform(0, 0.01))


def classify(run: Path, life: Life) -> str:
    """Where a kill fell, by what stands on the disk."""
    own = [name for name in halves(run) if name.startswith(f".{life.process.pid}.")]
    files = [path.name for path in checkpoints(run)]
    lost_hash = unhashed(run) - life.unhashed
    if any(name.endswith(".pt") for name in own):
        return "while a checkpoint was written"
    if any(name.endswith(".sha256") for name in own) or (files and files[-1] in lost_hash):
        return "between a checkpoint and its hash"
    if lost_hash or (life.moved and len(set(files) - unhashed(run)) > 2):
        return "while older checkpoints were dropped"
    card = read_json(run / "model.json") if (run / "model.json").is_file() else {}
    if any(".model." in name for name in own) or (life.moved and "before" in card):
        return "while the network was replaced"
    if own:
        return "while another file was written"
    return "in a step or a validation" if life.moved else "before the first step"


def check(experiment: Experiment, life: Life) -> tuple[int, int, list[str]]:
    """What a kill left: finished steps of the newest whole checkpoint, logged steps, and what is wrong."""
    run, problems = experiment.run, []
    state, warnings = load_newest(run / CHECKPOINTS, settings=experiment.course())
    saved = 0 if state is None else state.step
    lines = read_lines(run / TERMS)
    if lines != read_lines(experiment.reference / TERMS)[: len(lines)]:
        problems.append("terms.jsonl differs from the reference")
    scores = read_lines(run / VALIDATIONS)
    if scores != read_lines(experiment.reference / VALIDATIONS)[: len(scores)]:
        problems.append("validations.jsonl differs from the reference")
    owed = max(len(lines) - 1, 0) // SAVE_EVERY * SAVE_EVERY  # a step is logged, then saved
    if not max(owed, life.resumed) <= saved <= len(lines):
        problems.append(f"checkpoint {saved} after {len(lines)} logged steps, resumed at {life.resumed}")
    problems += [line for line in warnings if "its hash is missing" not in line]
    try:
        if (run / "model.json").is_file():
            load_network(run)
        elif saved >= VALIDATE_EVERY:
            problems.append("no network")
        for name in (SETTINGS, MANIFEST, THRESHOLDS):
            if (run / name).is_file():
                read_json(run / name)
    except MindgapError as error:
        problems.append(str(error))
    problems += _unsaid(life)
    foreign = [name for name in halves(run) if not name.startswith(f".{life.process.pid}.")]
    if life.moved and foreign:
        problems.append(f"leftovers {foreign}")
    return saved, len(lines), problems


def _unsaid(life: Life) -> Iterator[str]:
    text = life.log.read_text()
    if life.moved and life.resumed and f"resumed at step {life.resumed} of" not in text:
        yield f"it did not say that it resumed at {life.resumed}"
    if life.moved:
        yield from (f"it did not say: {line}" for line in life.warnings if line not in text)
    if "Traceback" in text:
        yield f"a traceback in {life.log}"


def compare(experiment: Experiment) -> list[str]:
    """How the end differs from that of the reference."""
    one, other = experiment.reference, experiment.run
    names = ("model.safetensors", "model.json", THRESHOLDS, TERMS, VALIDATIONS)
    problems = [f"{name} differs" for name in names if (one / name).read_bytes() != (other / name).read_bytes()]
    if [line["step"] for line in read_lines(other / TERMS)] != list(range(1, experiment.steps + 1)):
        problems.append("terms.jsonl does not hold every step once")
    states = [load_newest(run / CHECKPOINTS, settings=experiment.course())[0] for run in (one, other)]
    assert all(state is not None for state in states)
    first, second = (_leaves(vars(state)) for state in states)
    problems += [f"checkpoint: {name}" for name in first if not _same(first[name], second.get(name))]
    problems += [f"leftover {name}" for name in halves(other)]
    if sorted(path.name for path in (one / CHECKPOINTS).iterdir()) != sorted(
        path.name for path in (other / CHECKPOINTS).iterdir()
    ):
        problems.append("other checkpoints")
    if read_json(other / MANIFEST)["finished"] is not True:
        problems.append("manifest.json does not say that it finished")
    return problems


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _leaves(item, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for key, item in enumerate(value) for k, v in _leaves(item, f"{name}/{key}").items()}
    return {name: value}


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def train_reference(experiment: Experiment) -> float:
    """Train without interruption, in a process of its own; return seconds per step."""
    command = [sys.executable, "-m", "mindgap", *experiment.words(experiment.reference)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - began) / experiment.steps


def kill(experiment: Experiment, kills: int, rng: random.Random, step_s: float) -> Counter[str]:
    """Kill the run so many times and check it after each; print a line about each kill."""
    aims = [name for name, share in AIMS.items() for _ in range(round(share * kills))]
    aims = (aims + ["any moment"] * kills)[:kills]
    rng.shuffle(aims)
    places: Counter[str] = Counter()
    saved = 0
    print(f"{'kill':>4}  {'aimed at':<11} {'fell':<37} {'logged':>6} {'saved':>6}")
    for number, name in enumerate(aims, start=1):
        life = experiment.begin(number, name, fresh=number % 10 == 0)
        left = kills - number + 1
        pace = (experiment.steps - saved) / left
        longest = min(LONGEST_S, 2 * pace * step_s)
        aim(experiment.run, life, rng, longest, min(life.resumed + 30, experiment.steps - 2 * SAVE_EVERY * left))
        if life.ended():
            raise SystemExit(f"life {number} ended by itself:\n{life.log.read_text()}")
        life.process.kill()
        life.end()
        life.moved = moved(experiment.run, life)
        place = classify(experiment.run, life)
        saved, logged, problems = check(experiment, life)
        places[place] += 1
        experiment.problems += [f"kill {number}: {line}" for line in problems]
        print(f"{number:>4}  {name:<11} {place:<37} {logged:>6} {saved:>6}  {'; '.join(problems)}", flush=True)
    return places


def run(folder: Path, kills: int, seed: int) -> int:
    """The whole experiment; returns the exit code."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    experiment = Experiment(folder, STEPS_PER_KILL * kills)
    make_store(folder / "store")
    step_s = train_reference(experiment)
    size = checkpoints(experiment.reference)[-1].stat().st_size / 2**20
    print(f"{detect_processor('cpu').kind}; {experiment.steps} steps, {1000 * step_s:.0f} ms each with checkpoints of")
    print(f"{size:.1f} MiB every {SAVE_EVERY} steps and a validation every {VALIDATE_EVERY}\n")
    places = kill(experiment, kills, random.Random(seed), step_s)
    last = experiment.begin(kills + 1, "none", fresh=True)
    if last.end() != 0:
        experiment.problems.append(f"the last life failed:\n{last.log.read_text()}")
    else:
        experiment.problems += [f"end: {line}" for line in compare(experiment)]
    print()
    for place, count in places.most_common():
        print(f"{place:<37} {count:>4}")
    print(f"{'kills':<37} {sum(places.values()):>4}\n")
    print("\n".join(experiment.problems) or "nothing lost: weights, checkpoint and logs are those of the reference")
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if experiment.problems else 0


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, which is kept")
    words = parser.parse_args()
    if words.keep is not None:
        words.keep.mkdir(parents=True)
        return run(words.keep, words.kills, words.seed)
    with tempfile.TemporaryDirectory(prefix="kill_training_") as folder:
        return run(Path(folder), words.kills, words.seed)


if __name__ == "__main__":
    raise SystemExit(main())
