"""mindgap demo: see the whole system work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mindgap.cli.terminal import ProgressLine, duration, parse, say


@dataclass(frozen=True)
class Demo:
    """Phantoms, an aligned teacher, a unimodal and a distilled network for T1 alone, scores and a report.

    Takes minutes on two cores and needs no data. A second call goes on where a first one was stopped.

    Attributes:
        out: Folder for everything the demo makes.
        seed: Of the patients and the networks.
        steps: Training steps per network; the quick preset's by default.
        precision: auto, fp32 or bf16.
    """

    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demo")
    seed: int = 0
    steps: int | None = None
    precision: str = "auto"


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Demo, words, verb="demo")
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    from mindgap.cli.evaluate import print_scores
    from mindgap.demo import run_demo
    from mindgap.report.collect import compare

    result = run_demo(
        settings.out,
        seed=settings.seed,
        steps=settings.steps,
        precision=settings.precision,
        stage=ProgressLine,
        say=say,
    )
    print_scores(result.scores)
    for comparison in compare(result.scores):
        i = comparison.difference
        verdict = "the interval contains 0" if i.low <= 0 <= i.high else "the interval does not contain 0"
        say(f"{comparison.text}, {comparison.region}: {i.text(signed=True)}, n = {i.n}; {verdict}")
    say(f"report: {result.page}   ({duration(result.seconds)})")
    return 0
