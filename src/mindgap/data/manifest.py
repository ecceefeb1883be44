"""A cohort as a CSV table: `case`, a column per sequence (any alias), `label`; an empty cell is absence.

case,t1,t1ce,flair,label
P01,P01/t1.nii.gz,,P01/flair.nii.gz,P01/seg.nii.gz
P02,P02/all.nii.gz#0,P02/all.nii.gz#1,,
"""

from __future__ import annotations

import re
from pathlib import Path

from mindgap.data.case import CaseFiles, Source
from mindgap.data.spreadsheet import read_sheet
from mindgap.errors import InputError
from mindgap.sequences import Sequence, sequence_from_alias


def read_manifest(path: Path, *, label: bool = True) -> tuple[dict[str, CaseFiles], dict[str, str]]:
    """Read a manifest; no image is opened, but every file named has to be there.

    Args:
        path: The table; paths in it are relative to its folder.
        label: Whether labels are wanted; where they are not, the column is not looked at.

    Returns:
        The cases by name, and for each row that gives no case the reason.

    Raises:
        InputError: The table itself is wrong: its columns, the number of cells in a line, or a name that is
            missing or stands twice.
    """
    rows, columns = _read_table(path)
    cases: dict[str, CaseFiles] = {}
    rejected: dict[str, str] = {}
    for line, row in rows:
        case_id = row["case"].strip()
        if not case_id or case_id in cases or case_id in rejected:
            raise InputError(
                case=f"{path.name}, line {line}",
                expected="a case name that no other line has",
                found=f"{case_id!r}",
                mend="give every line a name of its own",
            )
        unread = {"case"} if label else {"case", "label"}
        sources = {name: _cell(path.parent, text) for name, text in row.items() if name not in unread and text.strip()}
        lost = [str(source.path) for source in sources.values() if not _is_there(source.path)]
        if lost:
            mend = "correct the path, or fetch what a link stands for (for example with `datalad get`)"
            rejected[case_id] = f"line {line} names {', '.join(lost)}, which does not exist or may not be read; {mend}"
            continue
        try:
            images = {sequence: sources[name] for name, sequence in columns.items() if name in sources}
            cases[case_id] = CaseFiles(case_id, images, sources.get("label"))
        except InputError as error:
            rejected[case_id] = f"{error.found} in line {line}; {error.mend}"
    return cases, dict(sorted(rejected.items()))


def _read_table(path: Path) -> tuple[list[tuple[int, dict[str, str]]], dict[str, Sequence]]:
    sheet = read_sheet(path)
    header = [name.lower() for name in sheet.header]
    columns = {name: sequence for name in header if (sequence := sequence_from_alias(name)) is not None}
    unknown = [name for name in header if name not in {*columns, "case", "label"}]
    twice = len(set(header)) < len(header) or len(set(columns.values())) < len(columns)
    if unknown or twice or "case" not in header or not columns:
        raise InputError(
            case=path.name,
            expected="the columns case, one or more of t1, t2, t1ce, flair (once each), and perhaps label",
            found=f"unknown {', '.join(map(repr, unknown))}" if unknown else ", ".join(header) or "an empty file",
            mend="correct the first line, for instance: case,t1,t2,t1ce,flair,label",
        )
    for number, line in sheet.rows:
        if len(line) != len(header):
            raise InputError(
                case=f"{path.name}, line {number}",
                expected=f"{len(header)} cells, as in the first line",
                found=f"{len(line)}",
                mend="leave the cell of an absent sequence empty, but keep what parts it from the next",
            )
    return [(number, dict(zip(header, line, strict=True))) for number, line in sheet.rows], columns


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        return False


def _cell(folder: Path, text: str) -> Source:
    """A path relative to the manifest, or "FILE#CHANNEL" for one channel of a 4-D file."""
    match = re.fullmatch(r"(.+\.nii(?:\.gz)?)#(\d+)", text.strip(), re.IGNORECASE)
    return Source(folder / text.strip()) if match is None else Source(folder / match[1], int(match[2]))
