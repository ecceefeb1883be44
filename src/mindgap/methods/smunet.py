"""SMU-Net: two paths learn together, one on every sequence and one that lacks some; the second is what is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from mindgap.batch import Batch, Output
from mindgap.errors import SettingError
from mindgap.files import read_json
from mindgap.losses.cotraining import (
    adversarial_loss,
    consistency_loss,
    content_loss,
    ramp,
    sigmoid_dice_loss,
    style_loss,
)
from mindgap.methods.anchors import Anchor, AnchorName, refuse_unused
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Diagnosis, Parts, Player, demand_weights
from mindgap.methods.student import demand_teacher
from mindgap.methods.teacher import TeacherRecipe, diagnose_latents
from mindgap.networks.build import build_network
from mindgap.networks.card import TrainedNetwork
from mindgap.networks.heads import StyleDiscriminator
from mindgap.runfiles import SETTINGS
from mindgap.sequences import Sequence, Subset, format_subset
from mindgap.shapes import Bool

_STYLE, _JUDGE = 8, 4
"""Channels of the style, and of the discriminator's first convolution, in widths of a path."""
_ANCHORS_OWN = ("weighted", "weights", "weighting", "heads")
"""Arguments of an aligned network that follow from its anchor."""


@dataclass
class SmuNet(AbstractMethod):
    r"""Co-training of a full path F and a missing path M, which is the segmenter, against a style discriminator.

    $L = (1-\mu)D_F + \mu D_M + r(t)\,L_{cons} + 0.2\,L_{content} + 10^{-4}L_{style} + 2\cdot10^{-4}L_{adv}
    + \lambda L_{align}$: soft Dice of both paths, then what draws them together: probabilities ("consistency", rising),
    content, style (Gram matrices), and style maps of M that the discriminator should take for F's; and "alignment" of
    F's latents as in its teacher. The discriminator learns from the same maps to tell the paths apart.

    Attributes:
        full_subset: Columns of the full path.
        anchor: What the full path's latents are drawn to.
        rise: Share of the run during which the weight of the consistency rises.

    Reference:
        Azad, Khosravi, Merhof, SMU-Net, MIDL 2022, https://arxiv.org/abs/2204.02961, and its public code.
        We differ: both paths run in eval mode at validation; the discriminator's optimiser is made once, not in every
        step, so that it has a memory; and F is an aligned network, a front encoder per sequence before SMU-Net's own
        (our reading of how Mind the Gap aligned it: see :class:`SmuNetRecipe`).
    """

    full_subset: Subset = ()
    anchor: Anchor = field(default_factory=lambda: Anchor("none"))
    rise: float = 0.08

    def __post_init__(self) -> None:
        self._styles: WeakKeyDictionary[Batch, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Of the paths, or of the discriminator, which judges the style maps of the paths' own turn with this batch."""
        discriminator = self.networks["discriminator"]
        if player == "discriminator":
            # Computed anew they would cost a forward pass of both paths and count twice in running averages.
            full, missing = self._styles.pop(batch)
            cost = adversarial_loss(discriminator(full), called="full")
            return {"discrimination": cost + adversarial_loss(discriminator(missing), called="missing")}
        assert batch.target is not None
        whole, seen = batch.select(self.full_subset), batch.select(self.subset)
        one: Output = self.networks["full"](whole.image, whole.present)
        other: Output = self.networks["segmenter"](seen.image, seen.present)
        full, missing = one.features["style"], other.features["style"]
        self._styles[batch] = full.detach(), missing.detach()
        terms = {
            "full_dice": sigmoid_dice_loss(one.logits, batch.target),
            "dice": sigmoid_dice_loss(other.logits, batch.target),
            "consistency": consistency_loss(one.logits, other.logits),
            "content": content_loss(one.features["content"], other.features["content"]),
            "style": style_loss(full, missing),
            "adversarial": adversarial_loss(discriminator(missing), called="full"),
        }
        alignment = self.anchor.distance(one, whole, self.full_subset, self.networks.get("anchor"))
        return terms if alignment is None else terms | {"alignment": alignment}

    def weights(self, step: int, steps: int) -> Mapping[str, float]:
        """The consistency counts little at first."""
        risen = ramp(step, steps, share=self.rise)
        return {**self.term_weights, "consistency": self.term_weights["consistency"] * risen}

    def usable(self, available: Bool[Tensor, "N J"], sequences: Subset) -> Bool[Tensor, " N"]:
        """Cases that hold every sequence of the full path."""
        return available[:, [sequences.index(sequence) for sequence in self.full_subset]].all(1)

    def diagnose(self, network: nn.Module, batches: Iterable[Batch]) -> Diagnosis:
        """Of the full path, whose latents go on being aligned; the segmenter, which predicts, has none."""
        full = self.networks["full"]
        full = getattr(full, "module", full)  # what wraps it for several processes waits for all of them
        was = {module: module.training for module in full.modules()}  # settled normalisations stay settled
        try:
            return diagnose_latents(full.eval(), batches, self.full_subset, self.anchor)
        finally:
            for module, training in was.items():
                module.training = training


@dataclass(frozen=True)
class SmuNetRecipe(AbstractRecipe):
    """Two paths co-trained with matched content and style, one on every sequence, one on the subset, which is kept.

    The full path begins as an aligned teacher trained with --backbone smunet, goes on learning, and stays drawn to its
    anchor; without a teacher it begins from scratch. Cases that lack a sequence of the full path are left out.
    The release trains with Adam at --learning-rate 1e-4.

    Attributes:
        teacher: Run folder of an aligned teacher with SMU-Net's backbone, where the full path begins.
        anchor: What the full path's latents are drawn to: auto is the teacher's anchor, or mixture without a teacher;
            none is SMU-Net without alignment.
        k: The anchor sequence of P_k without a teacher; a teacher's own otherwise.
        alignment_weight: Weight of the alignment term.
        missing_share: mu, weight of the missing path's Dice; 1 - mu is that of the full path's.
        consistency_weight: Weight of the consistency once it has risen.
        rise: Share of the steps during which it rises.
        content_weight: Weight of the content term.
        style_weight: Weight of the Gram matrices.
        adversarial_weight: Weight of the discriminator's verdict on the missing path.
        dropout: In front of both decoders, while training.
    """

    teacher: Path | None = None
    anchor: Literal["auto", AnchorName] = "auto"
    k: Sequence = Sequence.T1CE
    alignment_weight: float = 1.0
    missing_share: float = 0.6
    consistency_weight: float = 10.0
    rise: float = 0.08
    content_weight: float = 0.2
    style_weight: float = 1e-4
    adversarial_weight: float = 2e-4
    dropout: float = 0.2

    def teacher_path(self) -> Path | None:
        """Folder of the network the full path begins as."""
        return self.teacher

    def build(self, parts: Parts) -> SmuNet:
        """Build from parts; a ``teacher`` among them is copied, not changed."""
        self._check()
        subset, anchor, networks = self._full_path(parts)
        refuse_unused(anchor.name, self)
        if not set(parts.subset) < set(subset):
            raise SettingError(
                f"smunet's full path sees {format_subset(subset)}, its missing path {format_subset(parts.subset)}, "
                "which has to be less: choose a smaller --subset."
            )
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        networks["segmenter"] = build_network("smunet", arguments)
        for module in (m for network in networks.values() for m in network.modules()):
            if isinstance(module, nn.Dropout):
                module.p = self.dropout
        discriminator = StyleDiscriminator(_STYLE * parts.width, width=_JUDGE * parts.width)
        return SmuNet(
            networks={**networks, "discriminator": discriminator},
            subset=parts.subset,
            architecture="smunet",
            arguments=arguments,
            players=(Player("segmenter", tuple(networks)), Player("discriminator", ("discriminator",))),
            term_weights={
                "full_dice": 1 - self.missing_share,
                "dice": self.missing_share,
                "consistency": self.consistency_weight,
                "content": self.content_weight,
                "style": self.style_weight,
                "adversarial": self.adversarial_weight,
                "alignment": self.alignment_weight,
            },
            citations=("smunet", "mindgap"),
            full_subset=subset,
            anchor=anchor,
            rise=self.rise,
        )

    def _check(self) -> None:
        if not (0 <= self.missing_share <= 1 and 0 <= self.rise <= 1 and 0 <= self.dropout < 1):
            raise SettingError("missing_share and rise are shares, 0 to 1; dropout lies from 0 to below 1.")
        weights = ("alignment_weight", "consistency_weight", "content_weight", "style_weight", "adversarial_weight")
        demand_weights(self, *weights)

    def _full_path(self, parts: Parts) -> tuple[Subset, Anchor, dict[str, nn.Module]]:
        """Sequences, anchor and networks of the full path."""
        if parts.teacher is None:
            name = "mixture" if self.anchor == "auto" else self.anchor
            recipe = TeacherRecipe(anchor=name, k=self.k, backbone="smunet")
            fresh = recipe.build(replace(parts, subset=parts.store_sequences))
            segmenter = fresh.networks.pop("segmenter")
            return fresh.subset, fresh.anchor, {"full": segmenter, **fresh.networks}
        teacher = demand_teacher(parts, "smunet")
        found, wanted = _backbone(teacher), ("aligned", "smunet", parts.width)
        if found != wanted:
            raise SettingError(
                f"the teacher in {teacher.folder} is {found[0]} with backbone {found[1]} and width {found[2]}, and "
                f"smunet's full path begins as {wanted[0]} with backbone {wanted[1]} and width {wanted[2]}: train one "
                f"with `mindgap train teacher --backbone smunet --width {parts.width}`."
            )
        anchor = self._anchor_of(teacher)
        extra = anchor.extra_network()
        full = copy.deepcopy(teacher.network).requires_grad_(True).train()
        return teacher.card.sequences, anchor, {"full": full, **({} if extra is None else {"anchor": extra})}

    def _anchor_of(self, teacher: TrainedNetwork) -> Anchor:
        """The anchor a teacher was trained with, from the settings beside it, or the one named where there are none."""
        path = teacher.folder / SETTINGS
        if path.is_file():
            value = read_json(path)["method"]
            over = value.get("align_over", "brain")
            anchor = Anchor(value["anchor"], Sequence(value["k"]), value["anchor_gradient"], over)
            if self.anchor not in ("auto", anchor.name):
                raise SettingError(
                    f"the teacher in {teacher.folder} has anchor {anchor.name}, not {self.anchor}: leave --anchor out."
                )
            if self.k not in (Sequence.T1CE, anchor.k):  # what is not given cannot be told from T1ce
                raise SettingError(f"the teacher in {teacher.folder} has k={anchor.k}, not {self.k}: leave --k out.")
            return anchor
        if self.anchor == "auto":
            raise SettingError(f"{path} is missing, so that the teacher's anchor is not known: name it with --anchor.")
        anchor = Anchor(self.anchor, self.k)
        own = {name: value for name, value in teacher.card.arguments.items() if name in _ANCHORS_OWN}
        if own != anchor.network_arguments():
            raise SettingError(f"the teacher in {teacher.folder} has another anchor than {self.anchor}: name its own.")
        return anchor


def _backbone(teacher: TrainedNetwork) -> tuple[str, str, int]:
    arguments = teacher.card.arguments
    return teacher.card.architecture, arguments.get("backbone", "vnet"), int(arguments.get("width", 16))
