"""KD-Net: a student on a subset that imitates a frozen teacher's probabilities and deepest features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mindgap.batch import Output
from mindgap.errors import SettingError
from mindgap.losses.distillation import bottleneck_distillation, softened_distillation
from mindgap.methods.base import AbstractRecipe, Parts, demand_temperature, demand_weights, freeze
from mindgap.methods.student import Lesson, Student, demand_teacher, hear
from mindgap.networks.build import build_network

_DEEPEST = 16
"""A VNet has this many times its width of channels at the bottleneck."""


@dataclass
class KdNet(Student):
    r"""$L = \lambda L_{SEG} + (1-\lambda) L_{GKD} + \alpha L_{KL}$.

    $L_{SEG}$ is cross-entropy + Dice, $L_{GKD}$ "softened_distillation" of the logits, $L_{KL}$
    "bottleneck_distillation" of the deepest features.

    Attributes:
        temperature: Of the softened probabilities.

    Reference:
        Hu, Maillard et al., Knowledge Distillation from Multi-modal to Mono-modal Segmentation Networks, MICCAI 2020,
        https://arxiv.org/abs/2106.09564.
        We differ: the backbone is the VNet of all students here, and so is the segmentation loss.
    """

    temperature: float = 5.0
    distilled = ("softened_distillation", "bottleneck_distillation")

    def distil(self, student: Output, lesson: Lesson) -> dict[str, Tensor]:
        """Between the logits, and between the deepest features."""
        teacher = lesson.teacher
        return {
            "softened_distillation": softened_distillation(
                lesson.taught(student.logits), teacher.logits, temperature=self.temperature
            ),
            "bottleneck_distillation": bottleneck_distillation(
                lesson.taught(student.features["bottleneck"]), teacher.features["bottleneck"]
            ),
        }


@dataclass(frozen=True)
class KdNetRecipe(AbstractRecipe):
    """A VNet on the subset that imitates the softened probabilities and the deepest features of a frozen teacher.

    The defaults are recalled from the paper, not checked: no official code is known.

    Attributes:
        teacher: Run folder of the trained teacher.
        segmentation_share: lambda, weight of the segmentation loss; 1 - lambda is that of the softened probabilities.
        bottleneck_weight: alpha, weight of the term between the deepest features.
        temperature: T, softening of both networks' probabilities.
    """

    teacher: Path | None = None
    segmentation_share: float = 0.75
    bottleneck_weight: float = 10.0
    temperature: float = 5.0

    def teacher_path(self) -> Path | None:
        """Folder of the teacher."""
        return self.teacher

    def build(self, parts: Parts) -> KdNet:
        """Build from parts, of which ``teacher`` has to be there."""
        if not 0 <= self.segmentation_share <= 1:
            raise SettingError(f"--segmentation-share is {self.segmentation_share:g}: it is a share, 0 to 1.")
        demand_weights(self, "bottleneck_weight")
        demand_temperature(self.temperature)
        taught_by = demand_teacher(parts, "kdnet")
        teacher = freeze(taught_by.network)
        deepest = hear(taught_by, teacher, feature="bottleneck").features["bottleneck"].shape[1]
        if deepest != _DEEPEST * parts.width:
            raise SettingError(
                f"the teacher in {taught_by.folder} has {deepest} channels at its bottleneck, a student of --width "
                f"{parts.width} has {_DEEPEST * parts.width}, and the two are compared: train both with one --width."
            )
        arguments = {"channels_in": len(parts.subset), "width": parts.width}
        share = self.segmentation_share
        return KdNet(
            networks={"segmenter": build_network("vnet", arguments)},
            subset=parts.subset,
            architecture="vnet",
            arguments=arguments,
            term_weights={
                "cross_entropy": share,
                "dice": share,
                "softened_distillation": 1 - share,
                "bottleneck_distillation": self.bottleneck_weight,
            },
            teacher=teacher,
            citations=("kdnet", "protokd"),
            teacher_subset=taught_by.card.sequences,
            temperature=self.temperature,
        )
