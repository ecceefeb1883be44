"""What a preset leaves behind: its table as Markdown, CSV and HTML, or its figure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

from mindgap.files import write_text
from mindgap.progress import Say, silent
from mindgap.runfiles import SCORES
from mindgap.study import grid
from mindgap.study.grid import ANCHORS, PRESETS, Choice
from mindgap.study.keep import CROSS, has_network, widen
from mindgap.study.layouts import build_table
from mindgap.study.matrix import score_across, table5
from mindgap.study.results import Results
from mindgap.study.scale import Place
from mindgap.study.tables import ANCHOR_NAMES, Table


def networks_needed(presets: Iterable[str], place: Place, choice: Choice) -> set[str]:
    """Names of the runs whose networks some presets need here, whether their scores are kept or not.

    Figures draw what networks say; Table V shows a network every sequence, unless that was kept.
    """
    needed: set[str] = set()
    across = Results(*place.score_folders, scores=CROSS)
    for preset in presets:
        if preset.startswith("figure"):
            needed |= {grid.teacher(anchor, 0).name for anchor in choice.pick("anchors", ANCHORS)}
        elif preset == "table5":
            needed |= {run.name for run in PRESETS[preset](choice) if not across.has(run)}
    return needed


def make_output(
    preset: str,
    place: Place,
    choice: Choice,
    *,
    say: Say,
    show: Callable[[Table], None] | None = None,
    scoring: bool = True,
) -> list[Path]:
    """Make the table or figure of a preset from the runs that are there.

    The table among what is kept holds everything that is kept, also where a call asks for less of it; then what was
    asked for lies in the study's own folder.

    Args:
        preset: Name.
        place: Of the study.
        choice: What was run.
        say: Takes what cannot be drawn or written, and why.
        show: Takes the table; without it ``say`` takes its Markdown.
        scoring: Whether Table V may show networks the sequences they have not been shown yet.
    """
    shown = show or (lambda table: say(table.markdown()))
    if preset.startswith("figure"):
        return _make_figure(preset, place, choice, say=say, show=shown)
    if preset == "table5" and scoring:
        _show_every_sequence(place, choice)
    table = _build(preset, place, choice)
    shown(table)
    if place.keep is None:
        return _write(table, place.out / "tables")
    scores = CROSS if preset == "table5" else SCORES
    everything = widen(preset, choice, lambda run: (place.kept(run.name) / scores).is_file())
    if everything == choice:
        return _write(table, place.keep / "tables")
    kept = _build(preset, place, everything)
    return [*_write(table, place.out / "tables"), *_write(kept, place.keep / "tables")]


def _build(preset: str, place: Place, choice: Choice) -> Table:
    results = Results(*place.score_folders)
    table = table5(results, choice) if preset == "table5" else build_table(preset, results, choice)
    command = " ".join(filter(None, ["mindgap study", preset, choice.flags, "--tables-only -o FOLDER"]))
    rebuilt = f"Made from the scores in FOLDER/runs by `{command}`."
    table.notes += filter(None, [results.provenance(PRESETS[preset](choice)), rebuilt])
    return table


def _show_every_sequence(place: Place, choice: Choice) -> None:
    """Score what Table V needs, where a network is here and was not shown every sequence yet."""
    own, across = Results(place.runs), Results(*place.score_folders, scores=CROSS)
    for run in PRESETS["table5"](choice):
        if own.has(run) and has_network(place.run(run.name)) and not across.has(run):
            score_across(place, run, progress=silent)


def _make_figure(preset: str, place: Place, choice: Choice, *, say: Say, show: Callable[[Table], None]) -> list[Path]:
    from mindgap.report.figures import save_png  # this and the next bring in matplotlib
    from mindgap.study.figures import draw, missing_teachers

    drawing = draw(preset, place, choice)
    missing = "; ".join(f"{ANCHOR_NAMES[anchor]}: {why}" for anchor, why in missing_teachers(place, choice).items())
    if drawing is None:
        say(f"{preset}: there is nothing to draw ({missing})")
        return []
    if missing:
        say(f"{preset} is without {missing}")
    path = place.out / "figures" / f"{preset}.png"  # pictures of patients are never kept elsewhere
    save_png(drawing.figure, path)
    if drawing.table is None:
        return [path]
    show(drawing.table)
    return [path, *_write(drawing.table, _folder_of_numbers(drawing.table, place, say=say))]


def _folder_of_numbers(table: Table, place: Place, *, say: Say) -> Path:
    """Where the numbers of a figure go: not over kept ones of more networks, since those may be nowhere any more."""
    if place.keep is None:
        return place.out / "tables"
    kept = place.keep / "tables" / f"{table.name}.csv"
    if kept.is_file():
        with kept.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))[1:]
        if sum(bool(row[-1]) for row in rows) > sum(bool(row[-1]) for row in table.rows):
            say(f"{kept} stays as it is: it has the numbers of networks that are not here")
            return place.out / "tables"
    return kept.parent


def _write(table: Table, folder: Path) -> list[Path]:
    written = []
    for suffix, text in ((".md", table.markdown()), (".csv", table.csv()), (".html", table.html())):
        path = folder / f"{table.name}{suffix}"
        write_text(path, text)
        written.append(path)
    return written
