"""One case under evaluation: every sequence is opened and prepared once, when a subset first asks for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case, CaseFiles
from mindgap.data.preparation import WORKING_ORIENTATION, prepare_case
from mindgap.data.prepared import Preparation, PreparedCase, join_prepared, slices_of
from mindgap.data.volume import orientation_of
from mindgap.errors import InputError
from mindgap.evaluation.rules import Rules
from mindgap.regions import LabelConvention
from mindgap.sequences import SEQUENCES, Sequence, Subset, format_subset

_Number = TypeVar("_Number", bound=np.generic)

BRATS_SHAPE = (240, 240, 155)
PROTOKD_CROP = ((24, 216), (24, 216), (5, 145))
"""What ProtoKD keeps of a BraTS volume, in the order of the file's axes."""


class OpenedCase:
    """A case that gives any of its subsets, as if the other sequences did not exist.

    Preparing a sequence depends on no other, so that fifteen subsets need four preparations. Only files of the
    sequences asked for are opened, unless the protocol is "leaky".

    Args:
        files: The case on disk.
        convention: Of its label.
        preparation: How the network was trained to see it.
        rules: Protocol and crop.
    """

    def __init__(self, files: CaseFiles, convention: LabelConvention, preparation: Preparation, rules: Rules) -> None:
        self.files, self.convention, self.preparation, self.rules = files, convention, preparation, rules
        self._alone: dict[Sequence, Case] = {}
        self._prepared: dict[Sequence, PreparedCase] = {}

    def case(self, subset: Subset) -> Case:
        """The sequences of a subset and the reference, checked against each other.

        Raises:
            InputError: A file is absent or cannot be used, or there is no reference.
        """
        for sequence in subset:
            if sequence not in self._alone:
                self._alone[sequence] = self._open(sequence)
        return Case(
            self.files.case_id,
            {sequence: self._alone[sequence].images[sequence] for sequence in subset},
            self._alone[subset[0]].target,
        )

    def prepared(self, subset: Subset) -> PreparedCase:
        """The subset as a network takes it.

        Raises:
            InputError: As :meth:`case`; a case that is not complete under the protocol "leaky".
        """
        self.case(subset)
        whole = self._whole if self.rules.protocol == "leaky" else None
        for sequence in subset:
            if sequence not in self._prepared:
                alone = replace(self._alone[sequence], target=None)
                self._prepared[sequence] = prepare_case(alone, self.preparation, brain_of=whole)
        return join_prepared(self._prepared[sequence] for sequence in subset)

    @cached_property
    def _whole(self) -> Case:
        if self.files.sequences != SEQUENCES:
            raise InputError(
                case=self.files.case_id,
                expected="all four sequences: the leaky protocol takes crop and intensity scale from all of them",
                found=format_subset(self.files.sequences),
                mend="evaluate with --protocol strict",
            )
        return self.case(SEQUENCES)

    def _open(self, sequence: Sequence) -> Case:
        case = self.files.load((sequence,), convention=self.convention)
        if case.target is None:
            raise InputError(
                case=self.files.case_id,
                expected="a reference segmentation to score against",
                found="none",
                mend="add a file named *seg*, name it in a .csv manifest (BIDS), or use `mindgap segment`",
            )
        return protokd_crop(case) if self.rules.protokd_crop else case


def protokd_crop(case: Case) -> Case:
    """The case with background outside ProtoKD's fixed crop, in images and reference, on the grid it had.

    Args:
        case: On the grid of BraTS.

    Raises:
        InputError: It lies on another grid.

    Reference:
        ProtoKD's public code: 140 x 192 x 192 of 155 x 240 x 240 voxels; tumour outside counts for nothing. We differ:
        intensity statistics come from the brain within the crop, theirs from the whole brain.
    """
    shape, codes = case.reference.array.shape, orientation_of(case.reference.affine)
    if shape != BRATS_SHAPE or codes != WORKING_ORIENTATION:
        raise InputError(
            case=case.case_id,
            expected=f"the grid of BraTS, {BRATS_SHAPE} {WORKING_ORIENTATION}, which the ProtoKD crop is defined on",
            found=f"{shape} {codes}",
            mend="evaluate without --protokd-crop",
        )
    inside = slices_of(PROTOKD_CROP)

    def blank(array: NDArray[_Number]) -> NDArray[_Number]:
        cropped = np.zeros_like(array)
        cropped[inside] = array[inside]
        return cropped

    images = {sequence: replace(volume, array=blank(volume.array)) for sequence, volume in case.images.items()}
    return Case(case.case_id, images, None if case.target is None else blank(case.target))
