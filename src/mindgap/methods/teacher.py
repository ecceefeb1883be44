"""The aligned teacher of Mind the Gap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mindgap.batch import Batch, Output
from mindgap.errors import MindgapError, SettingError
from mindgap.losses.alignment import (
    align_to_mixture,
    align_to_sequence,
    brain_distance,
    mixture_anchor,
    sequence_distances,
)
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts
from mindgap.networks import build_network
from mindgap.sequences import Sequence, format_subset

Anchor = Literal["none", "k", "mixture"]


@dataclass
class AlignedTeacher(AbstractMethod):
    """L = cross-entropy + Dice + alignment of the latents to an anchor.

    Attributes:
        anchor: "none", "k" (P_k) or "mixture" (P_*).
        k: The anchor sequence of P_k.
        anchor_gradient: Whether P_k's gradient reaches the anchor sequence.
        incomplete: Learn also from cases that lack a sequence.
    """

    anchor: Anchor = "mixture"
    k: Sequence = Sequence.T1CE
    anchor_gradient: bool = False
    incomplete: bool = False

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Segmentation terms, and "alignment" unless the anchor is none."""
        assert batch.target is not None
        seen = batch.select(self.subset)
        output: Output = self.networks["segmenter"](seen.image, seen.present)
        terms = segmentation_terms(output.logits, batch.target)
        if self.anchor == "none":
            return terms
        brain, weights = output.features["brain"], output.features["sequence_weights"]
        with torch.autocast(seen.image.device.type, enabled=False):
            if self.anchor == "k":
                terms["alignment"] = align_to_sequence(
                    output.latents,
                    seen.present,
                    brain,
                    k=self.subset.index(self.k),
                    anchor_gradient=self.anchor_gradient,
                )
            else:
                terms["alignment"] = align_to_mixture(output.latents, weights, seen.present, brain)
        return terms

    def usable(self, available: Tensor, sequences: tuple[Sequence, ...]) -> Tensor:
        """Complete cases, or with ``incomplete`` every case that has any sequence of the subset."""
        columns = [sequences.index(sequence) for sequence in self.subset]
        chosen = available[:, columns]
        return chosen.any(1) if self.incomplete else chosen.all(1)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Anchor weights, the paired gap, and for each sequence distance to the barycentre and spread inside the brain.

        The weights are given as J * softmax(a), which sum to J (the paper's scale), and as a itself.

        Raises:
            MindgapError: The latents of a sequence have collapsed to a point.
        """
        found: dict[str, list[float]] = {}
        for batch in batches:
            seen = batch.select(self.subset)
            output = network(seen.image, seen.present)
            summary = latent_summary(output, seen.present)
            found.setdefault("paired_gap", []).extend(paired_gap(output, seen.present).tolist())
            for name, values in summary.items():
                for j, sequence in enumerate(self.subset):
                    rows = [v for v, has in zip(values[:, j].tolist(), seen.present[:, j].tolist(), strict=True) if has]
                    found.setdefault(f"{name}/{sequence}", []).extend(rows)
        finite = {name: [v for v in values if v == v] for name, values in found.items()}
        means = {name: sum(values) / len(values) for name, values in finite.items() if values}
        flat = [name for name, value in means.items() if name.startswith("latent_spread/") and not value > 1e-3]
        if flat:
            raise MindgapError(
                f"the latents collapsed: {', '.join(flat)} is {means[flat[0]]:g} inside the brain, where it should be "
                "near 1. Lower --alignment-weight or --learning-rate; the last checkpoint is untouched."
            )
        return means | self._anchor_weights(network)

    def _anchor_weights(self, network: nn.Module) -> dict[str, float]:
        logits = dict(network.named_parameters()).get("anchor_logits")
        if logits is None:
            return {}
        scaled = (len(self.subset) * torch.softmax(logits.detach().float(), 0)).tolist()
        raw = logits.detach().float().tolist()
        return {f"anchor_weight/{s}": w for s, w in zip(self.subset, scaled, strict=True)} | {
            f"anchor_logit/{s}": a for s, a in zip(self.subset, raw, strict=True)
        }


@dataclass(frozen=True)
class TeacherRecipe(AbstractRecipe):
    """The aligned teacher: encoders per sequence, latents drawn to an anchor, a VNet on all of them.

    Attributes:
        anchor: What the latents are drawn to: none; k, one sequence (P_k); mixture, their barycentre (P_*).
        k: The anchor sequence of P_k.
        anchor_gradient: Let P_k's gradient reach the anchor sequence too.
        alignment_weight: Weight of the alignment term beside cross-entropy and Dice.
        incomplete: Learn also from cases that lack a sequence.
    """

    anchor: Anchor = "mixture"
    k: Sequence = Sequence.T1CE
    anchor_gradient: bool = False
    alignment_weight: float = 1.0
    incomplete: bool = False

    def build(self, parts: Parts) -> AlignedTeacher:
        """Build from parts."""
        if self.anchor != "none" and len(parts.subset) < 2:
            raise SettingError(
                f"anchor {self.anchor} needs at least two sequences to align, and the subset is "
                f"{format_subset(parts.subset)}: add sequences or use --anchor none."
            )
        if self.anchor == "k" and self.k not in parts.subset:
            raise SettingError(
                f"the anchor sequence k={self.k} is not in the subset {format_subset(parts.subset)}: "
                "choose k among them."
            )
        arguments = {
            "sequences": len(parts.subset),
            "latent_channels": parts.latent_channels,
            "width": parts.width,
            "weighted": self.anchor == "mixture",
        }
        return AlignedTeacher(
            networks={"segmenter": build_network("aligned", arguments)},
            subset=parts.subset,
            architecture="aligned",
            arguments=arguments,
            term_weights={"alignment": self.alignment_weight},
            citations=("mindgap", "protokd"),
            anchor=self.anchor,
            k=self.k,
            anchor_gradient=self.anchor_gradient,
            incomplete=self.incomplete,
        )


def latent_summary(output: Output, present: Tensor) -> dict[str, Tensor]:
    """Latents of a batch in numbers: distance to the barycentre and spread, per sequence (B, J)."""
    brain = output.features["brain"]
    anchor = mixture_anchor(output.latents, output.features["sequence_weights"].detach(), present)
    spread = []
    for latent in output.latents:
        count = brain.sum((2, 3, 4)).clamp_min(1)
        mean = torch.where(brain, latent, latent.new_zeros(())).sum((2, 3, 4)) / count
        centred = (latent - mean[:, :, None, None, None]).square()
        spread.append((torch.where(brain, centred, centred.new_zeros(())).sum((2, 3, 4)) / count).mean(1).sqrt())
    return {
        "latent_distance": sequence_distances(output.latents, anchor, brain),
        "latent_spread": torch.stack(spread, dim=1),
    }


def paired_gap(output: Output, present: Tensor) -> Tensor:
    r"""How far apart the latents of two sequences are at the same voxel, per case (B,); 1 unrelated, 0 identical.

    $\frac{\overline{d(Z_j, Z_k)}}{2\,\overline{\sigma^2}}$: mean squared distance over pairs of present sequences and
    brain voxels, over twice the mean variance inside the brain. It does not change when all latents are scaled. A case
    with one sequence has none (NaN).
    """
    brain, count = output.features["brain"], len(output.latents)
    spread = latent_summary(output, present)["latent_spread"]
    shown = present.float().to(spread.device)
    within = (spread.square() * shown).sum(1) / shown.sum(1)
    total, pairs = torch.zeros_like(within), torch.zeros_like(within)
    for j in range(count):
        for k in range(j + 1, count):
            both = shown[:, j] * shown[:, k]
            total = total + both * brain_distance(output.latents[j], output.latents[k], brain)
            pairs = pairs + both
    return total / pairs / (2 * within)
