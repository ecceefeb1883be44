"""A lock on a place, so that no two processes do the same work there; the kernel releases it with its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mindgap.errors import MindgapError, SettingError
from mindgap.files import explain_unwritten


@contextmanager
def hold(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file while a block runs; it is gone afterwards.

    Where the system or the file system knows no such locks (Windows, some network mounts), nothing is held.

    Args:
        path: The lock file; its folder exists.
        what: What must not be done twice, for the message.

    Raises:
        SettingError: Another process holds it.
        MindgapError: The place cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    handle = _take(path, what)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits finds another file and tries again
        os.close(handle)


def _take(path: Path, what: str) -> int:
    import fcntl

    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise MindgapError(explain_unwritten(path, error)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise SettingError(
                f"{what} is at work in another process: wait for its end, or end it (the lock goes with its process)."
            ) from None
        except OSError:  # a file system without locks
            return handle
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)
