"""The aligned teacher of Mind the Gap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mindgap.batch import Batch, Output
from mindgap.errors import MindgapError
from mindgap.losses.cotraining import sigmoid_dice_loss
from mindgap.losses.distances import mixture_anchor, sequence_distances
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.anchors import Anchor, AnchorName, Encoder, refuse_unused
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Diagnosis, Parts, Player, demand_weights
from mindgap.networks.build import build_network
from mindgap.sequences import Sequence, Subset
from mindgap.shapes import Integer

_SAMPLED_VOXELS = 1024


@dataclass
class AlignedTeacher(AbstractMethod):
    """L = cross-entropy + Dice + alignment of the latents to an anchor.

    With SMU-Net's backbone, whose head has a sigmoid for each tumour class and no background, cross-entropy and Dice
    give way to SMU-Net's Dice, summed over classes: what SMU-Net's full path, which begins as such a teacher, goes on
    with.

    Attributes:
        anchor: What the latents are drawn to.
        incomplete: Learn also from cases that lack a sequence.
    """

    anchor: Anchor = field(default_factory=Anchor)
    incomplete: bool = False

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Segmentation terms, and "alignment" unless the anchor is none."""
        assert batch.target is not None
        seen = batch.select(self.subset)
        output: Output = self.networks["segmenter"](seen.image, seen.present)
        terms = terms_of_head(output, batch.target)
        alignment = self.anchor.distance(output, seen, self.subset, self.networks.get("anchor"))
        return terms if alignment is None else terms | {"alignment": alignment}

    def usable(self, available: Tensor, sequences: tuple[Sequence, ...]) -> Tensor:
        """Complete cases, or with ``incomplete`` and for any subset every case that has any of the sequences."""
        columns = [sequences.index(sequence) for sequence in self.subset]
        chosen = available[:, columns]
        return chosen.any(1) if self.incomplete or self.any_subset else chosen.all(1)

    def diagnose(self, network: nn.Module, batches: Iterable[Batch]) -> Diagnosis:
        """As :func:`diagnose_latents` has it."""
        return diagnose_latents(network, batches, self.subset, self.anchor)


@dataclass(frozen=True)
class TeacherRecipe(AbstractRecipe):
    """The aligned teacher: encoders per sequence, latents drawn to an anchor, a VNet on all of them.

    Attributes:
        anchor: What the latents are drawn to: none; normal (P_N, VAE heads); k, one sequence (P_k); mixture, their
            barycentre (P_*); and named ablations (docs/methods.md).
        k: The anchor sequence of P_k and of the literal forms.
        anchor_gradient: Let P_k's gradient reach the anchor sequence too.
        alignment_weight: Weight of the alignment term beside cross-entropy and Dice.
        align_over: Voxels compared: brain, or all (the literal reading).
        encoder: per_sequence; shared, one for all; joint, the authors' draft, in which every latent sees every
            sequence.
        backbone: What predicts from the latents: vnet, or smunet for a teacher with which SMU-Net's full path begins.
        latent_norm: What latents end in: brain, statistics over brain voxels shared by the sequences; batch, plain
            BatchNorm (the literal reading).
        incomplete: Learn also from cases that lack a sequence.
        force_literal: Train with anchor literal although it diverges.
    """

    anchor: AnchorName = "mixture"
    k: Sequence = Sequence.T1CE
    anchor_gradient: bool = False
    alignment_weight: float = 1.0
    align_over: Literal["brain", "all"] = "brain"
    encoder: Encoder = "per_sequence"
    backbone: Literal["vnet", "smunet"] = "vnet"
    latent_norm: Literal["brain", "batch"] = "brain"
    incomplete: bool = False
    force_literal: bool = False

    def build(self, parts: Parts) -> AlignedTeacher:
        """Build from parts."""
        demand_weights(self, "alignment_weight")
        refuse_unused(self.anchor, self)
        anchor = Anchor(self.anchor, self.k, self.anchor_gradient, self.align_over)
        anchor.check(
            parts.subset,
            encoder=self.encoder,
            latent_norm=self.latent_norm,
            incomplete=self.incomplete,
            force=self.force_literal,
        )
        arguments = {
            "sequences": len(parts.subset),
            "latent_channels": parts.latent_channels,
            "width": parts.width,
            "encoder": self.encoder,
            "backbone": self.backbone,
            "latent_norm": self.latent_norm,
            **anchor.network_arguments(),
        }
        networks = {"segmenter": build_network("aligned", arguments)}
        extra = anchor.extra_network()
        if extra is not None:
            networks["anchor"] = extra
        return AlignedTeacher(
            networks=networks,
            subset=parts.subset,
            architecture="aligned",
            arguments=arguments,
            players=(Player("segmenter", tuple(networks)),),
            term_weights={"alignment": self.alignment_weight},
            citations=("mindgap", "smunet" if self.backbone == "smunet" else "protokd"),
            anchor=anchor,
            incomplete=self.incomplete,
        )


