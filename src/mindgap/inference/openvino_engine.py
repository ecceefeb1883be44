"""A trained network in OpenVINO: translated once, kept beside the weights or in the user's cache, any size of brain."""

from __future__ import annotations

import atexit
import copy
import ctypes
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mindgap.batch import BACKGROUND, Bool, Float
from mindgap.errors import MindgapError
from mindgap.files import cache_folder, keep_used, sha256_of
from mindgap.inference.exported import GRAPH
from mindgap.networks.vnet import STRIDE
from mindgap.networks.weights import TrainedNetwork

FORMAT = 1
_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What is left to floating point; int8 layers are marked in the graph."""
_MODULE = r"__module\.network(\.members\.\d+)?"
_IN_FLOAT = {
    "": (r".*encoders.*", r".*encode1.*", r".*head.*"),
    "fused_unet": (rf"{_MODULE}/.*", rf"{_MODULE}\.norm/.*", r".*head.*", r"aten::.*"),
}
"""What stays in floating point when a network is quantised, by its architecture, as expressions for names of layers."""


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

    def __call__(self, images: Float[Tensor, "B J i j k"], present: Bool[Tensor, " J"]) -> Float[Tensor, "B R i j k"]:
        """Probabilities of WT, TC, ET, computed by one row after the other."""
        rows = [self._compiled([row[None].numpy(), present[None].numpy()])[0] for row in images.contiguous()]
        return torch.from_numpy(np.concatenate(rows))


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


def representation_of(model: TrainedNetwork) -> Path:
    """The translated network, from the user's cache; it is translated at the first call.

    Raises:
        MindgapError: OpenVINO cannot translate it.
    """
    openvino = import_quietly()
    what = [FORMAT, model.sha256, model.card.architecture, model.card.arguments, openvino.__version__]
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder() / "openvino" / "translated" / key
    try:
        graph = folder / GRAPH if (folder / GRAPH).is_file() else save_graph(translate(model), folder)
        keep_used(folder)
        return graph
    except OSError:  # a cache that cannot be read or written: every process translates for itself
        own = Path(tempfile.mkdtemp(prefix="mindgap-openvino-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return save_graph(translate(model), own / key)


def translate(model: TrainedNetwork) -> Any:
    """The OpenVINO graph of a network: image (1, J, i, j, k) and presence (1, J) -> WT, TC, ET (1, R, i, j, k).

    It is traced with all sequences present. Where one is absent its voxels are background, and the latent of background
    is 0 whichever way it is computed, so that the same graph answers for every subset.

    Raises:
        MindgapError: OpenVINO cannot translate it.
    """
    openvino = import_quietly()
    count = len(model.card.sequences)
    network = copy.deepcopy(model.network).cpu().eval()
    for parameter in network.parameters():  # channel after channel: what hands maps over from layout to layout is idle
        parameter.data = parameter.data.contiguous()
    example = torch.full((1, count, *[2 * STRIDE] * 3), BACKGROUND)
    example[:, :, 8:-8, 8:-8, 8:-8] = 0.0
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of branches on presence, which are meant (see above)
            inputs = (example, torch.ones(1, count, dtype=torch.bool))
            traced = torch.jit.trace(_Regions(network), inputs, check_trace=False)
            graph: Any = openvino.convert_model(traced, example_input=inputs)
    except Exception as error:
        raise MindgapError(
            f"OpenVINO cannot translate {model.card.architecture} in {model.folder} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): use --engine torch."
        ) from error
    shapes = ([1, count, -1, -1, -1], [1, count])
    graph.reshape({place: openvino.PartialShape(shape) for place, shape in zip(graph.inputs, shapes, strict=True)})
    return graph


def quantise(graph: Any, samples: Iterable[tuple[Tensor, Tensor]], *, architecture: str) -> Any:
    """Quantise a graph to int8 after training, with the ranges its maps take on samples.

    Args:
        graph: From :func:`translate`.
        samples: image (1, J, i, j, k) and presence (1, J) of training cases.
        architecture: Of the network, or of the members of an ensemble.

    Reference:
        NNCF post-training quantisation, https://github.com/openvinotoolkit/nncf. We differ: what turns images into
        latents, the first layer of a VNet behind them, which takes means and variances of unlike range, and the head
        stay in floating point; they are a small part of the work.
    """
    import_quietly()
    import nncf

    nncf.set_log_level(logging.ERROR)  # else a line for every layer that is not quantised

    def feed(item: tuple[Tensor, Tensor]) -> list[Any]:
        return [part.numpy() for part in item]

    items = list(samples)
    return nncf.quantize(
        graph,
        nncf.Dataset(items, feed),
        subset_size=len(items),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(patterns=list(_IN_FLOAT.get(architecture, _IN_FLOAT[""])), validate=False),
    )


def save_graph(graph: Any, folder: Path) -> Path:
    """Write a graph into a new folder, whole or not at all; the first of several writers wins."""
    openvino = import_quietly()
    aside = folder.with_name(f".{os.getpid()}.{secrets.token_hex(4)}")
    aside.mkdir(parents=True)  # not a temporary folder, which others could not read
    try:
        openvino.save_model(graph, aside / GRAPH, compress_to_fp16=False)
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


class _Regions(nn.Module):
    """A network whose output is nothing but its probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        regions: Tensor = self.network(image, present).region_probabilities()
        return regions
