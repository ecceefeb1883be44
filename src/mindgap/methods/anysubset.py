"""The aligned any-subset network: what alignment is for. Fuse the latents of whatever is present."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mindgap.batch import Batch, Output
from mindgap.losses.alignment import align_to_mixture
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractRecipe, Parts, demand_weights
from mindgap.methods.dropout import FULL_SHARE, check_full_share
from mindgap.methods.teacher import AlignedTeacher
from mindgap.networks.build import build_network


@dataclass
class AnySubset(AlignedTeacher):
    """L = cross-entropy + Dice on a random subset + distance of the present latents to their barycentre.

    Attributes:
        full_share: Share of rows that keep all their sequences.
    """

    full_share: float = 0.0
    any_subset: bool = True

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Segmentation terms, and "alignment" where its weight is not 0."""
        assert batch.target is not None
        seen = batch.select(self.subset).drop(self.full_share)
        output: Output = self.networks["segmenter"](seen.image, seen.present)
        terms = segmentation_terms(output.logits, batch.target)
        if self.term_weights.get("alignment", 0.0) == 0:
            return terms
        with torch.autocast(seen.image.device.type, enabled=False):
            weights, brain = output.features["sequence_weights"], output.features["brain"]
            return terms | {"alignment": align_to_mixture(output.latents, weights, seen.present, brain)}


@dataclass(frozen=True)
class AnySubsetRecipe(AbstractRecipe):
    """One network for every subset: encoders per sequence, latents drawn together, their mean and variance into a VNet.

    Attributes:
        alignment_weight: Weight of the distance to the barycentre of the present latents; 0 leaves it out.
        full_share: Share of rows that keep all their sequences; the others draw one of the subsets alike.
    """

    alignment_weight: float = 0.3
    full_share: float = FULL_SHARE

    def build(self, parts: Parts) -> AnySubset:
        """Build from parts."""
        check_full_share(self.full_share)
        demand_weights(self, "alignment_weight")
        arguments = {
            "sequences": len(parts.subset),
            "latent_channels": parts.latent_channels,
            "width": parts.width,
        }
        return AnySubset(
            networks={"segmenter": build_network("fused", arguments)},
            subset=parts.subset,
            architecture="fused",
            arguments=arguments,
            term_weights={"alignment": self.alignment_weight},
            citations=("mindgap", "hemis", "protokd"),
            full_share=self.full_share,
        )
