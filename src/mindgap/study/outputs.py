"""What a preset leaves behind: its table as Markdown, CSV and HTML, or its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindgap.files import write_text
from mindgap.study.grid import PRESETS, Choice
from mindgap.study.matrix import CROSS, score_across, table5
from mindgap.study.results import Results
from mindgap.study.scale import Place
from mindgap.study.tables import Table, build_table


def make_output(preset: str, place: Place, choice: Choice, *, say: Callable[[str], None]) -> list[Path]:
    """Make the table or figure of a preset from the runs that are there.

    Args:
        preset: Name.
        place: Of the study.
        choice: What was run.
        say: Takes the table as text.
    """
    if preset == "table5":
        _show_every_sequence(place, choice)
        table = table5(place, choice)
    else:
        table = build_table(preset, Results(place.out / "runs"), choice)
    say(table.markdown())
    return _write(table, place.out / "tables")


def _show_every_sequence(place: Place, choice: Choice) -> None:
    results = Results(place.out / "runs")
    for run in PRESETS["table5"](choice):
        if results.has(run) and not (place.run(run.name) / CROSS).is_file():
            score_across(place.run(run.name), place.data, device=place.device, progress=lambda done, total, case: None)


def _write(table: Table, folder: Path) -> list[Path]:
    written = []
    for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".html", table.html())):
        path = folder / f"{table.name}{suffix}"
        write_text(path, text)
        written.append(path)
    return written
