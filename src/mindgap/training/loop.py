"""The one loop, for every method: draw, cut, ask each player for its terms, step it, say what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mindgap.batch import Batch
from mindgap.data.augmentation import Augmentation, Draws, draw
from mindgap.data.resident import ResidentCases
from mindgap.errors import MemoryShort, MindgapError, SettingError
from mindgap.methods.base import AbstractMethod, Player
from mindgap.networks.blocks import channels_last
from mindgap.networks.settling import running_averages, settle_norms
from mindgap.training.checkpoint import TrainingState, random_state, set_random_state
from mindgap.training.memory import explain_shortage, recompute_activations
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
        accumulate: Micro-batches a step is computed in, one after the other; takes that much less memory. Terms that
            couple the cases of a batch, and BatchNorm, then see one micro-batch.
        recompute: Compute activations again in the backward pass instead of keeping them; the weights stay the same.
        settle: Share of the steps, at the end, in which normalisations use their running averages, as prediction does.
            Before, a crop is normalised with what happens to be in its batch; what is learnt in these steps is the
            function that predicts.
    """

    steps: int
    batch: int = 4
    crop: int = 80
    foreground: float = 0.0
    log_every: int = 1
    accumulate: int = 1
    recompute: bool = False
    settle: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.log_every < 1 or self.accumulate < 1:
            raise SettingError("steps, batch, log_every and accumulate have to be at least 1.")
        if self.crop < 16 or self.crop % 16:
            raise SettingError(f"crop is {self.crop}: choose a multiple of 16, the stride of the network.")
        if not 0 <= self.foreground <= 1:
            raise SettingError(f"foreground is {self.foreground}: it is a share, 0 to 1.")
        if not 0 <= self.settle <= 1:
            raise SettingError(f"settle is {self.settle}: it is a share of the steps, 0 to 1.")
        if self.batch % self.accumulate:
            raise SettingError(f"a batch of {self.batch} cannot be cut into {self.accumulate} equal micro-batches.")
        self.refuse_single_values(self.accumulate)

    def is_settled(self, step: int) -> bool:
        """Whether normalisations hold still at a step, counted from 1."""
        return step > round((1 - self.settle) * self.steps)

    def refuse_single_values(self, parts: int) -> None:
        """Refuse a batch cut into so many parts that BatchNorm has nothing to normalise."""
        if self.batch == parts and self.crop == 16:
            raise SettingError(
                "a batch of one 16^3 crop leaves one value per channel at the bottleneck, which BatchNorm cannot "
                "normalise: choose a larger batch or crop, or fewer micro-batches."
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

    With W processes every one draws the same batch of B cases and computes B/W rows of it; gradients are averaged by
    DistributedDataParallel. W processes then do what one process does with ``accumulate`` = W.

    Args:
        method: What is trained.
        cases: The training cases.
        schedule: How long and how large.
        optimisation: How weights move.
        augmentation: How crops vary.
        accelerator: ``accelerate.Accelerator``: device, precision, processes.
        seed: Of the draws.
        settings: Hash kept in checkpoints.
        layout: Memory layout of the networks.
        compiled: Whether ``torch.compile`` makes kernels for the networks.
        mark: Called with "data", "forward", "backward", "optimiser" or "log" when such a phase of a step has ended,
            for whoever measures.

    Raises:
        SettingError: The batch cannot be shared equally by the processes.
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
        layout: Literal["channels_last", "contiguous"] = "channels_last",
        compiled: bool = False,
        mark: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.method, self.cases, self.schedule = method, cases, schedule
        self.optimisation, self.augmentation = optimisation, augmentation
        self.accelerator, self.seed, self.settings, self.mark = accelerator, seed, settings, mark
        self.finished = 0
        self.best: dict[str, Any] = {}
        self._refuse_unequal_shares()
        for network in method.networks.values():
            self._equip(network, layout, compiled)
        self._terms = accelerator.prepare_model(_Terms(method))
        if method.teacher is not None:
            place = channels_last if layout == "channels_last" else nn.Module.to
            place(method.teacher, accelerator.device)
        self.optimisers = {
            player.name: accelerator.prepare_optimizer(make_optimiser(optimisation, method, player))
            for player in method.players
        }
        self.average = AveragedWeights(self.segmenter, optimisation.average) if optimisation.average else None
        self._sound = torch.ones((), dtype=torch.bool, device=accelerator.device)
        self._ahead: tuple[Draws, Draws] | None = None
        self._settled = False

    @property
    def segmenter(self) -> nn.Module:
        """The network that predicts."""
        return self.method.networks["segmenter"]

    def run(self) -> Iterator[Step]:
        """Steps from where the run stands to its end; whoever iterates logs, validates and saves between them.

        Raises:
            NonFiniteLoss: A term became NaN or infinite.
            MemoryShort: A step did not fit; the message names the settings that help.
        """
        while self.finished < self.schedule.steps:
            began = time.perf_counter()
            try:
                values = self._step()
            except (RuntimeError, MemoryError) as error:
                shortage = self._explain_shortage(error)
                if shortage is None:
                    raise
                raise MemoryShort(f"step {self.finished + 1}: {shortage}") from error
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
                    f"the weights of the {name} are not finite at step {self.finished}. The network that was kept "
                    "stays. Train anew in another folder with a smaller --learning-rate or with --clip 1, from that "
                    "network with --start if you like; with --log-every 1 the term and the cases are named."
                )
        return TrainingState(
            step=self.finished,
            networks={name: network.state_dict() for name, network in self.method.networks.items()},
            optimisers={name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            average={} if self.average is None else {"state": self.average.state, "updates": self.average.updates},
            best=self.best,
            random=random_state(),
            settings=self.settings,
        )

    def load(self, state: TrainingState) -> None:
        """Go back to a checkpoint, of a run of as many or of other processes."""
        for name, network in self.method.networks.items():
            network.load_state_dict(state.networks[name])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state.optimisers[name])
        if self.average is not None:
            self.average.load(state.average["state"], state.average["updates"])
        self.best, self.finished = state.best, state.step
        self._ahead = None
        set_random_state(state.random)

    def predicting_state(self) -> dict[str, Tensor]:
        """State of the network that should predict now: the averaged one if there is one."""
        return self.average.state if self.average is not None else self.segmenter.state_dict()

    def _step(self) -> dict[str, float]:
        number, schedule = self.finished + 1, self.schedule
        if not self._settled and schedule.is_settled(number):
            self._settle()
        logged = number % schedule.log_every == 0 or number == schedule.steps
        draws, own = self._ahead or self._draw(self.finished)
        batches = self.cases.batch(own, self.augmentation, crop=schedule.crop).split(schedule.accumulate)
        self._ahead = self._draw(number) if number < schedule.steps else None
        if self._ahead is not None:
            self.cases.prefetch(self._ahead[1], crop=schedule.crop)
        self.mark("data")
        values: dict[str, float] = {}
        share = learning_rate_share(self.optimisation.schedule, self.finished, schedule.steps)
        for player in self.method.players:
            set_learning_rate(self.optimisers[player.name], share)
            sums = self._gradients(player, batches)
            if logged or self.accelerator.device.type == "cpu":  # a GPU is waited for only where a value is logged
                values |= self._read(player.name, sums, draws)
            self.mark("log")
            self._move(player)
            self.mark("optimiser")
        return values if logged else {}

    def _gradients(self, player: Player, batches: list[Batch]) -> dict[str, Tensor]:
        """Fill the gradients of a player's loss, micro-batch by micro-batch; return the means of its terms."""
        sums: dict[str, Tensor] = {}
        weights = self.method.weights(self.finished, self.schedule.steps)
        for index, batch in enumerate(batches):
            with ExitStack() as quiet:
                if index + 1 < len(batches):  # processes talk after the last micro-batch only
                    quiet.enter_context(self.accelerator.no_sync(self._terms))
                terms = self._terms(player.name, batch)
                loss = add_terms(terms, weights) / len(batches)
                self.mark("forward")
                self.accelerator.backward(loss)
                self.mark("backward")
            for name, value in {**terms, "loss": loss * len(batches)}.items():
                sums[name] = sums.get(name, 0) + value.detach().float().mean() / len(batches)
        self._sound &= sums["loss"].isfinite()
        return sums

    def _move(self, player: Player) -> None:
        if self.optimisation.clip:
            own = [p for name in player.networks for p in self.method.networks[name].parameters()]
            self.accelerator.clip_grad_norm_(own, self.optimisation.clip)
        self.optimisers[player.name].step()
        # a player's loss also fills gradients of the others' networks; nobody may step on them
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if self.average is not None and player is self.method.players[-1]:
            self.average.update()

    def _settle(self) -> None:
        """Let normalisations use their running averages from here on: those of the averaged weights, if there are any.

        A run that goes on from a checkpoint of a later step finds them as they were.
        """
        self._settled = True
        for network in self.method.networks.values():
            settle_norms(network)
        if self.average is not None and not self.schedule.is_settled(self.finished):
            for name, value in running_averages(self.segmenter):
                value.copy_(self.average.state[name])

    def _draw(self, step: int) -> tuple[Draws, Draws]:
        """What chance decides about a whole step, and about the rows that this process computes."""
        batch = self.schedule.batch
        draws = draw(
            self.augmentation,
            seed=self.seed,
            step=step,
            batch=batch,
            cases=len(self.cases),
            sequences=len(self.cases.sequences),
            foreground=self.schedule.foreground,
        )
        count = batch // self.accelerator.num_processes
        first = count * self.accelerator.process_index
        return draws, draws if count == batch else draws.rows(first, first + count)

    def _read(self, player: str, sums: dict[str, Tensor], draws: Draws) -> dict[str, float]:
        """Bring the terms to the host, averaged over the processes, in one transfer."""
        prefix = "" if len(self.method.players) == 1 else f"{player}/"
        together = torch.stack([*sums.values(), self._sound.float()])
        *numbers, sound = self.accelerator.reduce(together, "mean").tolist()
        values = {prefix + name: value for name, value in zip(sums, numbers, strict=True)}
        if sound < 1 or not all(math.isfinite(value) for value in values.values()):
            listing = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.finished + 1} ({listing}), or was not at a step that was not "
                f"logged, on cases {', '.join(self.cases.case_ids(draws))}. The network that was kept stays. Look at "
                "these cases, or train anew in another folder with a smaller --learning-rate or with --clip 1, from "
                "that network with --start if you like."
            )
        return values

    def _equip(self, network: nn.Module, layout: str, compiled: bool) -> None:
        if self.accelerator.num_processes > 1 and self.accelerator.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if self.schedule.recompute:
            recompute_activations(network)
        if layout == "channels_last":
            channels_last(network)
        if compiled:
            network.compile(dynamic=False)

    def _refuse_unequal_shares(self) -> None:
        parts = self.accelerator.num_processes * self.schedule.accumulate
        if self.schedule.batch % parts:
            raise SettingError(
                f"a batch of {self.schedule.batch} cannot be shared equally by {self.accelerator.num_processes} "
                f"processes with {self.schedule.accumulate} micro-batches each: choose --batch {parts} or a multiple."
            )
        self.schedule.refuse_single_values(parts)

    def _explain_shortage(self, error: Exception) -> str | None:
        return explain_shortage(
            error,
            batch=self.schedule.batch // self.accelerator.num_processes,
            accumulate=self.schedule.accumulate,
            recompute=self.schedule.recompute,
            crop=self.schedule.crop,
        )


class _Terms(nn.Module):
    """A method as one module, so that one wrapper casts precision and gathers the gradients of all its networks.

    With a wrapper for each network, two processes could send gradients in different orders.
    """

    def __init__(self, method: AbstractMethod) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(method.networks)
        self.method = method

    def forward(self, player: str, batch: Batch) -> dict[str, Tensor]:
        return self.method.terms(player, batch)


def add_terms(terms: dict[str, Tensor], weights: Any) -> Tensor:
    """The loss: weighted sum of the means of the terms."""
    return torch.stack([weights.get(name, 1.0) * value.float().mean() for name, value in terms.items()]).sum()
