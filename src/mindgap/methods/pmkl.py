"""PMKL: privileged multimodal knowledge learning, a student on a subset that imitates a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mindgap.batch import Batch, Bool, Output
from mindgap.errors import SettingError
from mindgap.losses.distillation import contrastive_distillation, regularised_distillation
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts, Player, freeze, rows_where_all
from mindgap.networks import build_network
from mindgap.networks.heads import ContrastiveHead
from mindgap.sequences import Subset, format_subset


@dataclass
class Pmkl(AbstractMethod):
    """L = cross-entropy + Dice + weighted pixel and image terms of distillation.

    Cases on which the teacher lacks a sequence teach by their labels only.

    Attributes:
        teacher_subset: Columns the teacher takes.
        temperature: Of the pixel term.
    """

    teacher_subset: Subset = ()
    temperature: float = 10.0

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Segmentation terms, "pixel_distillation" and "image_distillation"."""
        assert batch.target is not None
        assert self.teacher is not None
        seen = batch.select(self.subset)
        student: Output = self.networks["segmenter"](seen.image, seen.present)
        terms = segmentation_terms(student.logits, batch.target)
        privileged = batch.select(self.teacher_subset)
        keep = rows_where_all(privileged.available)
        if not bool(keep.any()):
            # every network takes part in every step, or other processes would wait for its gradients
            heads = [p for name in ("student_head", "teacher_head") for p in self.networks[name].parameters()]
            zero = torch.stack([(p * 0).sum() for p in (student.logits.float(), *heads)]).sum()
            return terms | {"pixel_distillation": zero, "image_distillation": zero}
        rows = privileged.rows(keep)
        index = keep.nonzero().flatten()
        with torch.no_grad():
            teacher: Output = self.teacher(rows.image, rows.available)
        assert rows.target is not None
        terms["pixel_distillation"] = regularised_distillation(
            student.logits[index], teacher.logits, rows.target, temperature=self.temperature
        )
        terms["image_distillation"] = contrastive_distillation(
            self.networks["student_head"](student.features["feature"][index]),
            self.networks["teacher_head"](teacher.features["feature"]),
        )
        return terms

    def teacher_cases(self, available: Bool[Tensor, "N J"], sequences: Subset) -> int:
        """Cases that hold every sequence of the teacher."""
        columns = [sequences.index(sequence) for sequence in self.teacher_subset]
        return int(available[:, columns].all(1).sum())


@dataclass(frozen=True)
class PmklRecipe(AbstractRecipe):
    """A VNet on the subset that learns from the labels and from a frozen teacher that sees more sequences.

    Attributes:
        teacher: Run folder of the trained teacher.
        pixel_weight: Weight of the pixel term.
        image_weight: Weight of the contrastive image term.
        temperature: Softening of both networks' probabilities in the pixel term.
    """

    teacher: Path | None = None
    pixel_weight: float = 0.5
    image_weight: float = 0.5
    temperature: float = 10.0

    def teacher_path(self) -> Path | None:
        """Folder of the teacher."""
        return self.teacher

    def build(self, parts: Parts) -> Pmkl:
        """Build from parts, of which ``teacher`` has to be there."""
        if parts.teacher is None:
            raise SettingError("pmkl distils from a teacher: name its run folder with --teacher.")
        taught = parts.teacher.card.sequences
        strange = [sequence for sequence in taught if sequence not in parts.store_sequences]
        if strange:
            raise SettingError(
                f"the teacher in {parts.teacher.folder} sees {format_subset(taught)}, but the data has no {strange[0]}."
            )
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        teacher_width = int(parts.teacher.card.arguments.get("width", parts.width))
        return Pmkl(
            networks={
                "segmenter": build_network("vnet", arguments),
                "student_head": ContrastiveHead(parts.width),
                "teacher_head": ContrastiveHead(teacher_width),
            },
            subset=parts.subset,
            architecture="vnet",
            arguments=arguments,
            players=(Player("segmenter", ("segmenter", "student_head", "teacher_head")),),
            term_weights={"pixel_distillation": self.pixel_weight, "image_distillation": self.image_weight},
            teacher=freeze(parts.teacher.network),
            citations=("pmkl", "protokd"),
            teacher_subset=taught,
            temperature=self.temperature,
        )
