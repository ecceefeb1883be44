"""From a cohort to a store: every case prepared, what is there already kept, what is bad listed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mindgap.data.case import CaseFiles
from mindgap.data.codes import CodeKind
from mindgap.data.cohort import Cohort
from mindgap.data.folders import visible
from mindgap.data.joining import convention_of, join, refuse_twins
from mindgap.data.preparation import prepare_case
from mindgap.data.prepared import Preparation
from mindgap.data.splits import Split
from mindgap.data.store import FORMAT as STORE_FORMAT
from mindgap.data.store import INDEX, Store, StoredCase, open_store, read_entry, write_case, write_index
from mindgap.errors import InputError, SettingError
from mindgap.files import remove_leftovers
from mindgap.progress import Progress, silent
from mindgap.regions import LabelConvention


def prepare_cohort(
    cohort: Cohort,
    folder: Path,
    preparation: Preparation,
    split: Split,
    *,
    also: Iterable[Cohort] = (),
    codes: CodeKind = "uint8",
    workers: int = 2,
    progress: Progress = silent,
) -> Store:
    """Prepare every case of a cohort into a store; a bad case is listed and the rest goes on.

    Cases that were prepared from the same files in the same way are kept as they are.

    Args:
        cohort: What was discovered; its label convention has to be known.
        folder: Where the store is written.
        preparation: How.
        split: Which case of it belongs to which part.
        also: Other cohorts, such as phantoms, whose cases join those that train.
        codes: How intensities are stored.
        workers: Cases prepared at the same time.
        progress: Called after every case with (done, total, case).

    Raises:
        SettingError: A label convention is not known, no case could be prepared, cohorts share a name of a case, or the
            folder is that of the data or holds a store that was prepared otherwise.
        InputError: A case that joins is of a patient who may not train, or a case lies in two parts under two names.
    """
    also = tuple(also)
    _refuse_place(folder, cohort, preparation)
    conventions = [convention_of(one) for one in (cohort, *also)]
    split, joined = join(split, cohort, also)
    remove_leftovers(folder / "cases")
    jobs = [
        (files, convention) for one, convention in zip((cohort, *also), conventions, strict=True) for files in one.cases
    ]
    make = partial(_prepare_one, folder=folder, preparation=preparation, codes=codes)
    stored, bad = _prepare_all(jobs, make, workers, progress)
    failed = {case_id: reason for one in (cohort, *also) for case_id, reason in one.rejected.items()} | bad
    if not stored:
        reasons = "\n".join(f"  {reason}" for reason in list(failed.values())[:5])
        raise SettingError(f"no case of {cohort.root} could be prepared:\n{reasons}")
    refuse_twins(split, joined, stored)
    store = Store(
        folder=folder,
        preparation=preparation,
        cases={case_id: stored[case_id] for case_id in sorted(stored)},
        failed=dict(sorted(failed.items())),
        split={
            "name": split.name,
            "sha256": split.sha256,
            "train": list(split.train),
            "validation": list(split.validation),
            "test": list(split.test),
            "unassigned": list(split.unassigned(sorted(files.case_id for files, _ in jobs))),
            "joined": [one.to_plain() for one in joined],
        },
        source=str(visible(cohort.root)),
        convention=conventions[0].name,
    )
    write_index(store)
    return store


def _prepare_all(
    jobs: Sequence[tuple[CaseFiles, LabelConvention]],
    make: Callable[[CaseFiles, LabelConvention], StoredCase],
    workers: int,
    progress: Progress,
) -> tuple[dict[str, StoredCase], dict[str, str]]:
    """Make every case, some at the same time: what was made, and what could not be, with the reason."""
    stored: dict[str, StoredCase] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        running = {pool.submit(make, *job): job[0].case_id for job in jobs}
        for done, job in enumerate(as_completed(running), start=1):
            case_id = running[job]
            try:
                stored[case_id] = job.result()
            except InputError as error:
                failed[case_id] = str(error)
            except OSError as error:  # of one of its files, such as one that went away; a full disk is no OSError here
                failed[case_id] = f"{case_id}: {error}"
            progress(done, len(running), case_id)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C, or a full disk: what has begun ends, the rest does not begin
    return stored, failed


def _refuse_place(folder: Path, cohort: Cohort, preparation: Preparation) -> None:
    """Refuse to write a store among the data it is made from, or over one whose cases are in another form.

    Raises:
        SettingError: It is one of these.
    """
    if folder.resolve() == cohort.root.resolve():
        raise SettingError(f"{folder} holds the data: name another folder for the prepared cohort.")
    if (folder / INDEX).is_file() and (known := open_store(folder).preparation) != preparation:
        raise SettingError(
            f"{folder} holds cases that were prepared with {known}, not {preparation}: name another folder, or remove "
            "that one."
        )


def _prepare_one(
    files: CaseFiles, convention: LabelConvention, *, folder: Path, preparation: Preparation, codes: CodeKind
) -> StoredCase:
    fingerprint = _fingerprint(files, preparation, convention, codes)
    entry = read_entry(folder, files.case_id, fingerprint)
    if entry is not None:
        return entry
    if files.label is None:
        raise InputError(
            case=files.case_id,
            expected="a reference segmentation to learn from",
            found="none",
            mend="add a file named *seg*, name it in a .csv manifest (BIDS), or leave the case out",
        )
    prepared = prepare_case(files.load(convention=convention), preparation)
    return write_case(folder, prepared, fingerprint=fingerprint, codes=codes)


def _fingerprint(files: CaseFiles, preparation: Preparation, convention: LabelConvention, codes: CodeKind) -> str:
    """Hash of what a prepared case depends on: its files (path, size, time), the settings, the format."""
    sources = [*files.images.items(), ("label", files.label)]
    seen = [
        [
            str(key),
            str(source.path.resolve()),
            source.channel,
            source.path.stat().st_size,
            source.path.stat().st_mtime_ns,
        ]
        for key, source in sources
        if source is not None
    ]
    text = json.dumps([STORE_FORMAT, seen, asdict(preparation), convention.name, codes])
    return hashlib.sha256(text.encode()).hexdigest()
