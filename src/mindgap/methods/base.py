"""What a method is: the networks it trains, the players that step them, and named loss terms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mindgap.batch import Batch
from mindgap.errors import SettingError
from mindgap.networks.card import TrainedNetwork
from mindgap.sequences import Subset
from mindgap.shapes import Bool


@dataclass(frozen=True)
class Player:
    """Networks that are stepped together by one optimiser (a segmenter; a discriminator).

    Attributes:
        name: Its name in logs and checkpoints.
        networks: Names in ``AbstractMethod.networks``.
        learning_rate_factor: Multiplies the learning rate of the run.
    """

    name: str
    networks: tuple[str, ...]
    learning_rate_factor: float = 1.0


@dataclass(frozen=True)
class Parts:
    """What every method may be built from, as plain values and trained networks.

    Attributes:
        store_sequences: Columns of the batches.
        subset: Sequences the trained network sees.
        width: Channels of the backbone at full resolution.
        latent_channels: Channels of each latent.
        teacher: A trained teacher, where the method distils.
    """

    store_sequences: Subset
    subset: Subset
    width: int = 16
    latent_channels: int = 4
    teacher: TrainedNetwork | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What a method tells about its network at a validation.

    Attributes:
        numbers: Named values for the log.
        latents: For each case latents at the same brain voxels in all sequences (J, N, C), NaN where one is absent.
    """

    numbers: dict[str, float] = field(default_factory=dict)
    latents: list[NDArray[np.float32]] = field(default_factory=list)


@dataclass
class AbstractMethod(ABC):
    """A way of training: living networks, and the terms of each player's loss.

    The loop knows nothing else. It moves and wraps ``networks`` in place, asks each player in order for its
    ``terms``, adds them with their ``weights`` (1 where a term has none) and steps the player's optimiser.

    Attributes:
        networks: Everything that is trained, by name; "segmenter" is the one that predicts.
        subset: Columns the segmenter takes.
        players: Who is stepped, in order.
        term_weights: Weight of a term in the loss.
        teacher: Frozen network; never trained, never in train mode.
        citations: Keys in :mod:`mindgap.citations` of what the method is made of.
        any_subset: Whether the segmenter answers for every subset of ``subset``.
    """

    networks: dict[str, nn.Module]
    subset: Subset
    architecture: str
    arguments: dict[str, Any]
    players: tuple[Player, ...] = (Player("segmenter", ("segmenter",)),)
    term_weights: Mapping[str, float] = field(default_factory=dict)
    teacher: nn.Module | None = None
    citations: tuple[str, ...] = ()
    any_subset: bool = False

    @abstractmethod
    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Named losses of one player for one batch: each one value per case, or one for the batch."""

    def weights(self, step: int, steps: int) -> Mapping[str, float]:
        """Weight of each term after ``step`` of ``steps`` steps: ``term_weights``, unless one of them changes."""
        return self.term_weights

    def usable(self, available: Bool[Tensor, "N J"], sequences: Subset) -> Bool[Tensor, " N"]:
        """Which cases this method can learn from: those that hold every sequence of its subset; any, if any will do."""
        chosen = available[:, [sequences.index(sequence) for sequence in self.subset]]
        return chosen.any(1) if self.any_subset else chosen.all(1)

    def teacher_cases(self, available: Bool[Tensor, "N J"], sequences: Subset) -> int:
        """How many cases the teacher can say something about; 0 without a teacher."""
        return 0

    def shown_at_validation(self) -> tuple[Subset, ...]:
        """Subsets with which validation cases are shown; every single one too, where the network takes them."""
        if not self.any_subset or len(self.subset) == 1:
            return (self.subset,)
        return (self.subset, *((sequence,) for sequence in self.subset))

    def diagnose(self, network: nn.Module, batches: Iterable[Batch]) -> Diagnosis:
        """Numbers worth a line in the log at every validation; may be empty.

        Args:
            network: The segmenter that would predict now, in eval mode.
            batches: The validation cases, whole, on the network's device.
        """
        return Diagnosis()


class AbstractRecipe(ABC):
    """The numbers of a method, as a frozen dataclass, and how to build it from parts.

    It stands beside its method, so that a new method costs one file; ``methods.METHODS`` lists them and the
    command line makes flags of its fields.
    """

    @abstractmethod
    def build(self, parts: Parts) -> AbstractMethod:
        """Make the living method.

        Raises:
            SettingError: The numbers do not go together; raised before anything is trained.
        """

    def teacher_path(self) -> Path | None:
        """Folder of the teacher this recipe distils from."""
        return None


def flag_of(name: str) -> str:
    """The flag that sets a number of a recipe on the command line."""
    return f"--{name.replace('_', '-')}"


def demand_weights(recipe: AbstractRecipe, *names: str) -> None:
    """Refuse weights of terms that would reward disagreement, or turn the loss into no number.

    Raises:
        SettingError: One is below 0, infinite or no number.
    """
    for name in names:
        value = getattr(recipe, name)
        if not 0 <= value < math.inf:  # NaN is neither below nor above anything
            raise SettingError(f"{flag_of(name)} is {value:g}: it has to be at least 0, and finite.")


def demand_temperature(value: float) -> None:
    """Refuse a temperature that no logit can be divided by.

    Raises:
        SettingError: It is not above 0, infinite or no number.
    """
    if not 0 < value < math.inf:
        raise SettingError(f"--temperature is {value:g}: it has to lie above 0, and to be finite.")


def parameter_groups(
    network: nn.Module, *, weight_decay: float, anchor_learning_rate_factor: float
) -> list[dict[str, Any]]:
    """Parameters of a network for an optimiser; anchor weights apart.

    Anchor weights get no weight decay: with Adam's coupled decay a parameter whose only gradient is the decay
    moves at the full learning rate per step.
    """
    anchors = [p for name, p in network.named_parameters() if name.endswith("anchor_logits")]
    others = [p for name, p in network.named_parameters() if not name.endswith("anchor_logits")]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": weight_decay, "lr_factor": 1.0}]
    if anchors:
        groups.append({"params": anchors, "weight_decay": 0.0, "lr_factor": anchor_learning_rate_factor})
    return groups


def freeze(network: nn.Module) -> nn.Module:
    """A teacher for good: eval mode, no gradients."""
    return network.eval().requires_grad_(False)


def rows_where_all(available: Bool[Tensor, "B J"]) -> Bool[Tensor, " B"]:
    """Rows of a batch that have every one of its columns."""
    return torch.as_tensor(available).all(1)
