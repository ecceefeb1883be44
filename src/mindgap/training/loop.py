"""The one loop, for every method: draw, cut, ask each player for its terms, step it, say what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mindgap.batch import Batch
from mindgap.data.augmentation import Augmentation, draw
from mindgap.data.store import ResidentCases
from mindgap.errors import MindgapError, SettingError
from mindgap.methods.base import AbstractMethod
from mindgap.networks.blocks import channels_last
from mindgap.training.checkpoint import TrainingState, random_state, set_random_state
from mindgap.training.optimisation import (
    AveragedWeights,
    Optimisation,
    learning_rate_share,
    make_optimiser,
    set_learning_rate,
)


class NonFiniteLoss(MindgapError):
    """A term became NaN or infinite; training stops before the weights are spoilt."""


@dataclass(frozen=True)
class Schedule:
    """How long and how large.

    Attributes:
        steps: Optimiser steps of the whole run.
        batch: Cases per step.
        crop: Side of the crops in voxels, a multiple of 16.
        foreground: Share of crops centred on tumour.
        log_every: Steps between logged lines; reading a value waits for the device.
    """

    steps: int
    batch: int = 4
    crop: int = 80
    foreground: float = 0.0
    log_every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.log_every < 1:
            raise SettingError("steps, batch and log_every have to be at least 1.")
        if self.crop < 16 or self.crop % 16:
            raise SettingError(f"crop is {self.crop}: choose a multiple of 16, the stride of the network.")
        if not 0 <= self.foreground <= 1:
            raise SettingError(f"foreground is {self.foreground}: it is a share, 0 to 1.")
        if self.batch == 1 and self.crop == 16:
            raise SettingError(
                "a batch of one 16^3 crop leaves one value per channel at the bottleneck, which BatchNorm cannot "
                "normalise: choose a larger batch or crop."
            )


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        number: Counted from 1.
        terms: Mean of every term of every player, and "loss"; empty where the step is not logged.
        learning_rate: Of the first player's first group.
        seconds: Duration.
    """

    number: int
    terms: dict[str, float]
    learning_rate: float
    seconds: float


