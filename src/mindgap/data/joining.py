"""Other cohorts that join those that train: phantoms beside few patients, or cases from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mindgap.data.cohort import Cohort
from mindgap.data.folders import visible
from mindgap.data.patients import of_same_patients, patient_of
from mindgap.data.splits import Split
from mindgap.data.store import StoredCase
from mindgap.errors import InputError, SettingError
from mindgap.regions import CONVENTIONS, LabelConvention


@dataclass(frozen=True)
class Joined:
    """A cohort whose cases train, and neither choose nor judge.

    Attributes:
        source: Its folder, as the user named it.
        convention: Of its labels.
        cases: Those with a label.
    """

    source: str
    convention: str
    cases: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """As the index of a store holds it."""
        return {**asdict(self), "cases": list(self.cases)}


def convention_of(cohort: Cohort) -> LabelConvention:
    """How the labels of a cohort are numbered.

    Raises:
        SettingError: Its files do not tell.
    """
    if cohort.convention is None:
        names = ", ".join(CONVENTIONS)
        raise SettingError(
            f"the label convention of {cohort.root} is not clear from its files: name it with --labels, or, of a "
            f"cohort that joins, behind its folder (--also {cohort.root}=NAME): {names}."
        )
    return cohort.convention


def join(split: Split, cohort: Cohort, others: Sequence[Cohort]) -> tuple[Split, list[Joined]]:
    """A split with the cases of other cohorts among those that train, and which these are.

    Args:
        split: Of the cohort.
        cohort: Whose cases also choose and judge.
        others: Whose cases train.

    Raises:
        SettingError: Two cohorts have a case of one name, or a label convention is not known.
        InputError: A case is a scan of a patient whom the split withholds from training, at hand or not.
    """
    known = {files.case_id: cohort for files in cohort.cases}
    joined: list[Joined] = []
    for other in others:
        ids = tuple(sorted(files.case_id for files in other.cases if files.label is not None))
        twice = next((case_id for case_id in ids if case_id in known), None)
        if twice is not None:
            raise SettingError(
                f"{twice} is a case of {known[twice].root} and of {other.root}: rename one, so that no case stands for "
                "two."
            )
        withheld = (*split.validation, *split.test, *split.withheld)
        leaked = of_same_patients(ids, withheld)
        if leaked:
            raise InputError(
                case=f"{other.root}: {leaked[0]}",
                expected=f"cases that may train under split {split.name}",
                found=f"{len(leaked)} of patients who are to choose or judge, such as {patient_of(leaked[0])}",
                mend="leave them out of the cohort that joins",
            )
        known |= dict.fromkeys(ids, other)
        joined.append(Joined(str(visible(other.root)), convention_of(other).name, ids))
        name = f"{split.name}, and {other.root.resolve().name} to train"
        split = replace(split, name=name, train=(*split.train, *ids))
    return split, joined


def refuse_twins(split: Split, joined: Sequence[Joined], cases: Mapping[str, StoredCase]) -> None:
    """Refuse a case that joined and, under another name, judges or chooses: editions of a data set share patients.

    Found are images and labels that are the same, voxel by voxel, after preparation.

    Raises:
        InputError: There is one.
    """
    train = {cases[case_id].sha256: case_id for one in joined for case_id in one.cases if case_id in cases}
    for case_id in (*split.validation, *split.test):
        twin = train.get(cases[case_id].sha256) if case_id in cases else None
        if twin is not None:
            raise InputError(
                case=f"split {split.name}",
                expected="every patient in one list",
                found=f"{twin}, which is to train, is {case_id}, which is to choose or judge, voxel by voxel",
                mend="leave one of them out: it is one patient under two names",
            )
