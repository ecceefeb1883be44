"""DICOM examinations become a cohort of NIfTI files, each a folder that is there whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mindgap.data.case import Origin
from mindgap.data.dicom import DicomSeries, dicom_folder, need, read_series
from mindgap.data.dicom_convert import convert_series
from mindgap.data.dicom_doubts import doubts_about_series
from mindgap.data.dicom_sequence import propose
from mindgap.data.examinations import find_examinations
from mindgap.data.folders import reason_of, visible
from mindgap.data.series_table import UNDECIDED, Decision, Table
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import explain_unwritten, is_full, read_json, sha256_of, write_json
from mindgap.lock import hold
from mindgap.progress import Progress, Say, mute, silent
from mindgap.sequences import SEQUENCES
from mindgap.sequences import Sequence as MriSequence

_FACTS = "_series.json"
_LOCK = ".converting.lock"
_ASIDE = ".converting-"
_NEARLY_FULL = 2**24
"""Bytes. A converter that finds no room says so in many ways; below this its failure is not the series' fault."""


@dataclass(frozen=True)
class Examination:
    """What is known of one examination before it is converted.

    Attributes:
        case_id: Its name.
        place: Folder or .zip.
        decisions: What each series is.
    """

    case_id: str
    place: Path
    decisions: tuple[Decision, ...]

    @property
    def chosen(self) -> dict[MriSequence, DicomSeries]:
        """Sequence -> series, in canonical order."""
        there = {one.sequence: one.series for one in self.decisions if one.sequence is not None}
        return {sequence: there[sequence] for sequence in SEQUENCES if sequence in there}

    @property
    def undecided(self) -> str:
        """What a person has to decide before it is converted; "" where nothing is left."""
        chosen = self.chosen
        for sequence in chosen:
            same = [one.series.name for one in self.decisions if one.sequence is sequence]
            if len(same) > 1:
                return f"{' and '.join(same)} are both {sequence} in the table"
        asked = [
            f"{one.series.name} may be {' or '.join(map(str, wanted))}"
            for one in self.decisions
            if one.word == UNDECIDED and (wanted := [sequence for sequence in one.may_be if sequence not in chosen])
        ]
        if not asked and not chosen and not self.aside:
            return "no series is known for one of the four sequences"
        return "; ".join(asked)

    @property
    def aside(self) -> bool:
        """Whether a person left all of it out."""
        return not self.chosen and any(one.by_hand for one in self.decisions)


