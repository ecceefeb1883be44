"""What all verbs share at the terminal: parsing, progress with time left, tables."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

_GONE = (errno.EPIPE, errno.EIO)
"""What writing to a closed pipe and to a terminal that has hung up says."""
_PLAIN_EVERY_S = 10.0
_TELLS = 0.01
"""Share of the work after which the time left is told."""


def parse(kind: Callable[..., T], words: Sequence[str], *, verb: str, **options: Any) -> T:
    """Parse the words after a verb with tyro; a wrong flag ends with exit code 2 and a hint."""
    import tyro

    parsed: T = tyro.cli(kind, args=list(words), prog=f"mindgap {verb}", **options)
    return parsed


def say(line: str) -> None:
    """Print a line at once, on a line of its own even while a progress bar is open."""
    with going_on_unheard():
        if ProgressLine.open_width:
            sys.stderr.write("\r" + " " * ProgressLine.open_width + "\r")
            sys.stderr.flush()
            ProgressLine.open_width = 0
        print(line, flush=True)


@contextmanager
def going_on_unheard() -> Iterator[None]:
    """Go on in silence when whoever read our lines has gone (`| head`, a closed terminal): the work counts."""
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class ProgressLine:
    """A progress bar on a terminal; elsewhere a plain line every ten seconds. Both say how much time is left.

    They do once a hundredth of the work has shown how long it takes.

    Args:
        name: What is going on.
    """

    open_width: ClassVar[int] = 0
    """Characters of the bar that stands on the terminal now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.perf_counter()
        self.first: int | None = None
        self.spoke = self.began
        self.ended = False

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take the callback of an api function."""
        if self.ended and done >= total:  # said before; what is left to do counts no steps
            return
        self.ended = done >= total
        now = time.perf_counter()
        if self.first is None:
            self.first, self.began = (done, now) if done > 1 else (0, self.began)
        since = done - self.first
        terminal = sys.stderr.isatty()
        if not terminal and done < total and now - self.spoke < _PLAIN_EVERY_S:
            return
        if terminal and done < total and now - self.spoke < 0.1:
            return
        self.spoke = now
        took = now - self.began
        parts = [f"{self.name}: {done}/{total}", what]
        if done >= total:
            parts.insert(1, f"done in {duration(took)}")
        elif since >= _TELLS * total:
            parts.insert(1, f"{duration((total - done) * took / since)} left")
        line = "  ".join(part for part in parts if part)
        if terminal:
            bar = "#" * round(20 * done / max(total, 1))
            line = f"[{bar:<20}] {line}"
            text = "\r" + line.ljust(ProgressLine.open_width) + ("\n" if done >= total else "")
            ProgressLine.open_width = len(line) if done < total else 0
        else:
            text = line + "\n"
        with going_on_unheard():
            sys.stderr.write(text)
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as a person would say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> None:
    """Print an aligned table; the first column is text, the others are numbers, or words that may be wrapped."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if words or index == 0 else "right", no_wrap=not words)
    for row in rows:
        table.add_row(*map(escape, row))
    there = Console()
    width = 160 if there.width < 100 and not there.is_terminal else there.width
    drawn = StringIO()  # rich would end the process where nobody reads it
    Console(file=drawn, width=width, force_terminal=there.is_terminal).print(table)
    say(drawn.getvalue().rstrip("\n"))
