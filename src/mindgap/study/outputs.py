"""What a preset leaves behind: its table as Markdown, CSV and HTML, or its figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindgap.files import write_text
from mindgap.runfiles import SCORES
from mindgap.study.grid import PRESETS, Choice
from mindgap.study.keep import CROSS
from mindgap.study.layouts import build_table
from mindgap.study.matrix import score_across, table5
from mindgap.study.results import Results
from mindgap.study.scale import Place
from mindgap.study.tables import Table


def make_output(preset: str, place: Place, choice: Choice, *, say: Callable[[str], None]) -> list[Path]:
    """Make the table or figure of a preset from the runs that are there.

    Args:
        preset: Name.
        place: Of the study.
        choice: What was run.
        say: Takes the table as text.
    """
    if preset.startswith("figure"):
        return _make_figure(preset, place, choice, say=say)
    results = Results(*place.score_folders)
    if preset == "table5":
        _show_every_sequence(place, choice)
        table = table5(results, choice)
    else:
        table = build_table(preset, results, choice)
    command = " ".join(filter(None, ["mindgap study", preset, choice.flags, "--tables-only -o FOLDER"]))
    rebuilt = f"Made from the scores in FOLDER/runs by `{command}`."
    table.notes += filter(None, [results.provenance(PRESETS[preset](choice)), rebuilt])
    say(table.markdown())
    return _write(table, (place.keep or place.out) / "tables")


def _show_every_sequence(place: Place, choice: Choice) -> None:
    """Score what Table V needs, where a network is here and was not shown every sequence yet."""
    results = Results(*place.score_folders)
    for run in PRESETS["table5"](choice):
        if (place.run(run.name) / SCORES).is_file() and results.path(run, CROSS) is None:
            score_across(place, run, progress=lambda done, total, case: None)


def _make_figure(preset: str, place: Place, choice: Choice, *, say: Callable[[str], None]) -> list[Path]:
    from mindgap.report.figures import save_png  # this and the next bring in matplotlib
    from mindgap.study.figures import draw

    drawing = draw(preset, place, choice)
    if drawing is None:
        say(f"{preset}: no teacher was run, so there is nothing to draw")
        return []
    path = place.out / "figures" / f"{preset}.png"  # pictures of patients are never kept elsewhere
    save_png(drawing.figure, path)
    if drawing.table is None:
        return [path]
    say(drawing.table.markdown())
    return [path, *_write(drawing.table, (place.keep or place.out) / "tables")]


def _write(table: Table, folder: Path) -> list[Path]:
    written = []
    for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".html", table.html())):
        path = folder / f"{table.name}{suffix}"
        write_text(path, text)
        written.append(path)
    return written