@dataclass(frozen=True)
class Survey:
    """All examinations of a place.

    Attributes:
        examinations: Those whose series could be read.
        failed: Name -> why its series could not be read.
        others: Names of folders without DICOM.
    """

    examinations: tuple[Examination, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    @property
    def undecided(self) -> dict[str, str]:
        """Name -> what a person has to decide."""
        return {one.case_id: one.undecided for one in self.examinations if one.undecided}

    @property
    def decisions(self) -> dict[str, tuple[Decision, ...]]:
        """Name -> what its series are."""
        return {one.case_id: one.decisions for one in self.examinations}


@dataclass(frozen=True)
class Conversion:
    """What became of the examinations of a survey.

    Attributes:
        done: Names of those converted now.
        before: Names of those that had been converted before.
        aside: Names of those that a person left out.
        failed: Name -> why there are no files of it, though nothing is left to decide.
        doubts: Name -> what a person should look at, of what was converted now or before.
    """

    done: tuple[str, ...]
    before: tuple[str, ...]
    aside: tuple[str, ...]
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


def survey(root: Path, table: Table, *, progress: Progress = silent, say: Say = mute) -> Survey:
    """Read the headers of all examinations and say what each series is.

    Args:
        root: The export, or one examination.
        table: What was decided before.
        progress: Called after each examination.
        say: Takes lines about files that are passed over.

    Raises:
        InputError: There is no examination.
        SettingError: pydicom is not installed.
    """
    need("pydicom")
    places = find_examinations(root)
    examinations, failed = [], dict(places.failed)
    for done, (case_id, place) in enumerate(places.examinations.items(), 1):
        try:
            with dicom_folder(place) as folder:
                series = read_series(folder, lambda line, name=case_id: say(f"{name}: {line}"))  # type: ignore[misc]
            examinations.append(Examination(case_id, place, table.decide(propose(series))))
        except SettingError:
            raise
        except (MindgapError, OSError) as error:
            failed[case_id] = _why(error, case_id, place)
        progress(done, len(places.examinations), case_id)
    return Survey(tuple(examinations), failed, places.others)


def convert(found: Survey, out: Path, *, progress: Progress = silent) -> Conversion:
    """Convert every examination that nothing is left to decide of into ``out/CASE/CASE_t1.nii.gz`` and its like.

    ``CASE_series.json`` beside the images says of which series each was made. Examinations that were converted before
    are left as they are, so that a call goes on where another was killed.

    Args:
        found: The examinations.
        out: Folder of the cohort (:func:`converting_into`).
        progress: Called after each examination.

    Raises:
        MindgapError: The disk is full, or nearly.
        SettingError: A package is missing.
    """
    for package in ("pydicom", "dcm2niix"):
        need(package)
    done, before, failed, doubts = list[str](), list[str](), dict(found.failed), dict[str, str]()
    ready = [one for one in found.examinations if one.chosen and not one.undecided]
    for count, one in enumerate(ready, 1):
        try:
            folder = out / one.case_id
            known = _known_doubts(one, folder)
            (done if known is None else before).append(one.case_id)
            doubts[one.case_id] = "; ".join(_convert_one(one, folder) if known is None else known)
        except SettingError:
            raise
        except Exception as error:  # whatever one examination brings is its own failure
            if is_full(error) or shutil.disk_usage(out).free < _NEARLY_FULL:
                raise MindgapError(f"{out}: the disk is full, or nearly. Make room there and run it again.") from error
            done = [case_id for case_id in done if case_id != one.case_id]
            failed[one.case_id] = _why(error, one.case_id, one.place)
        progress(count, len(ready), one.case_id)
    aside = tuple(one.case_id for one in found.examinations if one.aside)
    return Conversion(tuple(done), tuple(before), aside, failed, {case: line for case, line in doubts.items() if line})


def origin_of(place: Path, series: DicomSeries, others: Sequence[str]) -> Origin:
    """What stands for a converted file in a manifest: the series it was made from.

    Args:
        place: Folder or archive of the examination.
        series: The series, whose files are there.
        others: Names of the series that were left out.
    """
    return Origin(
        file=visible(place),
        name=series.name,
        uid=series.uid,
        number=series.number,
        description=series.description,
        images=len(series.slices),
        sha256=sha256_of(*sorted({one.path for one in series.slices})),
        others=tuple(others),
    )


def _convert_one(one: Examination, folder: Path) -> tuple[str, ...]:
    aside = folder.with_name(f"{_ASIDE}{one.case_id}")
    aside.mkdir()
    try:
        with dicom_folder(one.place) as unpacked:
            chosen = one.chosen
            if unpacked != one.place:  # an archive, which lay elsewhere when its headers were read
                again = {series.uid: series for series in read_series(unpacked)}
                chosen = {sequence: again[series.uid] for sequence, series in chosen.items()}
            for sequence, series in chosen.items():
                convert_series(series, aside / f"{one.case_id}_{sequence.value.lower()}.nii.gz")
            others = [decision.series.name for decision in one.decisions if decision.sequence is None]
            origins = {sequence: origin_of(one.place, series, others) for sequence, series in chosen.items()}
        doubts = doubts_about_series(chosen.values(), registered=False)
        made = {str(sequence): origin.to_plain() for sequence, origin in origins.items()}
        write_json(aside / f"{one.case_id}{_FACTS}", {"made_of": made, "doubts": list(doubts)})
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return doubts


def _known_doubts(one: Examination, folder: Path) -> tuple[str, ...] | None:
    """The doubts about images that were converted before; None where nothing is there.

    Raises:
        InputError: Something else is.
    """
    if not folder.exists():
        return None
    try:
        facts = read_json(folder / f"{one.case_id}{_FACTS}")
        known = {sequence: about["series"]["uid"] for sequence, about in facts["made_of"].items()}
        doubts = tuple(map(str, facts["doubts"]))
    except (MindgapError, LookupError, TypeError, AttributeError) as error:
        raise _in_the_way(one, folder, "one that no conversion left there whole") from error
    images = [folder / f"{one.case_id}_{sequence.lower()}.nii.gz" for sequence in known]
    lost = ", ".join(path.name for path in images if not path.is_file())
    if known != {str(sequence): series.uid for sequence, series in one.chosen.items()}:
        raise _in_the_way(one, folder, "images of other series than the table says now")
    if lost:
        raise _in_the_way(one, folder, f"one that has lost {lost}")
    return doubts


def _in_the_way(one: Examination, folder: Path, found: str) -> InputError:
    return InputError(
        case=one.case_id,
        expected=f"no folder {folder}, or that of these series",
        found=found,
        mend="move it away to have the examination converted",
    )


def _why(error: Exception, case_id: str, place: Path) -> str:
    """Why an examination failed, with the file or series it is about."""
    if isinstance(error, InputError):
        about = "" if error.case in (case_id, place.name, place.stem) else f"{error.case}: "
        return about + reason_of(error)
    if isinstance(error, OSError):
        return f"{error.filename or place}: {error.strerror or error}; is it there, and may it be read?"
    return str(error) if isinstance(error, MindgapError) else f"unexpected {type(error).__name__}: {error}"
