"""Modality dropout: one network for all subsets, trained on a random one each time. Also with MONAI's DynUNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mindgap.batch import Batch
from mindgap.errors import SettingError
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts
from mindgap.networks.build import build_network

FULL_SHARE = 0.2
"""Share of rows that keep all their sequences, the same for every method that draws subsets, so that they compare."""


def check_full_share(share: float) -> None:
    """Refuse what is no share.

    Raises:
        SettingError: It is not within 0..1.
    """
    if not 0 <= share <= 1:
        raise SettingError(f"full_share is {share}: it is a share of the rows, within 0 and 1.")


@dataclass
class ModalityDropout(AbstractMethod):
    """L = cross-entropy + Dice on a random subset of the sequences each case has.

    Attributes:
        full_share: Share of rows that keep all their sequences; the others draw one of the subsets of what they have,
            each alike.
    """

    full_share: float = 0.0
    any_subset: bool = True

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """The two terms of the segmentation loss."""
        assert batch.target is not None
        seen = batch.select(self.subset).drop(self.full_share)
        return segmentation_terms(self.networks["segmenter"](seen.image, seen.present).logits, batch.target)


@dataclass(frozen=True)
class DropoutRecipe(AbstractRecipe):
    """One VNet for every subset: absent sequences are background, maps say what is present, subsets are random.

    Attributes:
        full_share: Share of rows that keep all their sequences; the others draw one of the subsets alike.
        maps: Tell the network which sequences are present.
    """

    full_share: float = FULL_SHARE
    maps: bool = True

    def build(self, parts: Parts) -> ModalityDropout:
        """Build from parts."""
        arguments = {"sequences": len(parts.subset), "width": parts.width, "maps": self.maps}
        return _build("masked", arguments, parts, self.full_share, ("protokd",))


@dataclass(frozen=True)
class DynUNetRecipe(AbstractRecipe):
    """MONAI's DynUNet with sequence dropout, the outside comparator of every any-subset table (needs MONAI).

    Attributes:
        full_share: As for dropout.
    """

    full_share: float = FULL_SHARE

    def build(self, parts: Parts) -> ModalityDropout:
        """Build from parts."""
        arguments = {"sequences": len(parts.subset), "width": parts.width}
        return _build("dynunet", arguments, parts, self.full_share, ("monai", "nnunet"))


def _build(
    architecture: str, arguments: dict[str, Any], parts: Parts, full_share: float, citations: tuple[str, ...]
) -> ModalityDropout:
    check_full_share(full_share)
    return ModalityDropout(
        networks={"segmenter": build_network(architecture, arguments)},
        subset=parts.subset,
        architecture=architecture,
        arguments=arguments,
        citations=citations,
        full_share=full_share,
    )
