"""The cohort of a study: the user's, or phantoms of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mindgap.api import prepare
from mindgap.data.case import CaseFiles
from mindgap.data.cohort import discover
from mindgap.data.folders import visible
from mindgap.data.history import cases_of
from mindgap.data.prepared import Preparation
from mindgap.data.splits import find_split
from mindgap.data.store import INDEX, PARTS, Store, open_store, write_index
from mindgap.errors import SettingError
from mindgap.evaluation.rules import DEFAULT_RULES
from mindgap.files import write_text
from mindgap.inference.opened import OpenedCase
from mindgap.processor import cpu_count
from mindgap.progress import Stage
from mindgap.regions import LabelConvention
from mindgap.sequences import SEQUENCES
from mindgap.study.grid import Run
from mindgap.study.scale import Place, Scale

_VERBS = {"train": "train", "validation": "validate", "test": "test"}
TRAIN, VALIDATION, TEST = 24, 6, 20
"""Phantoms of a study without data."""


def split_of(split: str, scale: Scale, *, data: Path | None) -> str:
    """The split of a study: at the paper's scale the published one of ProtoKD, if nobody names another.

    Args:
        split: As ``mindgap prepare`` takes it; "auto" names none.
        scale: Of the study.
        data: Cohort of the user; phantoms have a split of their own.
    """
    return "protokd" if split == "auto" and scale.name == "paper" and data is not None else split


def prepare_place(out: Path, scale: Scale, *, data: Path | None, split: str, device: str, stage: Stage) -> Place:
    """Make what is missing of a study's cohort and store.

    Args:
        out: Folder of the study.
        scale: Its spacing.
        data: Cohort of the user; None grows phantoms, at scale "phantom" only.
        split: As ``mindgap prepare`` takes it; see :func:`split_of`.
        device: For the trainings.
        stage: Announces a stage and gives its progress callback.

    Raises:
        SettingError: There is no data at a scale that needs it, the store there was made for another study or has
            another split than the one that is named, no case has one of the sequences, or none is there to test.
    """
    if data is None and scale.name != "phantom":
        raise SettingError(f"scale {scale.name} needs a cohort: name it with --data, or use --scale phantom.")
    if data is not None and not data.exists():
        raise SettingError(f"{data} does not exist: correct --data.")
    place = Place(out, data or out / "cohort", out / "store", device)
    split = split_of(split, scale, data=data)
    if data is None:
        _grow(place.data, stage)
        split = str(place.data / "splits")
    preparation = Preparation(spacing_mm=scale.spacing_mm)
    if (place.store / INDEX).is_file():
        store = open_store(place.store)
        _refuse_other(store, preparation)
        refuse_other_split(store, split)
        follow_data(store, place.data)
    else:
        prepare(place.data, place.store, preparation, split=split, workers=cpu_count(), progress=stage("preparing"))
    store = open_store(place.store)
    _refuse_lacking(store)
    _refuse_unjudged(store)
    return place


def test_cases(place: Place, run: Run) -> tuple[list[CaseFiles], LabelConvention]:
    """The test cases of a finished run as files, in the order of their names.

    Raises:
        SettingError: The label convention of the cohort is not clear.
    """
    cohort = discover(place.data)
    if cohort.convention is None:
        raise SettingError(f"the label convention of {place.data} is not clear from its files.")
    wanted = set(cases_of(place.run(run.name))["test"])
    return [files for files in cohort.cases if files.case_id in wanted], cohort.convention


def open_test_cases(place: Place, run: Run, preparation: Preparation) -> list[OpenedCase]:
    """The test cases of a finished run, prepared as its network takes them when they are asked for."""
    cases, convention = test_cases(place, run)
    return [OpenedCase(files, convention, preparation, DEFAULT_RULES) for files in cases]


def _refuse_other(store: Store, preparation: Preparation) -> None:
    """Refuse a store that was made for another study.

    Raises:
        SettingError: It was prepared otherwise.
    """
    if store.preparation != preparation:
        raise SettingError(
            f"{store.folder} was prepared with {store.preparation}, this scale needs {preparation}: name another --out."
        )


def follow_data(store: Store, data: Path) -> None:
    """Let a store know where its data lie, where their folder was moved: a study goes on then.

    Args:
        store: Made before.
        data: Where its cases should lie.

    Raises:
        SettingError: It was made from other data, or from a folder that is still there.
    """
    if Path(store.source).resolve() == data.resolve():
        return
    cohort = discover(data)
    here = {*(files.case_id for files in cohort.cases), *cohort.rejected}
    if Path(store.source).exists() or {*store.cases, *store.failed} - store.joined != here:
        raise SettingError(
            f"{store.folder} was prepared from {store.source}, this study is about {data}: name another --out."
        )
    write_index(replace(store, source=str(visible(data))))


def refuse_other_split(store: Store, split: str) -> None:
    """Refuse a store whose cases train, choose or judge otherwise than a split that is named says.

    Raises:
        SettingError: They do.
    """
    if split == "auto":
        return
    known = {case for name in (*PARTS, "unassigned") for case in store.split.get(name, ())} - store.joined
    wanted = find_split(split, sorted(known))
    parts = {"train": wanted.train, "validation": wanted.validation, "test": wanted.test}
    other = [name for name in PARTS if set(store.split[name]) - store.joined != set(parts[name])]
    if other:
        raise SettingError(
            f"{store.folder} was prepared with the split {store.split['name']}; in {wanted.name} the cases that "
            f"{' and '.join(_VERBS[name] for name in other)} are others: name the store's split with --split, or "
            "another --out."
        )


def _refuse_lacking(store: Store) -> None:
    """Refuse a store without a sequence that teachers and Table V need.

    Raises:
        SettingError: No case of it has one.
    """
    lacking = [str(sequence) for sequence in SEQUENCES if sequence not in store.sequences]
    if lacking:
        raise SettingError(
            f"no case in {store.source} has {' or '.join(lacking)}, and the studies need all of "
            f"{', '.join(map(str, SEQUENCES))}: name a cohort that has them with --data, and another --out."
        )


def _refuse_unjudged(store: Store) -> None:
    """Refuse, before anything is trained, a split that leaves no case to score networks on.

    Raises:
        SettingError: It does.
    """
    if not store.part("test"):
        counts = ", ".join(f"{len(store.part(name))} to {verb}" for name, verb in _VERBS.items())
        raise SettingError(
            f"the split {store.split['name']} of {store.source} leaves no case to test ({counts}), and the tables are "
            "made of test cases: name a split that has some with --split, and another --out."
        )


def _grow(folder: Path, stage: Stage) -> None:
    from mindgap.data.phantom import write_cohort

    count = TRAIN + VALIDATION + TEST
    grown = stage(f"growing {count} phantoms")
    folders = write_cohort(
        folder,
        cases=count,
        seed=0,
        spacing_mm=2.0,
        workers=cpu_count(),
        progress=lambda done, total: grown(done, total, ""),
    )
    ordered = sorted(path.name for path in folders)
    parts = {"train": ordered[:TRAIN], "val": ordered[TRAIN:-TEST], "test": ordered[-TEST:]}
    for name, part in parts.items():
        write_text(folder / "splits" / f"{name}.txt", "".join(f"{case_id}\n" for case_id in part))
