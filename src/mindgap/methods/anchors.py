"""Anchors by name: what a teacher's latents are drawn to, and what a network needs for it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mindgap.batch import Batch, Output
from mindgap.errors import SettingError
from mindgap.losses.alignment import (
    align_by_precision,
    align_input_to_normal,
    align_literally,
    align_moments_to_normal,
    align_to_mixture,
    align_to_normal,
    align_to_released_mixture,
    align_to_sequence,
)
from mindgap.methods.base import AbstractRecipe, flag_of
from mindgap.sequences import Sequence, Subset, format_subset

AnchorName = Literal[
    "none",
    "normal",
    "k",
    "mixture",
    "normal_moments",
    "normal_medmap",
    "literal",
    "literal_softmax",
    "precision",
    "medmap_a",
    "medmap_b",
]
Encoder = Literal["per_sequence", "shared", "joint"]

PAPER = ("none", "normal", "k", "mixture")
"""The four of the paper's tables: without alignment, P_N, P_k and P_*."""

_NETWORKS: dict[str, dict[str, Any]] = {
    "none": {"weighted": False},
    "normal": {"weighted": False, "heads": True},
    "k": {"weighted": False},
    "mixture": {"weighted": True},
    "normal_moments": {"weighted": False},
    "normal_medmap": {"weighted": False},
    "literal": {"weighted": False, "weights": "raw"},
    "literal_softmax": {"weighted": False, "weights": "softmax"},
    "precision": {"weighted": False, "weights": "softmax"},
    "medmap_a": {"weighted": False, "weights": "ratio"},
    "medmap_b": {"weighted": False, "weights": "softmax", "weighting": "prediction"},
}
"""Arguments of the aligned network that differ by anchor."""

_COMPLETE_ONLY = ("normal_moments", "medmap_a", "medmap_b")
_WITH_TERM = tuple(name for name in get_args(AnchorName) if name != "none")
_USERS: dict[str, tuple[str, ...]] = {
    "k": ("k", "literal", "literal_softmax"),
    "anchor_gradient": ("k",),
    "alignment_weight": _WITH_TERM,
    "align_over": tuple(name for name in _WITH_TERM if name != "normal_medmap"),
    "force_literal": ("literal",),
}
"""Which anchors use a number of a recipe; those that are not named here are used by all."""


@dataclass(frozen=True)
class Anchor:
    """An anchor with its numbers.

    Attributes:
        name: See ``AnchorName``.
        k: The anchor sequence of P_k and of the literal forms.
        gradient: Whether P_k's gradient reaches the anchor sequence.
        over: Voxels compared: "brain", or "all" (the literal reading, in which the background counts).
    """

    name: AnchorName = "mixture"
    k: Sequence = Sequence.T1CE
    gradient: bool = False
    over: Literal["brain", "all"] = "brain"

    def check(self, subset: Subset, *, encoder: Encoder, latent_norm: str, incomplete: bool, force: bool) -> None:
        """Refuse what cannot work, before anything is trained.

        Raises:
            SettingError: Anchor, sequences and encoder do not go together.
        """
        if self.name != "none" and len(subset) < 2:
            raise SettingError(
                f"anchor {self.name} needs at least two sequences to align, and the subset is "
                f"{format_subset(subset)}: add sequences or use --anchor none."
            )
        if self.name in ("k", "literal", "literal_softmax") and self.k not in subset:
            raise SettingError(
                f"the anchor sequence k={self.k} is not in the subset {format_subset(subset)}: choose k among them."
            )
        if self.name == "literal" and not force:
            raise SettingError(
                "anchor literal diverges: its weights are free and the loss is unbounded below. Use literal_softmax or "
                "mixture, or see for yourself with --force-literal."
            )
        if incomplete and (encoder == "joint" or latent_norm == "batch" or self.name in _COMPLETE_ONLY):
            raise SettingError(
                "the joint encoder, latent_norm batch and the anchors "
                f"{', '.join(_COMPLETE_ONLY)} need complete cases: leave --incomplete out."
            )

    def network_arguments(self) -> dict[str, Any]:
        """Arguments of the aligned network that this anchor asks for."""
        return dict(_NETWORKS[self.name])

    def extra_network(self) -> nn.Module | None:
        """Parameters of the anchor that are no part of the network that predicts."""
        return InputNormal() if self.name == "normal_medmap" else None

    def distance(self, output: Output, seen: Batch, subset: Subset, extra: nn.Module | None = None) -> Tensor | None:
        """The alignment term of a batch, one value per case; None for "none".

        Args:
            output: Of the aligned network.
            seen: The batch it saw, with the columns of ``subset``.
            subset: The network's sequences.
            extra: From :meth:`extra_network`.
        """
        if self.name == "none":
            return None
        latents, present = output.latents, seen.present
        brain, shares = output.features["brain"], output.features["sequence_weights"]
        if self.over == "all":
            brain = torch.ones_like(brain)
        with torch.autocast(brain.device.type, enabled=False):
            if self.name == "normal":
                return align_to_normal(latents, output.features["log_variance"], present, brain)
            if self.name == "normal_moments":
                return align_moments_to_normal(latents, present, brain)
            if self.name == "normal_medmap":
                assert isinstance(extra, InputNormal)
                return align_input_to_normal(seen.image, extra.mean, extra.log_variance, present)
            if self.name == "precision":
                return align_by_precision(latents, shares, present, brain)
            if self.name in ("medmap_a", "medmap_b"):
                return align_to_released_mixture(latents, shares, brain, anchor_gradient=self.name == "medmap_b")
            if self.name == "mixture":
                return align_to_mixture(latents, shares, present, brain)
            k = subset.index(self.k)
            if self.name == "k":
                return align_to_sequence(latents, present, brain, k=k, anchor_gradient=self.gradient)
            weights = output.features["anchor_weights"]
            scaled = weights if self.name == "literal" else len(subset) * weights
            return align_literally(latents, scaled, present, brain, k=k)


def refuse_unused(anchor: AnchorName, recipe: AbstractRecipe) -> None:
    """Refuse a number or a switch that was set although the anchor makes no use of it.

    Raises:
        SettingError: One differs from its default, and the anchor would train the same with any other.
    """
    for field in dataclasses.fields(recipe):  # type: ignore[arg-type]
        users, value = _USERS.get(field.name), getattr(recipe, field.name)
        if users is None or anchor in users or value == field.default:
            continue
        given = flag_of(field.name) if value is True else f"{flag_of(field.name)} {value}"
        raise SettingError(
            f"{given} says nothing to anchor {anchor}: leave it out, or choose an anchor that uses it "
            f"({', '.join(users)})."
        )


class InputNormal(nn.Module):
    """Mean and log-variance of the authors' draft of P_N, two numbers learnt beside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.log_variance = nn.Parameter(torch.zeros(()))