@torch.no_grad()
def diagnose_latents(network: nn.Module, batches: Iterable[Batch], subset: Subset, anchor: Anchor) -> Diagnosis:
    """Anchor weights, and for each sequence distance to the barycentre and spread inside the brain; and latents.

    The weights are given as J * s_j, which sum to J (the paper's scale; with anchor literal, as w_j), and as their
    parameters a. The distance is always that to the barycentre, so that anchors compare; the term "alignment" in
    the log is that of the anchor itself. Latents of P_N may collapse to the prior, and are not refused.

    Args:
        network: With latents, in eval mode.
        batches: The validation cases, whole.
        subset: The columns it sees.
        anchor: What its latents are drawn to.

    Raises:
        MindgapError: The latents of a sequence have collapsed to a point, or an anchor weight is not finite.
    """
    found: dict[str, list[float]] = {}
    latents = []
    for number, batch in enumerate(batches):
        seen = batch.select(subset)
        output = network(seen.image, seen.present)
        for name, values in latent_summary(output, seen.present).items():
            for j, sequence in enumerate(subset):
                rows = [v for v, has in zip(values[:, j].tolist(), seen.present[:, j].tolist(), strict=True) if has]
                found.setdefault(f"{name}/{sequence}", []).extend(rows)
        latents.append(sample_latents(output, seen.present, seed=number))
    finite = {name: [v for v in values if v == v] for name, values in found.items()}
    means = {name: sum(values) / len(values) for name, values in finite.items() if values}
    flat = [name for name, value in means.items() if name.startswith("latent_spread/") and not value > 1e-3]
    if flat and anchor.name != "normal":
        raise MindgapError(
            f"the latents collapsed: {', '.join(flat)} is {means[flat[0]]:g} inside the brain, where it should be "
            "near 1. Train anew in another folder, with a lower --alignment-weight or --learning-rate."
        )
    return Diagnosis(means | _anchor_weights(network, subset), latents)


def _anchor_weights(network: nn.Module, subset: Subset) -> dict[str, float]:
    logits = dict(network.named_parameters()).get("anchor_logits")
    if logits is None:
        return {}
    free = logits.detach().float()
    if not bool(free.isfinite().all()):
        raise MindgapError(
            f"the anchor weights are not finite ({free.tolist()}): train anew in another folder, with a lower "
            "--anchor-learning-rate-factor or --alignment-weight."
        )
    kind = getattr(network, "weights", "softmax")
    shares = {"raw": free / len(subset), "ratio": free / free.sum()}.get(kind, torch.softmax(free, 0))
    scaled, raw = (len(subset) * shares).tolist(), free.tolist()
    return {f"anchor_weight/{s}": w for s, w in zip(subset, scaled, strict=True)} | {
        f"anchor_logit/{s}": a for s, a in zip(subset, raw, strict=True)
    }


def terms_of_head(output: Output, target: Integer[Tensor, "B i j k"]) -> dict[str, Tensor]:
    """The segmentation loss of a network's head: of a softmax over classes, or of a sigmoid for each tumour class."""
    if output.head == "sigmoid":
        return {"dice": sigmoid_dice_loss(output.logits, target)}
    return segmentation_terms(output.logits, target)


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


def sample_latents(output: Output, present: Tensor, *, seed: int) -> NDArray[np.float32]:
    """Latents of the one case of a batch at some brain voxels, the same in all sequences (J, N, C); NaN if absent."""
    inside = output.features["brain"][0, 0].cpu().numpy().reshape(-1).nonzero()[0]
    rng = np.random.default_rng([seed, 4])
    chosen = rng.choice(inside, _SAMPLED_VOXELS, replace=False) if len(inside) > _SAMPLED_VOXELS else inside
    rows = [z[0].flatten(1).float().cpu().numpy()[:, chosen].T for z in output.latents]
    return np.stack(
        [row if has else np.full_like(row, np.nan) for row, has in zip(rows, present[0].tolist(), strict=True)]
    )
