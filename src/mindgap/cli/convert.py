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
    from mindgap.data.survey import Examination, Survey


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
    from mindgap.data.survey import survey

    path = settings.out / TABLE
    with converting_into(settings.out, settings.examinations):
        read_table(path)  # whatever is wrong with it is said before the work
        found = survey(settings.examinations, progress=ProgressLine("reading headers"), say=say)
        examinations = _decide(found, path)
        _show(examinations, found.others)
        say(f"wrote {path}")
        if not settings.yes:
            _say_what_is_open(examinations, found.failed)
            if not _agreed(path):
                say(f"nothing was converted: read {path}, correct its column sequence, and call again with --yes.")
                return 1 if found.failed or any(one.undecided for one in examinations) else 0
            examinations = _decide(found, path)  # the table may have been corrected while the question stood
        ended = convert(examinations, settings.out, progress=ProgressLine("converting"))
    failed = {**found.failed, **ended.failed}
    undecided = sum(bool(one.undecided) for one in examinations)
    aside = sum(one.aside for one in examinations)
    counts = ((len(ended.before), "converted before"), (aside, "with none of the four"), (undecided, "to decide"))
    more = "".join(f", {count} {what}" for count, what in counts if count)
    say(f"{len(ended.done)} converted{more}, {len(failed)} failed, in {settings.out}")
    _say_what_is_open(examinations, failed)
    _name("beware", ended.doubts)
    if ended.done or ended.before:
        say(f"Nothing was registered or stripped; this does both: mindgap segment {settings.out} --raw -o masks")
    return 1 if failed or undecided else 0


def _decide(found: Survey, path: Path) -> tuple[Examination, ...]:
    """Hear what the table says, and write into it what is known now."""
    from mindgap.data.series_table import read_table, write_table

    table = read_table(path)
    examinations = found.decide(table)
    write_table(path, table.with_decisions({one.case_id: one.decisions for one in examinations}))
    return examinations


def _show(examinations: Sequence[Examination], others: Sequence[str]) -> None:
    """Every series of one examination; of several, how many have what."""
    from mindgap.data.dicom_sequence import NONE, UNDECIDED
    from mindgap.sequences import SEQUENCES

    series = [one for examination in examinations for one in examination.decisions]
    if len(examinations) == 1:
        lines = [one.line("") for one in series]
        columns = ["series", "description", "images", "sequence", "reason"]
        print_table(columns, [[line[name] for name in columns] for line in lines], words=True)
    elif examinations:
        having = ", ".join(
            f"{sequence} in {sum(sequence in one.chosen for one in examinations)}" for sequence in SEQUENCES
        )
        words = {word: sum(one.word == word for one in series) for word in (NONE, UNDECIDED)}
        say(f"{len(examinations)} examinations of {len(series)} series: {having}")
        say(f"{words[NONE]} series are none of the four, {words[UNDECIDED]} are not decided")
    if others:
        say(f"no DICOM in {', '.join(others)}")


def _say_what_is_open(examinations: Sequence[Examination], failed: Mapping[str, str]) -> None:
    _name("to decide", {one.case_id: one.undecided for one in examinations if one.undecided})
    _name("failed", failed)


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
