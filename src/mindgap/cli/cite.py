"""mindgap cite: the sources of what a run used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import parse, say


@dataclass(frozen=True)
class Cite:
    """Print BibTeX.

    Attributes:
        run: A run folder: exactly what it used. Without one: everything mindgap builds on.
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Cite, words, verb="cite")
    from mindgap.api import cite

    say(cite(settings.run).rstrip())
    return 0
