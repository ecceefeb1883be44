"""What students of a frozen teacher share: the cases it speaks on, and the teachers that are refused."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mindgap.batch import Batch, Output
from mindgap.errors import SettingError
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, Parts, rows_where_all
from mindgap.networks.card import TrainedNetwork
from mindgap.regions import CLASS_COUNT
from mindgap.sequences import Subset, format_subset
from mindgap.shapes import Bool, Integer

_TRIAL_SIDE = 32


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a teacher says about the cases of a batch that it can serve.

    Attributes:
        rows: Which rows of the batch these are.
        teacher: Its output on them.
        target: Their reference.
    """

    rows: Integer[Tensor, " R"]
    teacher: Output
    target: Integer[Tensor, "R i j k"]

    def taught(self, values: Tensor) -> Tensor:
        """The same rows of what a student says about the whole batch."""
        return values if len(self.rows) == len(values) else values[self.rows]


@dataclass
class Student(AbstractMethod):
    """A network on the subset that learns from the labels and from a frozen teacher that sees more.

    Cases on which the teacher lacks a sequence teach by their labels only.

    Attributes:
        teacher_subset: Columns the teacher takes.
        distilled: Names of the terms of :meth:`distil`.
    """

    teacher_subset: Subset = ()
    distilled: ClassVar[tuple[str, ...]] = ()

    def terms(self, player: str, batch: Batch) -> dict[str, Tensor]:
        """Segmentation terms, and what the teacher teaches or, where it can say nothing, zeros."""
        assert batch.target is not None
        seen = batch.select(self.subset)
        student: Output = self.networks["segmenter"](seen.image, seen.present)
        lesson = self.lesson(batch)
        taught = self.untaught(student) if lesson is None else self.distil(student, lesson)
        return segmentation_terms(student.logits, batch.target) | taught

    @abstractmethod
    def distil(self, student: Output, lesson: Lesson) -> dict[str, Tensor]:
        """Terms between what student and teacher say about the cases of a lesson."""

    def untaught(self, student: Output) -> dict[str, Tensor]:
        """The terms of :meth:`distil` for a batch on which the teacher can say nothing: 0."""
        return dict.fromkeys(self.distilled, student.logits.new_zeros((), dtype=torch.float32))

    def lesson(self, batch: Batch) -> Lesson | None:
        """Ask the teacher about the rows that hold all its sequences; None where no row does."""
        assert self.teacher is not None
        privileged = batch.select(self.teacher_subset)
        keep = rows_where_all(privileged.available)
        if not bool(keep.any()):
            return None
        rows = privileged.rows(keep)
        assert rows.target is not None
        with torch.no_grad():
            teacher: Output = self.teacher(rows.image, rows.available)
        return Lesson(keep.nonzero().flatten(), teacher, rows.target)

    def teacher_cases(self, available: Bool[Tensor, "N J"], sequences: Subset) -> int:
        """Cases that hold every sequence of the teacher."""
        columns = [sequences.index(sequence) for sequence in self.teacher_subset]
        return int(available[:, columns].all(1).sum())


def demand_teacher(parts: Parts, method: str) -> TrainedNetwork:
    """The teacher of some parts.

    Raises:
        SettingError: There is none, the data lacks one of its sequences, or it does not see all that the student sees
            and more.
    """
    if parts.teacher is None:
        raise SettingError(f"{method} distils from a teacher: name its run folder with --teacher.")
    taught, folder = parts.teacher.card.sequences, parts.teacher.folder
    strange = [sequence for sequence in taught if sequence not in parts.store_sequences]
    if strange:
        raise SettingError(
            f"the teacher in {folder} sees {format_subset(taught)}, but the data has no {strange[0]}: prepare data "
            "that has it, or name another --teacher."
        )
    unseen = [sequence for sequence in parts.subset if sequence not in taught]
    if unseen:
        raise SettingError(
            f"the teacher in {folder} was trained on {format_subset(taught)} and does not see {unseen[0]}, which a "
            f"student on {format_subset(parts.subset)} sees: name a teacher of all these sequences and more."
        )
    if set(taught) <= set(parts.subset):
        raise SettingError(
            f"the teacher in {folder} sees {format_subset(taught)}, nothing that a student on "
            f"{format_subset(parts.subset)} does not see: choose a smaller --subset."
        )
    return parts.teacher


def hear(teacher: TrainedNetwork, network: nn.Module, *, feature: str | None = None) -> Output:
    """What a frozen teacher says about an empty crop, to see whether a student can learn from it.

    Args:
        teacher: For the message.
        network: Its network, in eval mode.
        feature: A feature map that the student needs.

    Raises:
        SettingError: It has another head than the students, or not that feature.
    """
    sequences = len(teacher.card.sequences)
    with torch.no_grad():
        present = torch.ones(1, sequences, dtype=torch.bool)
        output: Output = network(torch.zeros(1, sequences, *[_TRIAL_SIDE] * 3), present)
    if output.head != "softmax" or output.logits.shape[1] != CLASS_COUNT:
        raise SettingError(
            f"the teacher in {teacher.folder} ends in {output.logits.shape[1]} outputs ({output.head}), a student in "
            f"{CLASS_COUNT} (softmax), and the two are compared: name a teacher trained with --backbone vnet."
        )
    if feature is not None and feature not in output.features:
        raise SettingError(
            f"the teacher in {teacher.folder} ({teacher.card.architecture}) gives no {feature!r} map to learn from: "
            "name a teacher trained with `mindgap train teacher`."
        )
    return output
