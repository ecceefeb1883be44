"""Optimisers, learning-rate schedules and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mindgap.errors import SettingError
from mindgap.methods.base import AbstractMethod, Player, parameter_groups


@dataclass(frozen=True)
class Optimisation:
    """How weights move.

    Attributes:
        optimiser: "adam" couples weight decay with the gradient (the paper's base); "adamw" does not.
        learning_rate: At its highest.
        weight_decay: Not applied to anchor weights.
        schedule: "poly": (1 - t)^0.9; "onecycle": linear warm-up over the first tenth, then a cosine to 0;
            "constant".
        anchor_learning_rate_factor: Anchor weights move this much faster than the rest.
        clip: Largest norm of the gradient of a player; 0 leaves it as it is.
        average: Weights kept as an exponential average with this decay, which is what predicts; 0 is off.

    Reference:
        Adam, 1e-3, weight decay 1e-5, poly 0.9 is ProtoKD's public code; the paper's sentence "initialised as
        1e-3 which are gradually decayed by 1e-5" most likely means it.
    """

    optimiser: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    schedule: Literal["poly", "onecycle", "constant"] = "poly"
    anchor_learning_rate_factor: float = 10.0
    clip: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.clip >= 0):
            raise SettingError("learning_rate has to be above 0, weight_decay and clip at least 0.")
        if not 0 <= self.average < 1:
            raise SettingError(f"average is {self.average}: choose 0 (off) to below 1, such as 0.99.")


def make_optimiser(settings: Optimisation, method: AbstractMethod, player: Player) -> torch.optim.Optimizer:
    """The optimiser of one player over all its networks (fused)."""
    groups = [
        {**group, "lr": settings.learning_rate * player.learning_rate_factor * group["lr_factor"]}
        for name in player.networks
        for group in parameter_groups(
            method.networks[name],
            weight_decay=0.0 if name == "anchor" else settings.weight_decay,  # all of it belongs to the anchor
            anchor_learning_rate_factor=settings.anchor_learning_rate_factor,
        )
    ]
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    optimiser: torch.optim.Optimizer = kind(groups, fused=True)
    for group in optimiser.param_groups:
        group["peak_lr"] = group["lr"]
    return optimiser


def learning_rate_share(schedule: str, step: int, steps: int) -> float:
    """Share of the highest learning rate at a step (counted from 0), a pure function of both."""
    if schedule == "constant":
        return 1.0
    t = step / max(steps, 1)
    if schedule == "poly":
        return float((1 - t) ** 0.9)
    warm = 0.1
    if t < warm:
        return 0.04 + 0.96 * t / warm
    return 0.5 * (1 + math.cos(math.pi * (t - warm) / (1 - warm)))


def set_learning_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set every group to a share of its own highest learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share


def blend_states(state: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    r"""Weights between those a training started from and those it ended with: $(1 - s)\,\theta + s\,\theta_0$.

    Args:
        state: Of a network, $\theta$.
        start: Of the same network before, $\theta_0$; what is not floating point is left out.
        share: s.

    Reference:
        Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, https://arxiv.org/abs/2109.01903.
        We differ: running averages of normalisations are blended like weights, not measured anew.
    """
    return {
        name: torch.lerp(value, start[name].to(value.device), share) if value.is_floating_point() else value
        for name, value in state.items()
    }


class AveragedWeights:
    r"""Exponential moving average of a network's state: $\bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta$.

    Early on the decay is smaller, min(d, (1+n)/(10+n)) after n updates, so that the random start is forgotten.

    Args:
        network: Its state is averaged; buffers are averaged too when they are floating point, else copied.
        decay: d.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._live = dict(network.state_dict())  # the tensors themselves: optimisers change them in place
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the newest weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names = [name for name, value in self._live.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in names], [self._live[n] for n in names], 1 - decay)
        for name in self._live.keys() - set(names):
            self.state[name].copy_(self._live[name])

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Go back to a checkpoint."""
        for name, value in state.items():
            self.state[name].copy_(value)
        self.updates = updates
