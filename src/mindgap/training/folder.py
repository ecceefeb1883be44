"""A run folder that explains itself: settings, terms of every step, validations, checkpoints, the network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from mindgap.errors import MindgapError
from mindgap.files import explain_unwritten, read_json, remove_leftovers, write_json, write_text
from mindgap.runfiles import CHECKPOINTS, MANIFEST, TERMS, VALIDATIONS, read_lines


class RunFolder:
    """The files of one training run; a context manager that keeps the logs open.

    Half-written files of a process that was killed here are removed.

    Args:
        path: The folder.
        resume_at: Finished steps of the checkpoint the run goes on from. Later lines of the logs are dropped, so
            that every step stands there once.
    """

    def __init__(self, path: Path, *, resume_at: int) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for place in (path, path / CHECKPOINTS):
            remove_leftovers(place)
        for name in (TERMS, VALIDATIONS):
            _truncate(path / name, resume_at)
        self._terms = (path / TERMS).open("a", encoding="utf-8")
        self._validations = (path / VALIDATIONS).open("a", encoding="utf-8")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in (self._terms, self._validations):
            try:
                handle.close()
            except OSError as failure:  # on network folders a full disk may show only here
                if error is None:
                    raise _unwritten(handle, failure) from failure

    def log_terms(self, line: dict[str, Any]) -> None:
        """Add a line about a step.

        Raises:
            MindgapError: The disk is full.
        """
        _write_line(self._terms, line)

    def log_validation(self, line: dict[str, Any]) -> None:
        """Add a line about a validation.

        Raises:
            MindgapError: The disk is full.
        """
        _write_line(self._validations, line)

    @property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json says now."""
        path = self.path / MANIFEST
        known: dict[str, Any] = read_json(path) if path.is_file() else {}
        return known

    def update_manifest(self, **values: Any) -> None:
        """Add to manifest.json."""
        write_json(self.path / MANIFEST, {**self.manifest, **values})

    def flush(self) -> None:
        """Bring the logs to the disk, before a checkpoint that stands for their steps gets there.

        Raises:
            MindgapError: The disk is full.
        """
        for handle in (self._terms, self._validations):
            try:
                handle.flush()
                os.fsync(handle.fileno())
            except OSError as error:
                raise _unwritten(handle, error) from error


def _truncate(path: Path, step: int) -> None:
    lines = [line for line in read_lines(path) if line["step"] <= step]
    if path.is_file():
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _write_line(handle: TextIO, line: dict[str, Any]) -> None:
    try:
        handle.write(json.dumps(line) + "\n")
        handle.flush()
    except OSError as error:
        raise _unwritten(handle, error) from error


def _unwritten(handle: TextIO, error: OSError) -> MindgapError:
    return MindgapError(explain_unwritten(Path(handle.name), error))
