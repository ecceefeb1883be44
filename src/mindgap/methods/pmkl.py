"""PMKL: privileged multimodal knowledge learning, a student on a subset that imitates a frozen teacher.

Reference:
    Chen et al., Learning With Privileged Multimodal Knowledge for Unimodal Segmentation, IEEE TMI 2022. We differ, as
    Mind the Gap does: teacher and student are VNets, Adam optimises, there are four classes, and a student of several
    sequences sees them as channels instead of one sequence four times. Cross-entropy and Dice are ProtoKD's, as those
    of all students here; PMKL's own cross-entropy clips probabilities at .005 and is a mean over voxels, not one
    divided by the weights. Weight decay of the optimiser stands for its L2 term on kernels. The image term pools to
    2^3, where the released code pools with a stride of 1; the pixel term of a batch in which the teacher is nowhere
    better than the student is 0, where the released code divides 0 by 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mindgap.batch import Output
from mindgap.losses.distillation import contrastive_distillation, regularised_distillation
from mindgap.methods.base import AbstractRecipe, Parts, Player, demand_temperature, demand_weights, freeze
from mindgap.methods.student import Lesson, Student, demand_teacher, hear
from mindgap.networks.build import build_network
from mindgap.networks.heads import ContrastiveHead


@dataclass
class Pmkl(Student):
    """L = cross-entropy + Dice + weighted pixel and image terms of distillation.

    Attributes:
        temperature: Of the pixel term.
    """

    temperature: float = 10.0
    distilled = ("pixel_distillation", "image_distillation")

    def distil(self, student: Output, lesson: Lesson) -> dict[str, Tensor]:
        """Between the logits, and between embeddings of the full-resolution features."""
        teacher = lesson.teacher
        return {
            "pixel_distillation": regularised_distillation(
                lesson.taught(student.logits), teacher.logits, lesson.target, temperature=self.temperature
            ),
            "image_distillation": contrastive_distillation(
                self.networks["student_head"](lesson.taught(student.features["feature"])),
                self.networks["teacher_head"](teacher.features["feature"]),
            ),
        }

    def untaught(self, student: Output) -> dict[str, Tensor]:
        """Zeros that both heads take part in, or other processes would wait for their gradients."""
        heads = [p for name in ("student_head", "teacher_head") for p in self.networks[name].parameters()]
        zero = torch.stack([(p * 0).sum() for p in (student.logits.float(), *heads)]).sum()
        return dict.fromkeys(self.distilled, zero)


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
        demand_weights(self, "pixel_weight", "image_weight")
        demand_temperature(self.temperature)
        taught_by = demand_teacher(parts, "pmkl")
        teacher = freeze(taught_by.network)
        channels = hear(taught_by, teacher, feature="feature").features["feature"].shape[1]
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        return Pmkl(
            networks={
                "segmenter": build_network("vnet", arguments),
                "student_head": ContrastiveHead(parts.width),
                "teacher_head": ContrastiveHead(channels),
            },
            subset=parts.subset,
            architecture="vnet",
            arguments=arguments,
            players=(Player("segmenter", ("segmenter", "student_head", "teacher_head")),),
            term_weights={"pixel_distillation": self.pixel_weight, "image_distillation": self.image_weight},
            teacher=teacher,
            citations=("pmkl", "protokd"),
            teacher_subset=taught_by.card.sequences,
            temperature=self.temperature,
        )
