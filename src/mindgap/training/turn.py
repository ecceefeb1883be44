"""One training at a time in a run folder: a second one would write its checkpoints over those of the first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mindgap.errors import MindgapError, SettingError
from mindgap.files import explain_unwritten
from mindgap.lock import hold
from mindgap.progress import Say
from mindgap.runfiles import LOCK

_PATIENCE_S = 60.0
"""How long a training waits for another one in its folder, which may have been told to save and end."""


@contextmanager
def alone_in(out: Path, *, say: Say) -> Iterator[None]:
    """Keep other trainings out of a run folder while a block runs; of several processes the first one does.

    A training that was told to stop saves before it ends, so a single process waits a while before it gives up. Of
    several the first would wait alone, while the others read the checkpoint that is about to be replaced: they do not
    wait. The kernel lets go of what a killed training held.

    Args:
        out: Run folder; it is made, and taken away again where nothing was written into it.
        say: Takes a line when it has to wait.

    Raises:
        SettingError: Another training is at work there.
        MindgapError: The folder cannot be made.
    """
    rank, together = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank > 0:
        yield
        return
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MindgapError(explain_unwritten(out, error)) from error
    try:
        with ExitStack() as held:
            _take_turn(held, out, say, patience_s=_PATIENCE_S if together == 1 else 0.0)
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()


def _take_turn(held: ExitStack, out: Path, say: Say, *, patience_s: float) -> None:
    began, said = time.monotonic(), False
    while True:
        try:
            held.enter_context(hold(out / LOCK, what=f"a training in {out}"))
            return
        except SettingError:
            if time.monotonic() - began >= patience_s:
                raise
        if not said:
            say(f"another training is at work in {out}: waiting up to {patience_s:.0f} s for its end")
            said = True
        time.sleep(0.2)
