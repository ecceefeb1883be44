"""DICOM examinations become a cohort of NIfTI files, each a folder that is there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mindgap.data.dicom import DicomSeries, dicom_folder, need, read_series
from mindgap.data.dicom_convert import convert_series, origin_of
from mindgap.data.dicom_doubts import doubts_about_series
from mindgap.data.survey import Examination, why_failed
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import explain_unwritten, is_full, read_json, write_json
from mindgap.lock import hold
from mindgap.progress import Progress, silent
from mindgap.sequences import Sequence as MriSequence

_FACTS = "_series.json"
_LOCK = ".converting.lock"
_ASIDE = ".converting-"
_NEARLY_FULL = 2**24
"""Bytes. A converter that finds no room says so in many ways; below this its failure is not the series' fault."""


@dataclass(frozen=True)
class Conversion:
    """What became of the examinations of a survey.

    Attributes:
        done: Names of those converted now.
        before: Names of those that had been converted before.
        failed: Name -> why there are no files of it, though nothing was left to decide.
        doubts: Name -> what a person should look at, of what was converted now or before.
    """

    done: tuple[str, ...]
    before: tuple[str, ...]
    failed: Mapping[str, str]
    doubts: Mapping[str, str]


@contextmanager
def converting_into(out: Path, root: Path) -> Iterator[None]:
    """Be the one process that makes a cohort, in a folder that is not among what it is made of.

    Args:
        out: Folder of the cohort, made if need be.
        root: The export.

    Raises:
        SettingError: It lies in the export, or another process is at work there.
        MindgapError: It cannot be written.
    """
    if root.is_dir() and out.resolve().is_relative_to(root.resolve()):
        raise SettingError(f"{out} lies in {root}, which is converted: name a folder beside it with -o.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MindgapError(explain_unwritten(out, error)) from error
    with hold(out / _LOCK, what=f"A conversion into {out}"):
        for left in out.glob(f"{_ASIDE}*"):  # of a process that was killed
            shutil.rmtree(left)
        yield


def convert(examinations: Sequence[Examination], out: Path, *, progress: Progress = silent) -> Conversion:
    """Convert every examination that nothing is left to decide of into ``out/CASE/CASE_t1.nii.gz`` and its like.

    ``CASE_series.json`` beside the images says of which series each was made. Examinations that were converted before
    are left as they are, so that a call goes on where another was killed.

    Args:
        examinations: Of a survey (:meth:`Survey.decide`).
        out: Folder of the cohort (:func:`converting_into`).
        progress: Called after each examination.

    Raises:
        MindgapError: The disk is full, or nearly.
        SettingError: A package is missing.
    """
    for package in ("pydicom", "dcm2niix"):
        need(package)
    done, before, failed, doubts = list[str](), list[str](), dict[str, str](), dict[str, str]()
    ready = [one for one in examinations if one.chosen and not one.undecided]
    owners = _owners(out)
    for count, one in enumerate(ready, 1):
        try:
            known = _known_doubts(one, out / one.case_id, owners)
            said = _convert_one(one, out / one.case_id) if known is None else known
            doubts |= {one.case_id: "; ".join(said)} if said else {}
            (done if known is None else before).append(one.case_id)
        except SettingError:
            raise
        except Exception as error:  # whatever one examination brings is its own failure
            if is_full(error) or shutil.disk_usage(out).free < _NEARLY_FULL:
                raise MindgapError(f"{out}: the disk is full, or nearly. Make room there and run it again.") from error
            failed[one.case_id] = why_failed(error, one.case_id, one.place)
        progress(count, len(ready), one.case_id)
    return Conversion(tuple(done), tuple(before), failed, doubts)


def _convert_one(one: Examination, folder: Path) -> tuple[str, ...]:
    aside = folder.with_name(f"{_ASIDE}{one.case_id}")
    aside.mkdir()
    try:
        with dicom_folder(one.place) as unpacked:
            chosen = _series_of(one, unpacked)
            others = [decision.name for decision in one.decisions if decision.sequence is None]
            for sequence, series in chosen.items():
                convert_series(series, aside / f"{one.case_id}_{sequence.value.lower()}.nii.gz")
            origins = {sequence: origin_of(one.place, series, others) for sequence, series in chosen.items()}
        doubts = doubts_about_series(chosen.values(), registered=False)
        made = {str(sequence): origin.to_plain() for sequence, origin in origins.items()}
        write_json(aside / f"{one.case_id}{_FACTS}", {"made_of": made, "doubts": list(doubts)})
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return doubts


def _series_of(one: Examination, folder: Path) -> dict[MriSequence, DicomSeries]:
    """The series of an examination with their files."""
    there = {series.uid: series for series in read_series(folder)}
    gone = [decision.name for decision in one.chosen.values() if decision.uid not in there]
    if gone:
        raise InputError(
            case=one.case_id,
            expected="the series that were there when the headers were read",
            found=f"no {', '.join(gone)}",
            mend="call it again once the export is complete",
        )
    return {sequence: there[decision.uid] for sequence, decision in one.chosen.items()}


def _facts(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Sequence -> uid of the series it was made from, and the doubts about these.

    Raises:
        InputError: It is damaged.
    """
    try:
        facts = read_json(path)
        uids = {sequence: str(about["series"]["uid"]) for sequence, about in facts["made_of"].items()}
        return uids, tuple(map(str, facts["doubts"]))
    except (MindgapError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            case=str(path), expected="the facts of a conversion", found="none", mend="convert it again"
        ) from error


def _owners(out: Path) -> dict[str, str]:
    """Uid of a series -> the case it was converted as before."""
    found: dict[str, str] = {}
    for path in sorted(out.glob(f"*/*{_FACTS}")):
        with suppress(InputError):  # said when its case is converted
            found |= dict.fromkeys(_facts(path)[0].values(), path.parent.name)
    return found


def _known_doubts(one: Examination, folder: Path, owners: Mapping[str, str]) -> tuple[str, ...] | None:
    """The doubts about images that were converted before; None where nothing is there.

    Raises:
        InputError: Something else is, or its series were converted as another case.
    """
    elsewhere = sorted({owners.get(decision.uid, one.case_id) for decision in one.chosen.values()} - {one.case_id})
    if elsewhere:
        raise _in_the_way(one, folder.parent / elsewhere[0], "its series, converted under that name")
    if not folder.exists():
        return None
    try:
        known, doubts = _facts(folder / f"{one.case_id}{_FACTS}")
    except InputError as error:
        raise _in_the_way(one, folder, "one that no conversion left there whole") from error
    images = [folder / f"{one.case_id}_{sequence.lower()}.nii.gz" for sequence in known]
    lost = ", ".join(path.name for path in images if not path.is_file())
    if known != {str(sequence): decision.uid for sequence, decision in one.chosen.items()}:
        raise _in_the_way(one, folder, "images of other series than the table says now")
    if lost:
        raise _in_the_way(one, folder, f"one that has lost {lost}")
    return doubts


def _in_the_way(one: Examination, folder: Path, found: str) -> InputError:
    return InputError(
        case=one.case_id,
        expected=f"no folder {folder}, or one that was made of these series",
        found=found,
        mend="move it away to have the examination converted",
    )
