"""How long work tells how far it is: callbacks that a caller may hand in, and the ones that tell nothing.

Nothing below the command line prints. What takes long takes a `progress`, what has something to say a `say`.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is in all, and what it is about: a case, a run, the last loss."""

Stage = Callable[[str], Progress]
"""Called with the name of a part of the work; returns its progress."""

Say = Callable[[str], None]
"""Called with one line for the user."""


def silent(done: int, total: int, what: str) -> None:
    """Report no progress."""


def mute(line: str) -> None:
    """Say nothing."""
