"""One network, several runners with one signature: torch, and OpenVINO on a CPU; which one, by rules that are shown."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mindgap.errors import MindgapError, SettingError
from mindgap.inference.exported import Exported, is_stale, quantised_file, quantised_sha256, read_exported
from mindgap.networks.card import Trained
from mindgap.processor import Processor, choose_precision
from mindgap.shapes import Bool, Float

EngineName = Literal["torch", "openvino"]
EnginePrecision = Literal["fp32", "bf16", "int8"]

HOW_TO_INSTALL = "pip install 'mindgap[cpu]'"
HOW_TO_QUANTISE = "mindgap export RUN --data COHORT"


@runtime_checkable
class Engine(Protocol):
    """What turns images into probabilities.

    Attributes:
        name: The library that computes.
        precision: What it computes in.
    """

    name: EngineName
    precision: EnginePrecision

    def __call__(
        self, images: Float[NDArray[np.float32], "B J i j k"], present: Bool[NDArray[np.bool_], " J"]
    ) -> Float[NDArray[np.float32], "B R i j k"]:
        """Probabilities of WT, TC, ET; absent sequences hold background."""


@dataclass(frozen=True)
class Choice:
    """An engine, what it computes in, and why."""

    name: EngineName
    precision: EnginePrecision
    reason: str


def choose_engine(
    engine: str, precision: str, processor: Processor, *, int8: bool = False, why_no_int8: str = ""
) -> Choice:
    """Which engine computes in which precision.

    A GPU takes torch. A CPU takes OpenVINO where it is installed: bf16 where the processor has it in hardware, else
    int8 where the model folder has a quantised network that passed its gate, else fp32.

    Args:
        engine: "auto", "torch" or "openvino".
        precision: "auto", "fp32", "bf16" or "int8".
        processor: Where it will run.
        int8: Whether the model folder has a quantised network that passed its gate.
        why_no_int8: What to say where it has none.

    Raises:
        SettingError: What is asked for is unknown, not installed, or nothing the processor or the model can do.
    """
    if engine not in ("auto", "torch", "openvino"):
        raise SettingError(f"engine {engine!r} is unknown: choose auto, torch or openvino.")
    if precision not in ("auto", "fp32", "bf16", "int8"):
        raise SettingError(f"precision {precision!r} is unknown: choose auto, fp32, bf16 or int8.")
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino" and processor.device != "cpu":
        raise SettingError("engine openvino computes on the CPU: add --device cpu, or use --engine torch on the GPU.")
    if engine == "openvino" and not installed:
        raise SettingError(f"engine openvino is not installed: {HOW_TO_INSTALL}, or use --engine torch.")
    if engine == "torch" or processor.device != "cpu" or not installed:
        if precision == "int8":
            raise SettingError(f"precision int8 needs the engine openvino on a CPU ({HOW_TO_INSTALL}).")
        reason = (
            "asked for"
            if engine == "torch"
            else "a GPU"
            if processor.device != "cpu"
            else f"openvino, which is faster on a CPU, is not installed: {HOW_TO_INSTALL}"
        )
        return Choice("torch", choose_precision(precision, processor), reason)
    if precision == "int8" and not int8:
        raise SettingError(f"this model has no int8 network: {why_no_int8 or HOW_TO_QUANTISE}.")
    if precision in ("fp32", "bf16"):
        return Choice("openvino", choose_precision(precision, processor), "asked for")
    if precision == "auto" and processor.native_bf16:
        return Choice("openvino", "bf16", "native bf16")
    if int8:
        reason = "asked for" if precision == "int8" else "no native bf16; int8 passed its gate"
        return Choice("openvino", "int8", reason)
    return Choice("openvino", "fp32", f"no native bf16, no int8 network ({why_no_int8 or HOW_TO_QUANTISE})")


def load_engine(
    model: Trained, processor: Processor, *, engine: str, precision: str
) -> tuple[Engine, Choice, Exported | None]:
    """The engine of a trained network, why it is this one, and what was measured when the network was exported.

    An int8 network that cannot be loaded gives way to fp32 where nobody asked for it.

    Raises:
        SettingError: As :func:`choose_engine`.
        MindgapError: int8 was asked for and cannot be loaded.
    """
    exported = read_exported(model.folder, model.sha256)
    gate = exported.int8 if exported is not None else None
    int8, why = gate is not None and gate.passed, "" if gate is None else gate.reason
    if is_stale(model.folder, model.sha256):
        why = "what was exported is of other weights: run `mindgap export` again"
    elif int8 and exported is not None and exported.int8_sha256 != quantised_sha256(model.folder):
        int8, why = False, "its int8 files are not those that were measured: run `mindgap export`, or install, again"
    choice = choose_engine(engine, precision, processor, int8=int8, why_no_int8=why)
    if choice.name == "torch":
        from mindgap.inference.torch_engine import TorchEngine

        return TorchEngine(model.network, processor.device, choice.precision), choice, exported
    from mindgap.inference.openvino_engine import OpenVinoEngine, representation_of

    if choice.precision == "int8":
        try:
            quick = OpenVinoEngine(quantised_file(model.folder), "int8", threads=processor.threads, keep=True)
        except MindgapError:  # lost, or of another OpenVINO than reads it
            if precision == "int8":
                raise
            choice = Choice("openvino", "fp32", "the int8 network of this model cannot be loaded")
        else:
            return quick, choice, exported
    made = OpenVinoEngine(representation_of(model), choice.precision, threads=processor.threads, keep=True)
    return made, choice, exported


def memory_gib(outputs: float, shape: Sequence[int], precision: EnginePrecision) -> float:
    """Upper bound of what one pass over a volume takes: the outputs of all layers, as if none were freed.

    Args:
        outputs: For each voxel (:func:`mindgap.inference.torch_engine.outputs_per_voxel`); all of them grow with the
            volume.
        shape: Sides in voxels, multiples of the network's stride.
        precision: bf16 halves the outputs.
    """
    return outputs * math.prod(shape) * (2 if precision == "bf16" else 4) / 2**30