class Training:
    """A run in progress: living networks, optimisers and the number of finished steps.

    Args:
        method: What is trained.
        cases: The training cases on the device.
        schedule: How long and how large.
        optimisation: How weights move.
        augmentation: How crops vary.
        accelerator: ``accelerate.Accelerator``: device, precision, processes.
        seed: Of the draws.
        settings: Hash kept in checkpoints.
    """

    def __init__(
        self,
        method: AbstractMethod,
        cases: ResidentCases,
        schedule: Schedule,
        optimisation: Optimisation,
        augmentation: Augmentation,
        *,
        accelerator: Any,
        seed: int,
        settings: str = "",
    ) -> None:
        self.method, self.cases, self.schedule = method, cases, schedule
        self.optimisation, self.augmentation = optimisation, augmentation
        self.accelerator, self.seed, self.settings = accelerator, seed, settings
        self.finished = 0
        self.best: dict[str, Any] = {}
        for name, network in method.networks.items():
            method.networks[name] = accelerator.prepare_model(channels_last(network))
        if method.teacher is not None:
            channels_last(method.teacher, accelerator.device)
        self.optimisers = {
            player.name: accelerator.prepare_optimizer(make_optimiser(optimisation, method, player))
            for player in method.players
        }
        self.average = AveragedWeights(self.segmenter, optimisation.average) if optimisation.average else None

    @property
    def segmenter(self) -> nn.Module:
        """The network that predicts, without wrappers."""
        network: nn.Module = self.accelerator.unwrap_model(self.method.networks["segmenter"], keep_torch_compile=False)
        return network

    def run(self) -> Iterator[Step]:
        """Steps from where the run stands to its end; whoever iterates logs, validates and saves between them."""
        while self.finished < self.schedule.steps:
            began = time.perf_counter()
            batch = self._next_batch()
            logged = (self.finished + 1) % self.schedule.log_every == 0 or self.finished + 1 == self.schedule.steps
            values: dict[str, float] = {}
            share = learning_rate_share(self.optimisation.schedule, self.finished, self.schedule.steps)
            for player in self.method.players:
                optimiser = self.optimisers[player.name]
                set_learning_rate(optimiser, share)
                with self.accelerator.autocast():
                    terms = self.method.terms(player.name, batch)
                loss = add_terms(terms, self.method.term_weights)
                if logged or not bool(loss.detach().isfinite()):  # one flag per step is all the loop waits for
                    values |= self._read(player.name, terms, loss, batch)
                self.accelerator.backward(loss)
                if self.optimisation.clip:
                    own = [p for name in player.networks for p in self.method.networks[name].parameters()]
                    self.accelerator.clip_grad_norm_(own, self.optimisation.clip)
                optimiser.step()
                # a player's loss also fills gradients of the others' networks; nobody may step on them
                for other in self.optimisers.values():
                    other.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(self.segmenter)
            self.finished += 1
            rate = next(iter(self.optimisers.values())).param_groups[0]["lr"]
            yield Step(self.finished, values, rate, time.perf_counter() - began)

    def state(self) -> TrainingState:
        """Everything a checkpoint holds.

        Raises:
            NonFiniteLoss: The weights were spoilt in a step that was not logged.
        """
        for name, network in self.method.networks.items():
            if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
                raise NonFiniteLoss(
                    f"the weights of the {name} are not finite at step {self.finished}. The last checkpoint is "
                    "untouched: resume with a smaller --learning-rate or with --clip 1; with --log-every 1 the term "
                    "and the cases are named."
                )
        return TrainingState(
            step=self.finished,
            networks={n: self.accelerator.unwrap_model(m).state_dict() for n, m in self.method.networks.items()},
            optimisers={name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            average={} if self.average is None else {"state": self.average.state, "updates": self.average.updates},
            best=self.best,
            random=random_state(),
            settings=self.settings,
        )

    def load(self, state: TrainingState) -> None:
        """Go back to a checkpoint."""
        for name, network in self.method.networks.items():
            self.accelerator.unwrap_model(network).load_state_dict(state.networks[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state.optimisers[name])
        if self.average is not None:
            self.average.state = {n: v.to(self.accelerator.device) for n, v in state.average["state"].items()}
            self.average.updates = state.average["updates"]
        self.best, self.finished = state.best, state.step
        set_random_state(state.random)

    def predicting_state(self) -> dict[str, Tensor]:
        """State of the network that should predict now: the averaged one if there is one."""
        return self.average.state if self.average is not None else self.segmenter.state_dict()

    def _next_batch(self) -> Batch:
        draws = draw(
            self.augmentation,
            seed=self.seed,
            step=self.finished,
            batch=self.schedule.batch,
            cases=len(self.cases),
            sequences=len(self.cases.sequences),
            foreground=self.schedule.foreground,
        )
        return self.cases.batch(draws, self.augmentation, crop=self.schedule.crop)

    def _read(self, player: str, terms: dict[str, Tensor], loss: Tensor, batch: Batch) -> dict[str, float]:
        prefix = "" if len(self.method.players) == 1 else f"{player}/"
        values = {prefix + name: float(value.detach().float().mean()) for name, value in terms.items()}
        values[prefix + "loss"] = float(loss.detach())
        if not all(math.isfinite(value) for value in values.values()):
            listing = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.finished + 1} ({listing}) on cases {', '.join(batch.case_ids)}. "
                "The last checkpoint is untouched: resume with a smaller --learning-rate or with --clip 1, or look at "
                "these cases."
            )
        return values


def add_terms(terms: dict[str, Tensor], weights: Any) -> Tensor:
    """The loss: weighted sum of the means of the terms."""
    return torch.stack([weights.get(name, 1.0) * value.float().mean() for name, value in terms.items()]).sum()
