"""What headers say of many DICOM examinations, and what that makes of each under the table a person corrects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindgap.data.dicom import dicom_folder, need, read_series
from mindgap.data.dicom_sequence import NONE, UNDECIDED, propose
from mindgap.data.examinations import find_examinations
from mindgap.data.folders import reason_of
from mindgap.data.series_table import Decision, Seen, Table
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.progress import Progress, Say, mute, silent
from mindgap.sequences import SEQUENCES
from mindgap.sequences import Sequence as MriSequence


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
    def chosen(self) -> dict[MriSequence, Decision]:
        """Sequence -> series, in canonical order."""
        there = {one.sequence: one for one in self.decisions if one.sequence is not None}
        return {sequence: there[sequence] for sequence in SEQUENCES if sequence in there}

    @property
    def aside(self) -> bool:
        """Whether nothing in it is one of the four, by its headers or by the table."""
        return all(one.word == NONE for one in self.decisions)

    @property
    def undecided(self) -> str:
        """What a person has to decide before it is converted; "" where nothing is left."""
        for sequence in self.chosen:
            same = [one.name for one in self.decisions if one.sequence is sequence]
            if len(same) > 1:
                return f"{' and '.join(same)} are both {sequence} in the table"
        asked = []
        for one in self.decisions:
            wanted = [str(sequence) for sequence in one.seen.proposal.candidates if sequence not in self.chosen]
            if one.word == UNDECIDED and wanted:
                asked.append(f"{one.name} may be {' or '.join(wanted)}")
        return "; ".join(asked)


@dataclass(frozen=True)
class Survey:
    """What headers say of all examinations of a place.

    Attributes:
        series: Examination -> its series.
        places: Examination -> folder or archive.
        failed: Name -> why its series could not be read.
        others: Folders and archives without DICOM.
    """

    series: Mapping[str, tuple[Seen, ...]]
    places: Mapping[str, Path]
    failed: Mapping[str, str]
    others: tuple[str, ...] = ()

    def decide(self, table: Table) -> tuple[Examination, ...]:
        """The examinations as a table has them."""
        return tuple(Examination(name, self.places[name], table.decide(seen)) for name, seen in self.series.items())


def survey(root: Path, *, progress: Progress = silent, say: Say = mute) -> Survey:
    """Read the headers of all examinations.

    Args:
        root: The export, or one examination.
        progress: Called after each examination.
        say: Takes lines about files that are passed over.

    Raises:
        InputError: There is no examination.
        SettingError: pydicom is not installed.
    """
    need("pydicom")
    found = find_examinations(root)
    series: dict[str, tuple[Seen, ...]] = {}
    failed = dict(found.failed)
    for done, (case_id, place) in enumerate(found.examinations.items(), 1):
        try:
            with dicom_folder(place) as folder:
                read = read_series(folder, lambda line, name=case_id: say(f"{name}: {line}"))  # type: ignore[misc]
            series[case_id] = tuple(map(Seen.of, propose(read)))
        except SettingError:
            raise
        except Exception as error:  # whatever one examination brings is its own failure
            failed[case_id] = why_failed(error, case_id, place)
        progress(done, len(found.examinations), case_id)
    for case_id, reason in _copies(series).items():
        del series[case_id]
        failed[case_id] = reason
    return Survey(series, found.examinations, failed, tuple(found.others))


def _copies(series: Mapping[str, tuple[Seen, ...]]) -> dict[str, str]:
    """Examinations that share a series with another, which they were copied from, or from which they were made."""
    owners: dict[str, list[str]] = {}
    for case_id, seen in series.items():
        for one in seen:
            owners.setdefault(one.uid, []).append(case_id)
    found: dict[str, str] = {}
    for names in owners.values():
        for case_id in names if len(names) > 1 else ():
            others = ", ".join(sorted(set(names) - {case_id}))
            found[case_id] = f"it holds the same series as {others}; take the copy away"
    return found


def why_failed(error: Exception, case_id: str, place: Path) -> str:
    """Why an examination failed, with the file or series it is about."""
    if isinstance(error, InputError):
        about = "" if error.case in (case_id, place.name, place.stem) else f"{error.case}: "
        return about + reason_of(error)
    if isinstance(error, OSError):
        return f"{error.filename or place}: {error.strerror or error}; is it there, and may it be read?"
    return str(error) if isinstance(error, MindgapError) else f"unexpected {type(error).__name__}: {error}"
