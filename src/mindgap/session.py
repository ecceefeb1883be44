"""One training run: the living parts made from settings and a store, and what happens between steps."""

from __future__ import annotations

import importlib.metadata
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from mindgap.data.store import ResidentCases, Store, open_store
from mindgap.errors import MindgapError, SettingError
from mindgap.evaluation.threshold import fit_thresholds, thresholds_to_plain
from mindgap.experiment import Experiment, build_method, course_hash, method_name, to_plain
from mindgap.files import write_json
from mindgap.methods.base import AbstractMethod
from mindgap.networks import build_network
from mindgap.networks.vnet import STRIDE
from mindgap.networks.weights import ModelCard, read_card, save_network
from mindgap.processor import Precision, choose_precision, detect_processor, peak_memory_gib
from mindgap.runfiles import CHECKPOINTS, SETTINGS, THRESHOLDS
from mindgap.training.checkpoint import load_newest, refuse_existing, save_checkpoint, seed_everything
from mindgap.training.folder import RunFolder
from mindgap.training.loop import Training
from mindgap.training.validation import validate

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what was just done)."""


def silent(done: int, total: int, what: str) -> None:
    """Report nothing."""


class Interrupted(MindgapError):
    """A run was asked to stop, and saved what it had."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        folder: The run folder, a model folder for prediction too.
        best: Mean validation Dice of the kept network (NaN without validation cases).
        best_step: Its step.
        parameters: Trained parameters of the segmenter.
        seconds: Time spent in this call.
    """

    folder: Path
    best: float
    best_step: int
    parameters: int
    seconds: float


def train(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> TrainingResult:
    """Train a network; the run folder can be used for prediction as soon as it holds model.json.

    Args:
        experiment: Settings.
        out: Run folder.
        resume: Go on from the newest whole checkpoint in ``out``.
        progress: Called after each step.
        say: Takes lines worth reading (counts, validations, warnings).

    Raises:
        SettingError: Settings and data do not go together.
        Interrupted: SIGTERM or Ctrl-C came; everything is saved.
    """
    began = time.perf_counter()
    session = open_session(experiment, out, resume=resume, say=say)
    training = session.training
    with RunFolder(out, resume_at=training.finished) as folder, _stop_request() as stop:
        write_json(out / SETTINGS, to_plain(experiment))
        folder.update_manifest(finished=False, **session.facts())
        session.write_thresholds()
        for step in training.run():
            if step.terms:
                folder.log_terms({"step": step.number, "lr": step.learning_rate, **step.terms})
            progress(step.number, training.schedule.steps, f"loss {step.terms.get('loss', float('nan')):.3f}")
            last = step.number == training.schedule.steps
            if last or step.number % experiment.validate_every == 0:
                session.validate(folder)
            if last or stop.is_set() or step.number % experiment.save_every == 0:
                session.save()
            if stop.is_set() and not last:
                raise Interrupted(f"stopped at step {step.number}; everything is saved. Go on with --resume.")
        session.finish()
        seconds = time.perf_counter() - began
        best = {"score": training.best["score"] if len(session.validation) else None, "step": training.best["step"]}
        folder.update_manifest(finished=True, seconds_of_last_call=round(seconds, 1), best=best)
    return TrainingResult(
        folder=out,
        best=float(training.best.get("score", float("nan"))),
        best_step=int(training.best.get("step", training.schedule.steps)),
        parameters=sum(p.numel() for p in training.segmenter.parameters()),
        seconds=seconds,
    )


def open_session(
    experiment: Experiment, out: Path, *, resume: bool = False, say: Callable[[str], None] = lambda line: None
) -> Session:
    """Build everything a training needs, at the state it has to go on from; nothing is written.

    Raises:
        SettingError: Settings, data, teacher or checkpoint do not go together.
        MindgapError: A run lies in ``out`` already, and ``resume`` is False.
    """
    if not resume:
        refuse_existing(out)
    store = open_store(experiment.data)
    teacher = experiment.method.teacher_path()
    course = course_hash(experiment, data=store.fingerprint, teacher=None if teacher is None else read_card(teacher)[1])
    state, warnings = load_newest(out / CHECKPOINTS, settings=course)
    for warning in warnings:
        say(warning)
    seed_everything(experiment.seed)
    session = Session(experiment, store, build_method(experiment, store), out, say, course=course)
    if state is not None:
        session.training.load(state)
        say(f"resumed at step {session.training.finished} of {session.training.schedule.steps}")
    return session


class Session:
    """One training call: the living parts, and what happens between steps."""

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        method: AbstractMethod,
        out: Path,
        say: Callable[[str], None],
        *,
        course: str,
    ) -> None:
        self.experiment, self.store, self.method, self.out, self.say = experiment, store, method, out, say
        self.processor = detect_processor(experiment.device)
        self.precision = choose_precision(experiment.precision, self.processor)
        accelerator = make_accelerator(self.processor.device, self.precision)
        if accelerator.num_processes > 1:
            raise SettingError(
                f"training was started as {accelerator.num_processes} processes, and one is all it can use: start it "
                "without torchrun or accelerate launch."
            )
        chosen = {part: self._usable(part) for part in ("train", "validation")}
        if not chosen["train"]:
            raise SettingError(
                f"no training case in {store.folder} has the sequences {[str(s) for s in method.subset]}: choose "
                "another --subset or prepare other data."
            )
        self.cases = ResidentCases(store, chosen["train"], subset=method.subset, device=accelerator.device)
        self.validation = ResidentCases(store, chosen["validation"], subset=method.subset, device=accelerator.device)
        self.training = Training(
            method,
            self.cases,
            experiment.schedule,
            experiment.optimisation,
            experiment.augmentation,
            accelerator=accelerator,
            seed=experiment.seed,
            settings=course,
        )
        taught = method.teacher_cases(self.cases.available, self.cases.sequences)
        if method.teacher is not None:
            say(f"the teacher speaks on {taught} of {len(self.cases)} training cases; the others teach by their labels")
        say(
            f"{len(self.cases)} training and {len(self.validation)} validation cases "
            f"({self.cases.bytes / 2**20:.0f} MiB resident), {self.precision} on {self.processor.kind}"
        )

    def facts(self) -> dict[str, Any]:
        """Versions, machine and inputs, for the manifest."""
        taught = self.method.teacher_cases(self.cases.available, self.cases.sequences)
        return {
            "versions": {
                "mindgap": importlib.metadata.version("mindgap"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "accelerate": accelerate.__version__,
                "numpy": np.__version__,
            },
            "processor": asdict(self.processor) | {"kind": self.processor.kind},
            "precision": self.precision,
            "subset": [str(sequence) for sequence in self.method.subset],
            "peak_memory_gib": round(peak_memory_gib(), 2),
            "command": sys.argv,
            "source": self.store.source,
            "split": {key: self.store.split[key] for key in ("name", "sha256")},
            "cases": {
                "train": [entry.case_id for entry in self.cases.entries],
                "validation": [entry.case_id for entry in self.validation.entries],
                "test": self.store.part("test"),
                "taught": taught,
            },
            "citations": [*self.method.citations, "brats"],
        }

    def write_thresholds(self) -> None:
        """Fit the threshold baseline on the training cases and keep it beside the network."""
        if self.training.finished and (self.out / THRESHOLDS).is_file():
            return

        def codes() -> Iterator[tuple[Any, Any]]:
            for entry in self.cases.entries:
                array = self.store.read(entry.case_id)
                yield {s: array[row] for row, s in enumerate(entry.sequences)}, array[-1]

        write_json(self.out / THRESHOLDS, thresholds_to_plain(fit_thresholds(codes())))

    def validate(self, folder: RunFolder) -> None:
        """Score the network that would predict now, and keep it if it is the best so far (ties: the later)."""
        training = self.training
        candidate = build_network(self.method.architecture, self.method.arguments)
        candidate.load_state_dict(training.predicting_state())
        scores: dict[str, float] = {}
        device = training.accelerator.device
        candidate.to(device).eval()
        if len(self.validation):
            scores = validate(
                candidate,
                self.validation,
                self.method.subset,
                window=self.experiment.schedule.crop,
                device=device,
                bf16=self.precision == "bf16",
            )
            text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self.say(f"step {training.finished}: validation Dice {text}")
        batches = (self.validation.whole(index, multiple=STRIDE) for index in range(len(self.validation)))
        folder.log_validation({"step": training.finished, **scores, **self.method.diagnostics(candidate, batches)})
        if not scores or scores["mean"] >= training.best.get("score", float("-inf")):
            training.best = {"score": scores.get("mean", float("nan")), "step": training.finished}
            self._write_model(candidate)

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.out / CHECKPOINTS, self.training.state())

    def finish(self) -> None:
        """Say how it ended."""
        best = self.training.best
        self.say(f"kept the network of step {best['step']} (mean validation Dice {best['score']:.3f})")

    def _write_model(self, network: nn.Module) -> None:

        card = ModelCard(
            architecture=self.method.architecture,
            arguments=self.method.arguments,
            sequences=self.method.subset,
            preparation=asdict(self.store.preparation),
            crop=self.experiment.schedule.crop,
            method=method_name(self.experiment.method),
        )
        save_network(self.out, network, card)

    def _usable(self, part: str) -> list[str]:

        case_ids = self.store.part(part)
        sequences = self.store.sequences
        if not case_ids:
            return []
        available = torch.tensor([[s in self.store.cases[c].sequences for s in sequences] for c in case_ids])
        keep = self.method.usable(available, sequences).tolist()
        if not all(keep):
            self.say(f"{keep.count(False)} {part} cases lack a sequence this method needs and are left out")
        return [case_id for case_id, kept in zip(case_ids, keep, strict=True) if kept]


def make_accelerator(device: str, precision: Precision) -> Accelerator:
    """The accelerator of one run; an earlier run in this process may have used another device or precision."""
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=device == "cpu")


@contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that SIGTERM or Ctrl-C sets (in the main thread; elsewhere nothing is installed).

    A second Ctrl-C ends at once, without saving.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}

    def ask(kind: int, _: FrameType | None) -> None:
        event.set()
        signal.signal(kind, before[signal.Signals(kind)])

    for kind in before:
        signal.signal(kind, ask)
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
