"""mindgap report: one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import parse, say


@dataclass(frozen=True)
class Report:
    """Make one self-contained HTML page: settings, learning curves, table, best, median and worst case.

    Attributes:
        runs: Run folders; several stand side by side and are compared case by case.
        out: The page; report.html in the first run by default.
        title: Heading.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    title: str = "mindgap report"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Report, words, verb="report")
    from mindgap.api import report
    from mindgap.errors import SettingError

    if not settings.runs:
        raise SettingError("no run is named: give at least one run folder.")
    say(f"wrote {report(settings.runs, settings.out, title=settings.title)}")
    return 0
