"""mindgap convert: many DICOM examinations become a cohort of NIfTI files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mindgap.cli.terminal import ProgressLine, parse, print_table, say

if TYPE_CHECKING:
    from mindgap.data.conversion import Survey


@dataclass(frozen=True)
class Convert:
    """Turn DICOM examinations into a cohort of NIfTI files that `mindgap segment` and others take.

    The first call reads headers only: it writes OUT/series.csv, which says for each series which sequence it is taken
    for and why, and converts nothing before you have agreed. Correct the column "sequence" where it is wrong or asks
    (T1, T1ce, T2, FLAIR, or - for none of these), save, and call again: what you wrote counts before any header.

    OUT/CASE/CASE_t1ce.nii.gz and its like are the images, as many as there are; CASE_series.json says of which series
    they were made. Examinations that have something left to decide, or cannot be read, are listed, the rest goes on;
    a later call does only what is missing. Conversion neither strips skulls nor registers: `mindgap segment OUT --raw`
    does. One examination can be segmented as it is, and its mask come back as DICOM SEG: `mindgap segment EXAM`.

    Attributes:
        examinations: Folder with examinations in folders or .zip files of their own, however deep (a disc,
            PATIENT/STUDY/SERIES); or one examination.
        out: Folder of the cohort.
        yes: Convert what the table says, without asking.
    """

    examinations: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    yes: bool = False


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Convert, words, verb="convert")
    from mindgap.data.conversion import convert, converting_into
    from mindgap.data.series_table import TABLE, read_table

    path = settings.out / TABLE
    with converting_into(settings.out, settings.examinations):
        found = _survey(settings.examinations, path)
        _show(found)
        say(f"wrote {path}")
        if not settings.yes:
            _name("to decide", found.undecided)
            _name("cannot be used", found.failed)
            written = read_table(path)
            if not _agreed(path):
                say(f"nothing was converted: read {path}, correct its column sequence, and call again with --yes.")
                return 1 if found.failed or found.undecided else 0
            if read_table(path) != written:  # corrected while the question stood there
                found = _survey(settings.examinations, path)
        ended = convert(found, settings.out, progress=ProgressLine("converting"))
    before = f", {len(ended.before)} converted before" if ended.before else ""
    aside = f", {len(ended.aside)} left out by the table" if ended.aside else ""
    open_ = f", {len(found.undecided)} to decide" if found.undecided else ""
    say(f"{len(ended.done)} converted{before}{aside}{open_}, {len(ended.failed)} failed, in {settings.out}")
    _name("to decide", found.undecided)
    _name("failed", ended.failed)
    _name("beware", ended.doubts)
    if ended.done or ended.before:
        say(f"Nothing was registered or stripped; this does both: mindgap segment {settings.out} --raw -o masks")
    return 1 if ended.failed or found.undecided else 0


def _survey(root: Path, path: Path) -> Survey:
    """Read all headers and write the table, with what a person wrote into it meanwhile."""
    from mindgap.data.conversion import survey
    from mindgap.data.series_table import read_table, write_table

    while True:
        table = read_table(path)
        found = survey(root, table, progress=ProgressLine("reading headers"), say=say)
        if read_table(path) == table:
            write_table(path, table.with_decisions(found.decisions))
            return found


def _show(found: Survey) -> None:
    """Every series of one examination; of several, how many have what."""
    from mindgap.data.series_table import NONE, UNDECIDED
    from mindgap.sequences import SEQUENCES

    series = [one for decisions in found.decisions.values() for one in decisions]
    if len(found.examinations) == 1:
        lines = [one.line("") for one in series]
        columns = ["series", "description", "images", "sequence", "reason"]
        print_table(columns, [[line[name] for name in columns] for line in lines], words=True)
    elif found.examinations:
        having = ", ".join(
            f"{sequence} in {sum(sequence in one.chosen for one in found.examinations)}" for sequence in SEQUENCES
        )
        others = {word: sum(one.word == word for one in series) for word in (NONE, UNDECIDED)}
        say(f"{len(found.examinations)} examinations of {len(series)} series: {having}")
        say(f"{others[NONE]} series are none of the four, {others[UNDECIDED]} are not decided")
    if found.others:
        say(f"no DICOM in {', '.join(found.others)}")


def _name(what: str, reasons: Mapping[str, str]) -> None:
    for case, why in reasons.items():
        say(f"{what}: {case}: {why}")


def _agreed(table: Path) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"Is every series what {table} says? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")
