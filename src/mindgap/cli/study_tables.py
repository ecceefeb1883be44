"""What `mindgap study` prints: the runs and their cost, and of every table what fits a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mindgap.cli.terminal import duration, print_table, say

if TYPE_CHECKING:
    from mindgap.study.grid import Run
    from mindgap.study.scale import Scale
    from mindgap.study.tables import Table
    from mindgap.study.trial_tables import TrialRow

_FIRST_MEASURED = ("WT", "T1", "T2")
"""Before the first of them stand the names of a row."""
_SHOWN = re.compile(r"Avg$|p \(Holm\)$|row mean$|mean of 14$|gain|.*\bminus\b")
_GAIN = re.compile(r"\[[+-]\d")
"""The interval of a difference, which a note on gains has."""
_LETTERS = 100


def print_runs(
    runs: Sequence[Run], scale: Scale, *, at_once: int, native_bf16: bool, finished: Sequence[Run] = ()
) -> None:
    """Print what would be run, and how long it would take; what is finished takes no time.

    Args:
        runs: Of the study.
        scale: Knows what a step costs.
        at_once: How many train at the same time.
        native_bf16: Whether this machine has it; the times of single runs are for its kind.
        finished: Which of the runs are.
    """
    from mindgap.study.scale import GAIN_TOGETHER, WITHOUT_BF16

    slower = 1.0 if native_bf16 else WITHOUT_BF16
    rows, total = [], 0.0
    for run in runs:
        seconds = 0.0 if run in finished else scale.seconds_of(run)
        total += seconds
        about = "finished" if run in finished else duration(slower * seconds)
        rows.append([run.name, run.subset, f"{scale.steps_of(run):,}", about, run.after or ""])
    print_table(["run", "sees", "steps", "about", "after"], rows)
    say(f"{len(rows)} runs with {' '.join(scale.flags)}{f', {len(finished)} of them finished' if finished else ''}")
    total /= GAIN_TOGETHER if at_once > 1 else 1
    without = duration(WITHOUT_BF16 * total)
    say(f"about {duration(total)} on two cores with native bf16, {without} without; a GPU takes a small part of it")
    say(f"the times in the table are those {'with' if native_bf16 else 'without'} it, as on this machine")


def show_table(table: Table) -> None:
    """Print the names of the rows with their averages, differences and p, and below them what was gained.

    Rows without any of these, such as what the paper quotes, stand in the files only, as the other columns do.
    """
    named = min((table.header.index(name) for name in _FIRST_MEASURED if name in table.header), default=None)
    kept = [n for n, name in enumerate(table.header) if named is None or n < named or _SHOWN.match(name)]
    rows = [[row[n] for n in kept] for row in table.rows if any(row[n] for n in kept if n >= (named or 0))]
    say(table.title)
    print_table([table.header[n] for n in kept], rows, words=True)
    shown = "".join(cell for row in rows for cell in row)
    for note in table.notes:
        if _GAIN.search(note) or note.startswith("p") or (note[0] in shown and not note[0].isalnum()):
            say(textwrap.fill(note, _LETTERS, initial_indent="- ", subsequent_indent="  "))
    say("")


def print_box(trials: Sequence[TrialRow]) -> None:
    """Print what was tried for the network in the box, in percent over the fifteen subsets."""
    rows = []
    for row in trials:
        average = " / ".join(f"{100 * interval.mean:.1f}" for interval in row.average.values())
        gain = row.difference["mean"].text(1, signed=True, scale=100.0) if row.difference else ""
        rows.append([row.trial.name, str(row.cases), f"{row.trial.steps:,}", average, row.trial.against or "", gain])
    print_table(["trial", "n", "steps", "mean of 15, WT / TC / ET", "against", "difference of all three"], rows)
