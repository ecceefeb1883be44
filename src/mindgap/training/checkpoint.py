"""Checkpoints: everything a run needs to go on exactly, written aside and guarded by a hash."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindgap.errors import MindgapError, SettingError
from mindgap.files import sha256_of, write_aside, write_text
from mindgap.runfiles import CHECKPOINTS

_KEPT = 2
_PREFIX, _SUFFIX = "step_", ".pt"


@dataclass
class TrainingState:
    """What changes while a run goes on.

    Attributes:
        step: Finished steps.
        networks: State of each trained network.
        optimisers: State of each player's optimiser.
        average: State of the averaged weights, and how often they were updated.
        best: Best validation score so far and its step (the network itself is model.safetensors).
        random: States of all random generators.
        settings: Hash of the settings that decide the course of the run.
    """

    step: int
    networks: dict[str, Any]
    optimisers: dict[str, Any]
    average: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    settings: str = ""


def save_checkpoint(folder: Path, state: TrainingState) -> Path:
    """Write a checkpoint and its hash, then drop all but the newest two.

    A file of a later step is one that was found damaged when the run went on from an earlier one; it goes too, so that
    it never takes the place of a whole one.
    """
    path = folder / f"{_PREFIX}{state.step:08d}{_SUFFIX}"
    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()  # of what was meant, not of what the disk made of it
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getbuffer())
    write_text(path.with_suffix(".sha256"), digest + "\n")
    files = _checkpoints(folder)
    current = files.index(path)
    for old in files[: max(current + 1 - _KEPT, 0)] + files[current + 1 :]:
        old.with_suffix(".sha256").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, *, settings: str) -> tuple[TrainingState | None, list[str]]:
    """The newest checkpoint that is whole.

    Args:
        folder: Where checkpoints lie.
        settings: Hash the checkpoint has to carry.

    Returns:
        The state, or None if there is none; and a line about every damaged checkpoint passed over.

    Raises:
        SettingError: The checkpoint was made with other settings.
    """
    warnings = []
    for path in reversed(_checkpoints(folder)):
        problem = _damage(path)
        if problem:
            warnings.append(f"{path.name} is damaged ({problem}) and was passed over.")
            continue
        value = torch.load(path, map_location="cpu", weights_only=True)
        state = TrainingState(**value)
        if state.settings != settings:
            raise SettingError(
                f"{path} was made with other settings. Resume with the settings in experiment.json, or start a new "
                "run in another folder."
            )
        return state, warnings
    return None, warnings


def random_state() -> dict[str, Any]:
    """States of the generators of Python, numpy, torch and, if there is one, the GPU."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()  # of this process's GPU: the run may go on with fewer
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo :func:`random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def has_checkpoint(folder: Path) -> bool:
    """Whether any checkpoint lies in a folder."""
    return bool(_checkpoints(folder))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")) if folder.is_dir() else []


def _damage(path: Path) -> str | None:
    side = path.with_suffix(".sha256")
    if not side.is_file():
        return "its hash is missing"
    try:
        whole = sha256_of(path).encode() == side.read_bytes().strip()
    except OSError as error:  # a bad sector, for example
        return f"it cannot be read: {error.strerror or error}"
    return None if whole else "its hash does not match"


def refuse_existing(folder: Path) -> None:
    """Refuse to start a run where one lies already.

    Raises:
        MindgapError: There is a checkpoint.
    """
    if has_checkpoint(folder / CHECKPOINTS):
        raise MindgapError(f"{folder} holds a run already: continue it with --resume, or name another folder.")
