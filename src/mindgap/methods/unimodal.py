"""The baseline: one VNet on the sequences at hand, no teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mindgap.batch import Batch
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts
from mindgap.networks.build import build_network


class Unimodal(AbstractMethod):
    """L = cross-entropy + Dice of a VNet that sees only the subset; with one sequence the paper's "Unimodal"."""

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """The two terms of the segmentation loss."""
        assert batch.target is not None
        seen = batch.select(self.subset)
        return segmentation_terms(self.networks["segmenter"](seen.image, seen.present).logits, batch.target)


@dataclass(frozen=True)
class UnimodalRecipe(AbstractRecipe):
    """A VNet on the subset, trained alone: the baseline every student is compared with."""

    def build(self, parts: Parts) -> Unimodal:
        """Build from parts."""
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        return Unimodal(
            networks={"segmenter": build_network("vnet", arguments)},
            subset=parts.subset,
            architecture="vnet",
            arguments=arguments,
            citations=("protokd",),
        )
