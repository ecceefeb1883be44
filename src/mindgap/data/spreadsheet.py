"""CSV tables as people and their spreadsheets save them: the cells, whichever way they are encoded and parted."""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from mindgap.errors import InputError

_DELIMITERS = ",;\t"
"""What parts cells: as CSV has it, as spreadsheets of some countries write it, and as they save "Unicode text"."""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        header: Cells of the first line, without spaces around them; empty where there is none.
        rows: Number, counted from 1 with the header, and cells of each further line that is not empty.
        delimiter: What parts its cells.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    delimiter: str


def read_sheet(path: Path) -> Sheet:
    """Read a table.

    Args:
        path: In UTF-8 or UTF-16, or else in Windows-1252; the first line tells whether commas, semicolons or tabs part
            its cells.

    Raises:
        InputError: It cannot be read.
    """
    try:
        text = _decode(path.read_bytes())
        delimiter = max(_DELIMITERS, key=next(iter(text.splitlines()), "").count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines = [(number, tuple(line)) for number, line in enumerate(reader, 1) if any(line)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            case=str(path), expected="a CSV table in UTF-8", found=str(error), mend="correct the path or the file"
        ) from error
    header = tuple(name.strip() for name in lines[0][1]) if lines else ()
    return Sheet(header, tuple(lines[1:]), delimiter)


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")
