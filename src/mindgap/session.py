"""One training run: the living parts made from settings and a store, and what happens between steps."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn

from mindgap.data.codes import encode
from mindgap.data.resident import ResidentCases
from mindgap.data.store import Store, open_store
from mindgap.errors import Interrupted, MindgapError
from mindgap.evaluation.latents import gap_metrics
from mindgap.evaluation.threshold import fit_thresholds, thresholds_to_plain
from mindgap.experiment import (
    Experiment,
    build_method,
    citations_before,
    course_hash,
    describe_teacher,
    history_before,
    method_name,
    start_folder,
    to_plain,
)
from mindgap.files import write_json
from mindgap.methods.base import AbstractMethod
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard, head_of, read_card
from mindgap.networks.weights import save_network
from mindgap.processor import choose_precision, detect_processor, peak_memory_gib
from mindgap.progress import Progress, Say, mute, silent
from mindgap.runfiles import CHECKPOINTS, SETTINGS, THRESHOLDS
from mindgap.shapes import STRIDE
from mindgap.training.cases import choose_cases
from mindgap.training.checkpoint import load_newest, refuse_existing, save_checkpoint, seed_everything
from mindgap.training.folder import RunFolder
from mindgap.training.loop import Training
from mindgap.training.optimisation import blend_states
from mindgap.training.processes import agree_to_stop, leave, make_accelerator
from mindgap.training.stopping import stop_request
from mindgap.training.turn import alone_in
from mindgap.training.validation import mean_scores, validate


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
    say: Say = mute,
) -> TrainingResult:
    """Train a network; the run folder can be used for prediction as soon as it holds model.json.

    Args:
        experiment: Settings.
        out: Run folder.
        resume: Go on from the newest whole checkpoint in ``out``.
        progress: Called after each step.
        say: Takes lines worth reading (counts, validations, warnings).

    Raises:
        SettingError: Settings and data do not go together, or another training is at work in ``out``.
        Interrupted: SIGTERM, SIGHUP or Ctrl-C came; everything is saved.
    """
    with alone_in(out, say=say):
        return _train(experiment, out, resume=resume, progress=progress, say=say)


def _train(experiment: Experiment, out: Path, *, resume: bool, progress: Progress, say: Say) -> TrainingResult:
    began = time.perf_counter()
    session = open_session(experiment, out, resume=resume, say=say)
    training, writes = session.training, session.accelerator.is_main_process
    last_step = training.schedule.steps
    with _folder(out, training.finished, writes=writes) as folder, stop_request() as stop:
        if folder is not None:
            write_json(out / SETTINGS, to_plain(experiment))
            spent = folder.manifest.get("seconds", 0.0) if training.finished else 0.0
            folder.update_manifest(finished=False, **session.facts())
            session.write_thresholds()
        loss: float | None = None  # as it was logged last
        for step in training.run():
            if folder is not None:
                if step.terms:
                    folder.log_terms({"step": step.number, "lr": step.learning_rate, **step.terms})
                loss = step.terms.get("loss", step.terms.get("segmenter/loss", loss))
                progress(step.number, last_step, "" if loss is None else f"loss {loss:.3f}")
            last = step.number == last_step
            if last or step.number % experiment.validate_every == 0:
                session.validate(folder)
            stopping = not last and agree_to_stop(session.accelerator, stop.is_set(), may_ask=bool(step.terms))
            if last or stopping or step.number % experiment.save_every == 0:
                if folder is not None:
                    folder.flush()
                session.save()
                if folder is not None:  # with every checkpoint: a kill leaves no time for it
                    spent_now = round(spent + time.perf_counter() - began, 1)
                    folder.update_manifest(seconds=spent_now, peak_memory_gib=round(peak_memory_gib(), 2))
            if stopping:
                leave(session.accelerator)
                raise Interrupted(f"stopped at step {step.number}; everything is saved. Go on with --resume.")
        session.finish()
        seconds = time.perf_counter() - began
        if folder is not None:
            best = {"score": training.best["score"] if len(session.validation) else None, "step": training.best["step"]}
            folder.update_manifest(
                finished=True, seconds_of_last_call=round(seconds, 1), seconds=round(spent + seconds, 1), best=best
            )
    leave(session.accelerator)
    return TrainingResult(
        folder=out,
        best=float(training.best.get("score", float("nan"))),
        best_step=int(training.best.get("step", training.schedule.steps)),
        parameters=sum(p.numel() for p in training.segmenter.parameters()),
        seconds=seconds,
    )


def open_session(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool = False,
    elsewhere: bool = False,
    say: Say = mute,
) -> Session:
    """Build everything a training needs, at the state it has to go on from; nothing is written.

    Args:
        experiment: Settings.
        out: Run folder.
        resume: Go on from the newest whole checkpoint in ``out``.
        elsewhere: It is to be trained on another machine: device and precision are not asked of this one.
        say: Takes lines worth reading.

    Raises:
        SettingError: Settings, data, teacher or checkpoint do not go together.
        MindgapError: A run lies in ``out`` already, and ``resume`` is False.
    """
    if not resume:
        refuse_existing(out)
    store = open_store(experiment.data)
    teacher, start = experiment.method.teacher_path(), start_folder(experiment)
    course = course_hash(
        experiment,
        data=store.fingerprint,
        teacher=None if teacher is None else read_card(teacher)[1],
        start=None if start is None else read_card(start)[1],
    )
    state, warnings = load_newest(out / CHECKPOINTS, settings=course)
    for warning in warnings:
        say(warning)
    if elsewhere:
        experiment = replace(experiment, device="auto", precision="auto")
    seed_everything(experiment.seed)
    session = Session(experiment, store, build_method(experiment, store), out, say, course=course)
    if state is not None:
        session.training.load(state)
    session.part_ways()
    if state is not None:
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
        say: Say,
        *,
        course: str,
    ) -> None:
        self.experiment, self.store, self.method, self.out, self.say = experiment, store, method, out, say
        self.processor = detect_processor(experiment.device)
        self.precision = choose_precision(experiment.precision, self.processor)
        self.accelerator = make_accelerator(self.processor.device, self.precision, players=len(method.players))
        if not self.accelerator.is_main_process:
            self.say = mute
        self.cases, self.validation = map(self._load, choose_cases(store, method, say=self.say))
        self.start: dict[str, Tensor] = {}  # what the weights were, where some of them stay in what is kept
        if experiment.start_share:
            weights = method.networks["segmenter"].state_dict()
            self.start = {name: value.detach().clone() for name, value in weights.items()}
        self.training = Training(
            method,
            self.cases,
            experiment.schedule,
            experiment.optimisation,
            experiment.augmentation,
            accelerator=self.accelerator,
            seed=experiment.seed,
            settings=course,
            compiled=experiment.compiled,
        )
        taught = method.teacher_cases(self.cases.available, self.cases.sequences)
        if method.teacher is not None:
            self.say(f"the teacher speaks on {taught} of {len(self.cases)} training cases; the others teach by labels")
        self.say(f"{len(self.cases)} training and {len(self.validation)} validation cases: {self.cases.place.reason}")
        count = self.accelerator.num_processes
        together = "" if count == 1 else f", {count} processes of {experiment.schedule.batch // count} cases a step"
        self.say(f"{self.precision} on {self.processor.kind}{together}")

    def part_ways(self) -> None:
        """Let several processes start from the same step, each with a chance of its own for noise in the networks.

        Raises:
            MindgapError: They found different checkpoints (a network folder that shows one of them an older state).
        """
        if self.accelerator.num_processes == 1:
            return
        finished = gather_object([self.training.finished])
        if len(set(finished)) > 1:
            raise MindgapError(
                f"the processes found checkpoints of different steps in {self.out} ({sorted(set(finished))}): wait "
                "until the folder shows the same files everywhere, then start again."
            )
        seed_everything(hash((self.experiment.seed, finished[0], self.accelerator.process_index)) % 2**31)

    def facts(self) -> dict[str, Any]:
        """Versions, machine and inputs, for the manifest."""
        taught = self.method.teacher_cases(self.cases.available, self.cases.sequences)
        teacher = self.experiment.method.teacher_path()
        cited = [*self.method.citations, *citations_before(self.experiment), "brats"]
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
            "processes": self.accelerator.num_processes,
            "residence": self.cases.place.residence,
            "subset": [str(sequence) for sequence in self.method.subset],
            "command": sys.argv,
            "source": self.store.source,
            "split": {key: self.store.split[key] for key in ("name", "sha256")},
            "cases": {
                "train": [entry.case_id for entry in self.cases.entries],
                "validation": [entry.case_id for entry in self.validation.entries],
                "test": self.store.part("test"),
                "taught": taught,
                "before": history_before(self.experiment).to_plain(),
            },
            **({} if teacher is None else {"teacher": describe_teacher(teacher)}),
            "citations": list(dict.fromkeys(cited)),
        }

    def write_thresholds(self) -> None:
        """Fit the threshold baseline on the training cases and keep it beside the network.

        Cases that joined from another cohort, such as phantoms, are left out: the baseline is that of the data at hand.
        """
        if self.training.finished and (self.out / THRESHOLDS).is_file():
            return

        def coded() -> Iterator[tuple[Any, Any]]:
            for entry in (entry for entry in self.cases.entries if entry.case_id not in self.store.joined):
                array = self.store.read(entry.case_id)
                codes = array if array.dtype == np.uint8 else encode(array[:-1].astype(np.float32))
                target = array[-1].astype(np.uint8)
                yield {s: codes[row] for row, s in enumerate(entry.sequences)}, target

        write_json(self.out / THRESHOLDS, thresholds_to_plain(fit_thresholds(coded())))

    def validate(self, folder: RunFolder | None) -> None:
        """Score the network that would predict now, and keep it if it is the best so far (ties: the later).

        Processes share the cases; the one with a folder writes.
        """
        training, accelerator = self.training, self.accelerator
        candidate = build_network(self.method.architecture, self.method.arguments)
        candidate.load_state_dict(self._kept_state())
        candidate.to(accelerator.device).eval()
        if accelerator.num_processes > 1:  # averages of normalisations differ between processes; the first one's count
            broadcast(dict(candidate.state_dict()))
        rows = validate(
            candidate,
            self.validation,
            self.method.subset,
            window=self.experiment.schedule.crop,
            device=accelerator.device,
            bf16=self.precision == "bf16",
            head=head_of(self.method.architecture, self.method.arguments),
            shown=self.method.shown_at_validation(),
            indices=range(accelerator.process_index, len(self.validation), accelerator.num_processes),
        )
        scores = mean_scores(gather_object(rows))
        if scores:
            text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
            self.say(f"step {training.finished}: validation Dice {text}")
        better = not scores or scores["mean"] >= training.best.get("score", float("-inf"))
        if better:
            training.best = {"score": scores.get("mean", float("nan")), "step": training.finished}
        if folder is None:
            return
        batches = (self.validation.whole(index, multiple=STRIDE) for index in range(len(self.validation)))
        diagnosis = self.method.diagnose(candidate, batches)
        gap = gap_metrics(diagnosis.latents)
        folder.log_validation({"step": training.finished, **scores, **diagnosis.numbers, **gap})
        if better:
            self._write_model(candidate)

    def _kept_state(self) -> dict[str, Tensor]:
        """What would be kept now: what predicts, blended with what it started from where that is asked for."""
        state = self.training.predicting_state()
        return blend_states(state, self.start, self.experiment.start_share) if self.start else state

    def save(self) -> None:
        """Write a checkpoint; of several processes, whose states are the same, one does."""
        state = self.training.state()
        if self.accelerator.is_main_process:
            save_checkpoint(self.out / CHECKPOINTS, state)

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
            any_subset=self.method.any_subset,
        )
        save_network(self.out, network, card)

    def _load(self, case_ids: list[str]) -> ResidentCases:
        return ResidentCases(
            self.store,
            case_ids,
            subset=self.method.subset,
            device=self.accelerator.device,
            residence=self.experiment.residence,
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", self.accelerator.num_processes)),
        )


@contextmanager
def _folder(out: Path, finished: int, *, writes: bool) -> Iterator[RunFolder | None]:
    """The run folder for the process that writes, None for the others."""
    if not writes:
        yield None
        return
    with RunFolder(out, resume_at=finished) as folder:
        yield folder
