"""How a training, or a study of trainings, is asked to stop. Without torch: who only starts trainings needs none."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that SIGTERM, Ctrl-C or a terminal that hangs up sets (in the main thread; elsewhere nothing does).

    A second Ctrl-C ends at once, without saving. SIGTERM may come twice: a cluster sends it to every process of a job,
    and what started the processes sends it on. What `nohup` ignores stays ignored.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kinds = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        kinds.append(signal.SIGHUP)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(kind: int, _: FrameType | None) -> None:
        event.set()
        if kind == signal.SIGINT:
            signal.signal(kind, before[signal.Signals(kind)])

    for kind in before:
        signal.signal(kind, ask)
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
