"""Which cases train, which choose, which judge: published lists, lists in a folder, or fractions by seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import abc
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from mindgap.data.patients import by_patient, of_same_patients, patient_of
from mindgap.errors import InputError, SettingError

PUBLISHED: dict[str, str] = {"protokd": "BraTS 2018 training set, 200/28/57 (ProtoKD repository)"}
"""Splits that are shipped, and what they are splits of."""


@dataclass(frozen=True)
class Split:
    """Three disjoint lists of cases; all scans of a patient stand in one of them.

    Attributes:
        name: Where it comes from, for records.
        train: Cases the weights are fitted to.
        validation: Cases that choose among settings and checkpoints.
        test: Cases that only judge.
        withheld: Cases that may not train, whether they are at hand or not: those that the lists have for validation
            and test, or for the test where this is a fold of them.

    Raises:
        InputError: A case stands in two lists, or twice in one; scans of one patient stand in two lists.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    withheld: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part, ids in self._parts().items():
            for case_id in ids:
                if case_id in seen:
                    raise InputError(
                        case=f"split {self.name}",
                        expected="every case in one list, once",
                        found=f"{case_id} in {seen[case_id]} and {part}",
                        mend="strike it from one: a case that trained cannot judge",
                    )
                seen[case_id] = part
        self._refuse_shared_patients()

    @property
    def sha256(self) -> str:
        """Hash of the three sorted lists: equal hashes, equal splits, whatever the order of the lines."""
        lists = {part: sorted(ids) for part, ids in self._parts().items()}
        return hashlib.sha256(json.dumps(lists, sort_keys=True).encode("utf-8")).hexdigest()

    def restrict(self, case_ids: abc.Iterable[str]) -> Split:
        """Keep the cases that exist, in the order of the lists.

        Args:
            case_ids: The cases at hand.
        """
        there = set(case_ids)
        kept = {part: tuple(case for case in ids if case in there) for part, ids in self._parts().items()}
        return Split(self.name, **kept)

    def unassigned(self, case_ids: abc.Iterable[str]) -> tuple[str, ...]:
        """The cases that are in none of the lists, sorted; a caller has to tell its user about them."""
        return tuple(sorted(set(case_ids).difference(self.train, self.validation, self.test)))

    def _refuse_shared_patients(self) -> None:
        parts = self._parts()
        for part, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
            shared = of_same_patients(parts[later], parts[part])
            if shared:
                raise InputError(
                    case=f"split {self.name}",
                    expected="all scans of a patient in one list",
                    found=f"{shared[0]} in {later}, and {patient_of(shared[0])} in {part}, too ({len(shared)} cases)",
                    mend="move them into one list: who trained cannot judge at another time point either",
                )

    def _parts(self) -> dict[str, tuple[str, ...]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def find_split(spec: str, case_ids: abc.Sequence[str], *, seed: int = 0) -> Split:
    """The split a word stands for, restricted to the cases at hand.

    Args:
        spec: A published name ("protokd"), a folder with one ``*train*.txt``, ``*val*.txt`` and
            ``*test*.txt`` (one id per line), or fractions of train/validation/test such as "0.7/0.1/0.2", of patients.
            With ":2/4" behind it, fold 2 of a cross-validation with 4 folds over its training and validation cases.
        case_ids: The cases at hand.
        seed: Of the draw by fractions; lists ignore it.

    Raises:
        SettingError: The word stands for nothing, or the fractions are no fractions.
        InputError: The lists overlap, are missing, or leave no case to train or to validate on.

    Example:
        >>> split = find_split("0.5/0.25/0.25", ["a", "b", "c", "d"])
        >>> [len(part) for part in (split.train, split.validation, split.test)]
        [2, 1, 1]
    """
    spec, fold = _fold_of(spec)
    if spec in PUBLISHED:
        split = published_split(spec)
    elif re.fullmatch(r"[\d.]+(/[\d.]+)*", spec.strip()):
        split = _draw(spec.strip(), case_ids, seed)
    elif Path(spec).is_dir():
        texts = {file.name: file.read_text(encoding="utf-8-sig") for file in sorted(Path(spec).glob("*.txt"))}
        split = _from_lists(texts, Path(spec).resolve().name)
    else:
        raise SettingError(
            f"split {spec!r} is none: give {', '.join(PUBLISHED)}, a folder with train, val and test "
            "lists (.txt), or fractions such as 0.7/0.1/0.2."
        )
    restricted = split.restrict(case_ids)
    if fold is not None:
        return replace(_fold(restricted, *fold), withheld=split.test)
    for part, ids in (("train", restricted.train), ("validation", restricted.validation)):
        if not ids:
            raise InputError(
                case=f"split {split.name}",
                expected=f"at least one {part} case among the {len(case_ids)} at hand",
                found="none",
                mend="bring more cases with labels; with lists, see that their ids are the names of the cases",
            )
    return replace(restricted, withheld=(*split.validation, *split.test))


def _fold_of(spec: str) -> tuple[str, tuple[int, int] | None]:
    """A split and which fold of it, from "protokd:2/4"; a folder may have a colon in its name."""
    found = re.fullmatch(r"(.+):(\d+)/(\d+)", spec.strip())
    if found is None:
        return spec, None
    number, count = int(found[2]), int(found[3])
    if not 1 <= number <= count or count < 2:
        raise SettingError(f"split {spec!r}: folds are counted from 1, such as {found[1]}:1/4 to {found[1]}:4/4.")
    return found[1], (number, count)


def _fold(split: Split, number: int, count: int) -> Split:
    """Every ``count``-th of the sorted training and validation patients judges, the others train; none chooses.

    The test cases of the split are in no part: whatever is chosen by cross-validation has not seen them.
    """
    patients = by_patient((*split.train, *split.validation))
    judged = tuple(case for cases in patients[number - 1 :: count] for case in cases)
    if not judged or len(patients) < 2:
        raise InputError(
            case=f"split {split.name}",
            expected=f"at least {max(count, 2)} training and validation patients for {count} folds",
            found=str(len(patients)),
            mend="choose fewer folds",
        )
    train = tuple(case for cases in patients for case in cases if case not in judged)
    return Split(f"{split.name}, fold {number} of {count}", train, (), judged)


def published_split(name: str) -> Split:
    """A shipped split as published, all of its cases (its hash identifies the split in records).

    Raises:
        SettingError: The name is unknown.
    """
    if name not in PUBLISHED:
        raise SettingError(f"published split {name!r} is unknown: choose one of {', '.join(PUBLISHED)}.")
    folder = resources.files("mindgap.data") / "splits_published" / name
    files = [folder / f"{part}.txt" for part in ("train", "val", "test")]
    return _from_lists({file.name: file.read_text(encoding="utf-8") for file in files}, name)


def _from_lists(texts: abc.Mapping[str, str], name: str) -> Split:
    """A split from the texts of its files, by file name."""
    lists: list[tuple[str, ...]] = []
    for part in ("train", "val", "test"):
        matching = [file for file in texts if part in file.lower() and not file.startswith(".")]
        if len(matching) != 1:
            raise InputError(
                case=f"split {name}",
                expected=f"one file *{part}*.txt",
                found=", ".join(matching) or "none",
                mend="put one train, one val and one test list (one case id per line) in the folder",
            )
        lines = [line.strip() for line in texts[matching[0]].splitlines()]
        lists.append(tuple(line for line in lines if line and not line.startswith("#")))
    return Split(name, *lists)


def _draw(spec: str, case_ids: abc.Sequence[str], seed: int) -> Split:
    """Order patients by a hash of seed and first case: no library version changes the draw."""
    try:
        fractions = [float(text) for text in spec.split("/")]
    except ValueError:
        fractions = []
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6 or 0 in fractions[:2]:
        raise SettingError(
            f"split {spec!r}: give three fractions train/validation/test that add up to 1, the first two "
            "above 0, such as 0.7/0.1/0.2."
        )
    drawn = sorted(
        by_patient(case_ids),
        key=lambda cases: hashlib.sha256(f"{seed}:{cases[0]}".encode(errors="surrogateescape")).digest(),
    )
    # Few cases still validate: rounding 0.1 of 4 to nothing would refuse what was asked for.
    validation = max(1, round(fractions[1] * len(drawn)))
    test = min(round(fractions[2] * len(drawn)), max(0, len(drawn) - validation - 1))
    parts = (drawn[validation + test :], drawn[:validation], drawn[validation : validation + test])
    return Split(f"{spec} seed {seed}", *(tuple(sorted(case for cases in part for case in cases)) for part in parts))
