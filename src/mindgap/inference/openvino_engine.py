"""A trained network in OpenVINO: translated once, kept beside the weights or in the user's cache, any size of brain."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mindgap import networks
from mindgap.errors import MindgapError
from mindgap.files import cache_folder, keep_used, sha256_of
from mindgap.inference.exported import GRAPH
from mindgap.networks.card import Trained
from mindgap.shapes import Bool, Float

FORMAT = 2
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What is left to floating point; int8 layers are marked in the graph."""


class OpenVinoEngine:
    """A translated network, compiled for this CPU.

    Args:
        graph: Its .xml file, the numbers in a .bin beside it.
        precision: fp32, bf16 or int8, the last for a quantised graph.
        threads: To compute with.
        keep: Whether what is compiled is kept in the user's cache: the next process loads it in a quarter of the time.

    Raises:
        MindgapError: The file is damaged.
    """

    name: Literal["torch", "openvino"] = "openvino"

    def __init__(
        self, graph: Path, precision: Literal["fp32", "bf16", "int8"], *, threads: int, keep: bool = False
    ) -> None:
        core = import_quietly().Core()
        self.precision: Literal["fp32", "bf16", "int8"] = precision
        settings: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with _own_signal_stack():
                self._compiled = _compile(core, graph, settings, keep=keep)
        except RuntimeError as error:
            kept = cache_folder() in graph.parents
            mend = "delete its folder, it is made again" if kept else "make it, or install mindgap, again"
            raise MindgapError(f"{graph} cannot be loaded ({error}): {mend}.") from error

    def __call__(
        self, images: Float[NDArray[np.float32], "B J i j k"], present: Bool[NDArray[np.bool_], " J"]
    ) -> Float[NDArray[np.float32], "B R i j k"]:
        """Probabilities of WT, TC, ET, computed by one row after the other."""
        return np.concatenate([self._compiled([row[None], present[None]])[0] for row in images])


def _compile(core: Any, graph: Path, settings: Mapping[str, str | int], *, keep: bool) -> Any:
    """A graph compiled for this CPU, or what an earlier process kept of it for the same graph and processor."""
    if keep:
        what = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        files = [graph, graph.with_suffix(".bin")]  # OpenVINO itself knows a graph by its path and date only
        what += [sha256_of(file) for file in files if file.is_file()]
        folder = cache_folder() / "openvino" / "compiled" / hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        try:
            compiled = core.compile_model(graph, "CPU", {**settings, "CACHE_DIR": str(folder)})
            keep_used(folder)
            return compiled
        except RuntimeError:  # a cache that cannot be written or read; a damaged graph fails again
            pass
    return core.compile_model(graph, "CPU", dict(settings))


def import_quietly() -> Any:
    """OpenVINO, which otherwise reports every import and conversion to its makers over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its documented way to be absent
    import openvino

    return openvino


def representation_of(model: Trained) -> Path:
    """The translated network, from the user's cache; it is translated at the first call.

    Raises:
        MindgapError: OpenVINO cannot translate it.
    """
    openvino = import_quietly()
    what = [FORMAT, _hash_of_code(), model.sha256, model.card.architecture, model.card.arguments, openvino.__version__]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "openvino" / "translated" / key
    try:
        graph = folder / GRAPH if (folder / GRAPH).is_file() else save_graph(_translated(model), folder)
        keep_used(folder)
        return graph
    except OSError:  # a cache that cannot be read or written: every process translates for itself
        own = Path(tempfile.mkdtemp(prefix="mindgap-openvino-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return save_graph(_translated(model), own / key)


def _hash_of_code() -> str:
    """Of the networks' code: what was translated before it was mended computes something else."""
    found = hashlib.sha256()
    for file in sorted(Path(networks.__path__[0]).glob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _translated(model: Trained) -> Any:
    from mindgap.inference.translation import translate  # needs torch, which a graph that is there does not

    return translate(model)


def save_graph(graph: Any, folder: Path) -> Path:
    """Write a graph into a new folder, whole or not at all; the first of several writers wins."""
    openvino = import_quietly()
    aside = folder.with_name(f".{os.getpid()}.{secrets.token_hex(4)}")
    aside.mkdir(parents=True)  # not a temporary folder, which others could not read
    try:
        try:
            openvino.save_model(graph, aside / GRAPH, compress_to_fp16=False)
        except RuntimeError as error:  # what it says of a full disk
            raise OSError(f"{folder} could not be written: {error}") from error
        if folder.is_dir() and not (folder / GRAPH).is_file():
            shutil.rmtree(folder)
        aside.rename(folder)
    except OSError:
        if not (folder / GRAPH).is_file():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder / GRAPH


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Leave the thread the stack it handles signals on.

    Compiling, OpenVINO 2026.4 gives it another one, which is freed with the network: the next signal that Python
    handles (Ctrl-C, a scheduler's SIGTERM) then ends the process with a segmentation fault.
    """
    if sys.platform != "linux":
        yield
        return
    swap, before = ctypes.CDLL(None).sigaltstack, _SignalStack()
    swap(None, ctypes.byref(before))
    try:
        yield
    finally:
        swap(ctypes.byref(before), None)
