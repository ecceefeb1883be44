"""Files that are never half there: write aside, then rename; and hashes that prove what was read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mindgap.errors import MindgapError

PathLike = str | os.PathLike[str]
"""Where functions that people call themselves take a path, text will do."""

_LEFTOVER = re.compile(r"\.(\d+)(\.[0-9a-f]{8})?\.part\..+")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; when the block ends well it takes the place of ``path``.

    A crash, a full disk or a kill leaves the old file, or none, but never half of one. The temporary name keeps the
    suffixes of ``path``, since many writers choose the format by them, and has random letters, since processes in
    containers that share a folder may have one number.

    Raises:
        MindgapError: The place cannot be written.
    """
    aside = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.part.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("r+b") as handle:  # Windows syncs only what is open for writing
            os.fsync(handle.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise MindgapError(explain_unwritten(path, error)) from error
    finally:
        if aside.is_file():
            aside.unlink()


def is_full(error: BaseException) -> bool:
    """Whether what could not be written would not be written elsewhere on the disk either: it is full, or read-only."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in {*_FULL, errno.EROFS}


def explain_unwritten(path: Path, error: OSError) -> str:
    """What to tell about a file that the system did not let us write, and how to mend it."""
    mend = (
        " Make room there and run it again (a training or a cohort goes on with --resume)."
        if error.errno in _FULL
        else ""
    )
    return f"{path} could not be written: {error.strerror or error}. What stood there before was left alone.{mend}"


def cache_folder() -> Path:
    """Where files lie that can be made again: the user's cache folder, as the system names it."""
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    if named:
        return Path(named) / "mindgap"
    try:
        home = Path.home()
    except RuntimeError:  # a container whose user has neither HOME nor an entry in its list of users
        home = Path()
    if home in (Path(), Path(home.anchor)):
        return Path(tempfile.gettempdir()) / f"mindgap-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    return home / ("AppData/Local" if os.name == "nt" else ".cache") / "mindgap"


def keep_used(folder: Path, *, days: float = 60.0) -> None:
    """Note that a folder of the cache is in use now, and remove those beside it that have not been for long.

    What lies in a cache can be made again; each network, and each version of a library, leaves a folder of its own.

    Args:
        folder: In use; those beside it were all noted by this function, too.
        days: What is long.
    """
    try:
        os.utime(folder)
        for other in folder.parent.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > 86_400 * days:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:  # of another user, or gone meanwhile: tidying is no reason to fail
        pass


def remove_leftovers(folder: Path, of: Collection[str] = ()) -> None:
    """Remove what :func:`write_aside` left in a folder when its process was killed; living processes keep theirs.

    Args:
        folder: That is this process's to write in.
        of: Names that were to be written; all when empty. A folder others write in as well, perhaps on machines whose
            processes cannot be seen from here, is cleaned of one's own names only.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        mine = not of or path.name.partition(".part.")[2] in of
        if match and mine and not _lives(int(match[1])):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8; bytes of names that are no UTF-8 as escapes, which JSON (alone) reads again."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, in UTF-8."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        MindgapError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MindgapError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MindgapError(f"{path} is not readable JSON ({error}).") from error


def sha256_of(*paths: Path) -> str:
    """The SHA-256 of a file's bytes, or of those of several one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk, so that nothing done later (such as dropping an older file) gets there before it."""
    if os.name == "nt":
        return  # folders cannot be opened there
    with suppress(OSError):  # some network file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lives(pid: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True  # signal 0 would be Ctrl-C there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
