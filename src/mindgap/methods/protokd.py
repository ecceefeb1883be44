"""ProtoKD: a student on a subset that imitates a frozen teacher's probabilities and likeness to class prototypes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mindgap.batch import Output
from mindgap.losses.distillation import elementwise_distillation, prototype_distillation
from mindgap.methods.base import AbstractRecipe, Parts, demand_temperature, demand_weights, freeze
from mindgap.methods.student import Lesson, Student, demand_teacher, hear
from mindgap.networks.build import build_network


@dataclass
class ProtoKd(Student):
    r"""$L = L_{seg} + \alpha L_{kd} + \beta L_{proto}$.

    $L_{seg}$ is cross-entropy + Dice, $L_{kd}$ "elementwise_distillation" of the logits, $L_{proto}$
    "prototype_distillation" of the full-resolution features. A class counts in the latter where every case of the batch
    that the teacher can serve has it.

    Attributes:
        temperature: Of the softened probabilities.

    Reference:
        Wang et al., Prototype Knowledge Distillation for Medical Segmentation with Missing Modality, ICASSP 2023,
        https://arxiv.org/abs/2303.09830, and its public code.
    """

    temperature: float = 10.0
    distilled = ("elementwise_distillation", "prototype_distillation")

    def distil(self, student: Output, lesson: Lesson) -> dict[str, Tensor]:
        """Between the logits, and between likenesses to class prototypes."""
        teacher = lesson.teacher
        return {
            "elementwise_distillation": elementwise_distillation(
                lesson.taught(student.logits), teacher.logits, temperature=self.temperature
            ),
            "prototype_distillation": prototype_distillation(
                lesson.taught(student.features["feature"]), teacher.features["feature"], lesson.target
            ),
        }


@dataclass(frozen=True)
class ProtoKdRecipe(AbstractRecipe):
    """A VNet on the subset that imitates a frozen teacher's probabilities and its similarities to class prototypes.

    The release computes a poly schedule for the student but never applies it: ``--schedule constant`` does the same.

    Attributes:
        teacher: Run folder of the trained teacher.
        pixel_weight: alpha, weight of the softened probabilities (a mean over all elements, without T^2).
        prototype_weight: beta, weight of the prototype term.
        temperature: T, softening of both networks' probabilities.
    """

    teacher: Path | None = None
    pixel_weight: float = 10.0
    prototype_weight: float = 0.1
    temperature: float = 10.0

    def teacher_path(self) -> Path | None:
        """Folder of the teacher."""
        return self.teacher

    def build(self, parts: Parts) -> ProtoKd:
        """Build from parts, of which ``teacher`` has to be there; it may be of another width."""
        demand_weights(self, "pixel_weight", "prototype_weight")
        demand_temperature(self.temperature)
        taught_by = demand_teacher(parts, "protokd")
        teacher = freeze(taught_by.network)
        hear(taught_by, teacher, feature="feature")
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        return ProtoKd(
            networks={"segmenter": build_network("vnet", arguments)},
            subset=parts.subset,
            architecture="vnet",
            arguments=arguments,
            term_weights={
                "elementwise_distillation": self.pixel_weight,
                "prototype_distillation": self.prototype_weight,
            },
            teacher=teacher,
            citations=("protokd",),
            teacher_subset=taught_by.card.sequences,
            temperature=self.temperature,
        )
