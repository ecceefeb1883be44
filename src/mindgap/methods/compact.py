"""The method of the network in the box: one small U-Net for every subset, which may teach itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mindgap.batch import Batch, Output
from mindgap.errors import SettingError
from mindgap.losses.segmentation import region_terms, segmentation_terms, soft_target_loss
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts, demand_weights
from mindgap.methods.dropout import FULL_SHARE, check_full_share
from mindgap.networks.build import build_network

Loss = Literal["regions", "classes"]


@dataclass
class Compact(AbstractMethod):
    """L = cross-entropy + Dice of the regions on a random part of what each case has; or also taught by the whole.

    With a weight for "distillation" every crop goes through the network twice in one batch, with everything the case
    has and with the part. What is said of everything is the soft target of what is said of the part (no gradient flows
    that way): where a sequence cannot show a border, its target is as unsure as the complete case is sure.

    Attributes:
        any_subset: It answers for every subset.
        full_share: Share of rows that keep all their sequences; with distillation every crop is seen whole anyway.
        single_share: Share of rows that keep one sequence.
        loss: Dice of the nested regions, or of the classes as the paper's base has it.
    """

    any_subset: bool = True
    full_share: float = FULL_SHARE
    single_share: float = 0.0
    loss: Loss = "regions"

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy and Dice of regions; with distillation the mean of both passes, and its divergence."""
        assert batch.target is not None
        seen = batch.select(self.subset)
        terms_of = region_terms if self.loss == "regions" else segmentation_terms
        if self.term_weights.get("distillation", 0.0) == 0:
            part = seen.drop(self.full_share, self.single_share)
            return terms_of(self.networks["segmenter"](part.image, part.present).logits, batch.target)
        part = seen.drop(0.0, self.single_share)
        present = torch.cat([seen.present, part.present])
        output: Output = self.networks["segmenter"](seen.image.repeat(2, 1, 1, 1, 1), present)
        whole, partial = output.logits.chunk(2)
        both = [terms_of(logits, batch.target) for logits in (whole, partial)]
        terms = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
        return terms | {"distillation": soft_target_loss(partial, whole)}


@dataclass(frozen=True)
class CompactRecipe(AbstractRecipe):
    """One small U-Net for every subset, from the mean and variance of what is present: the network in the box is one.

    Attributes:
        distillation_weight: Weight of the divergence from what it says of all sequences, which doubles the work of a
            step; 0 leaves it out.
        each: Whether the U-Net also sees every present sequence by itself, beside mean and variance.
        full_share: Share of rows that keep all their sequences.
        single_share: Share of rows that keep one sequence alone, each alike, which networks find hardest; the rest draw
            one of the subsets alike.
        own_share: Weight of a case's own statistics against running averages when its latents are normalised in
            prediction; a half for batches of two, which training normalises together.
        shared_norm: Whether latents are normalised with statistics shared by the sequences, or every sequence with its
            own: nothing is aligned here, and a lone sequence is not measured by the others.
        loss: regions: Dice of WT, TC and ET and plain cross-entropy; classes: the two terms of the paper's base.
    """

    distillation_weight: float = 0.0
    each: bool = True
    full_share: float = FULL_SHARE
    single_share: float = 0.0
    own_share: float = 0.5
    shared_norm: bool = True
    loss: Loss = "regions"

    def build(self, parts: Parts) -> Compact:
        """Build from parts."""
        check_full_share(self.full_share)
        if not self.single_share >= 0 or self.full_share + self.single_share > 1:
            raise SettingError(
                f"single_share is {self.single_share} and full_share {self.full_share}: shares of the rows, together "
                "at most 1."
            )
        if not 0 <= self.own_share <= 1:
            raise SettingError(f"own_share is {self.own_share}: it is a share, within 0 and 1.")
        demand_weights(self, "distillation_weight")
        arguments = {
            "sequences": len(parts.subset),
            "latent_channels": parts.latent_channels,
            "width": parts.width,
            "each": self.each,
            "own_share": self.own_share,
            "shared_norm": self.shared_norm,
        }
        return Compact(
            networks={"segmenter": build_network("fused_unet", arguments)},
            subset=parts.subset,
            architecture="fused_unet",
            arguments=arguments,
            term_weights={"distillation": self.distillation_weight},
            citations=("mindgap", "hemis", "nnunet"),
            full_share=self.full_share,
            single_share=self.single_share,
            loss=self.loss,
        )
