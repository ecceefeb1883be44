"""mindgap bundle: several networks in one model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import parse, print_table, say


@dataclass(frozen=True)
class Bundle:
    """Put several networks into one model folder: `mindgap segment` takes the one trained for the sequences at hand.

    Where none is trained for exactly these, the best of those that need no others answers, by the Dice they reached on
    the cases they were calibrated on (`mindgap calibrate`, all on the same cases).

    Attributes:
        runs: Run folders.
        out: The model folder.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Bundle, words, verb="bundle")
    from mindgap.errors import InputError, SettingError
    from mindgap.inference.selection import bundle, choose
    from mindgap.sequences import SUBSETS, format_subset

    if not settings.runs:
        raise SettingError("no run is named: give the folders of finished, calibrated runs.")
    members = bundle(settings.runs, settings.out)
    rows = []
    for subset in SUBSETS:
        try:
            choice = choose(members, "case", subset)
        except InputError:
            rows.append([format_subset(subset), "none", "", ""])
            continue
        e = choice.expected
        score = f"{e.text()} n={e.n}" if e.n else "not measured"
        rows.append([format_subset(subset), choice.member.folder.name, format_subset(choice.subset), score])
    print_table(["at hand", "who answers", "looks at", "mean Dice"], rows)
    say(f"wrote {settings.out} ({len(members)} networks)")
    return 0
