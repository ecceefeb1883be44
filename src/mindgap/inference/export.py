"""Make a trained network fast where that costs nothing: int8 for processors without bf16, whole-brain passes; measured.

Both are tried on the validation cases, against what they would replace, and left out where they lose too much.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import CaseFiles
from mindgap.data.preparation import prepare_case, put_back
from mindgap.data.prepared import PreparedCase
from mindgap.errors import InputError, MindgapError
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.rules import DEFAULT_RULES
from mindgap.inference.engines import HOW_TO_INSTALL, Engine
from mindgap.inference.exported import RECORD, Exported, Gate, judge, quantised_file, write_exported
from mindgap.inference.opened import OpenedCase
from mindgap.inference.predictor import Coverage, Predictor
from mindgap.inference.tiling import pad_to, padded_shape
from mindgap.networks.card import TrainedNetwork
from mindgap.networks.weights import load_network
from mindgap.processor import detect_processor
from mindgap.progress import Progress, Say, mute, silent
from mindgap.regions import LabelConvention, Region, region_mask
from mindgap.sequences import SEQUENCES, Subset
from mindgap.shapes import BACKGROUND, STRIDE

if TYPE_CHECKING:
    from mindgap.inference.translation import Sample
SAMPLES_PER_CASE = 4
"""Crops, or half as many whole brains."""
CALIBRATION_CASES = 12
_TILES, _WHOLE, _INT8, _FP32 = "tiles", "whole", "int8", "fp32"


@dataclass(frozen=True)
class GateCases:
    """Cases with labels that an export learns from and is measured on.

    Attributes:
        training: For the ranges of int8; the network was trained on them.
        validation: For the gates; the network was not trained on them.
        convention: Of their labels.
    """

    training: Sequence[CaseFiles]
    validation: Sequence[CaseFiles]
    convention: LabelConvention


@dataclass(frozen=True)
class _Way:
    """A way to compute, and the name of the one it would replace."""

    engine: Engine
    coverage: Coverage
    against: str


@dataclass
class _Tally:
    """Dice against the labels, of every way, and between each way and the one it would replace."""

    dice: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    mutual: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(
        self, masks: Mapping[str, NDArray[np.uint8]], ways: Mapping[str, _Way], reference: NDArray[np.uint8]
    ) -> None:
        """Note the masks of one case on one subset."""
        for name, mask in masks.items():
            for region in Region:
                found, other = region_mask(mask, region), region_mask(masks[ways[name].against], region)
                self._put(self.dice, name, region, dice(found, region_mask(reference, region)))
                self._put(self.mutual, name, region, dice(found, other))

    def mean(self, way: str, *, mutual: bool = False) -> dict[str, float]:
        """Region -> mean over cases and subsets."""
        kept = (self.mutual if mutual else self.dice)[way]
        return {region: round(float(np.mean(values)), 5) for region, values in kept.items()}

    @staticmethod
    def _put(kept: dict[str, dict[str, list[float]]], way: str, region: Region, value: float) -> None:
        kept.setdefault(way, {}).setdefault(str(region), []).append(value)


def export(
    folder: Path,
    cases: GateCases,
    *,
    device: str = "auto",
    int8: bool = True,
    seed: int = 0,
    progress: Progress = silent,
    say: Say = mute,
) -> Exported:
    """Measure whole-brain passes, make and measure an int8 network, and write what was found beside the weights.

    Network for any subset: measured on all sequences and on each alone. int8 is measured against fp32 as the card asks,
    in tiles or in one pass, and computed as fast on every processor that has no native bf16; where it loses too much
    its files are removed and the record says so.

    Args:
        folder: Of the model.
        cases: With labels.
        device: auto, cpu or cuda.
        int8: Whether to make an int8 network.
        seed: Of the crops that int8 is calibrated with.
        progress: Called after each subset of each validation case.
        say: Takes lines worth reading.

    Raises:
        MindgapError: There is no validation case, or int8 is wanted and a package is missing.
    """
    if not cases.validation:
        raise MindgapError("an export is measured on validation cases with labels, and there is none.")
    if int8 and not can_quantise():
        raise MindgapError(f"int8 needs openvino and nncf: {HOW_TO_INSTALL.replace('cpu', 'int8')}, or use --no-int8.")
    model = load_network(folder)
    (folder / RECORD).unlink(missing_ok=True)  # of an export before: nothing speaks for what is being made
    if int8:
        say("quantising to int8")
        make_int8(folder, cases.training, seed=seed)
    tally = _Tally()
    _measure(model, cases, tally, device=device, int8=int8, progress=progress)
    exported = counted(_judge_both(tally, len(cases.validation), int8=int8), model)
    if exported.int8 is not None and not exported.int8.passed:
        shutil.rmtree(quantised_folder(folder))
    exported = write_exported(folder, model.sha256, exported)
    for gate in (exported.whole, exported.int8):
        if gate is not None:
            say(f"{'kept' if gate.passed else 'left out'}: {gate.reason}")
    return exported


def counted(exported: Exported, model: TrainedNetwork) -> Exported:
    """The gates, with what a pass of this network takes."""
    from mindgap.inference.torch_engine import outputs_per_voxel

    return replace(exported, outputs_per_voxel=outputs_per_voxel(model.network, len(model.card.sequences)))


def quantised_folder(folder: Path) -> Path:
    """Where the files of the int8 network of a model folder lie."""
    return quantised_file(folder).parent


def can_quantise() -> bool:
    """Whether the packages that make an int8 network are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))


def cross_gate(
    folds: Mapping[Path, GateCases],
    *,
    device: str = "auto",
    int8: bool = False,
    progress: Progress = silent,
) -> Exported:
    """The gates of an export for the networks of a cross-validation, each on the cases it has not seen.

    Args:
        folds: Folder of a network -> its cases; those it has not seen are its validation cases.
        device: auto, cpu or cuda.
        int8: Whether to make an int8 network of each, beside its weights, and measure that.
        progress: Called after each subset of each case of a fold.
    """
    tally = _Tally()
    for folder, cases in folds.items():
        if int8:
            make_int8(folder, cases.training)
        model = load_network(folder)
        _measure(model, cases, tally, device=device, int8=int8, progress=progress)
    return _judge_both(tally, sum(len(cases.validation) for cases in folds.values()), int8=int8)


def _judge_both(tally: _Tally, cases: int, *, int8: bool) -> Exported:
    return Exported(
        whole=_gate(tally, _WHOLE, _TILES, cases),
        int8=_gate(tally, _INT8, _FP32, cases) if int8 else None,
    )


def _gate(tally: _Tally, way: str, reference: str, cases: int) -> Gate:
    return judge(
        way,
        tally.mean(way),
        reference,
        tally.mean(reference),
        mutual_dice=tally.mean(way, mutual=True),
        cases=cases,
    )


def make_int8(folder: Path, cases: Sequence[CaseFiles], *, seed: int = 0) -> None:
    """Quantise the network of a model folder into ``int8/`` beside its weights, in a process of its own.

    nncf changes functions of torch for as long as it is loaded; the process that calls keeps its own.

    Args:
        folder: Of the model.
        cases: Training cases; the first of them give the ranges.
        seed: Of the crops.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        alone.submit(_quantise, folder, tuple(cases[:CALIBRATION_CASES]), seed).result()


def _quantise(folder: Path, cases: Sequence[CaseFiles], seed: int) -> None:
    from mindgap.inference.openvino_engine import save_graph
    from mindgap.inference.translation import quantise, translate

    predictor = Predictor(load_network(folder), device="cpu", precision="fp32")
    samples = list(_samples(predictor, cases, seed))
    target, card = quantised_folder(folder), predictor.card
    architecture = str(card.arguments.get("architecture", card.architecture))  # an ensemble says that of its members
    with tempfile.TemporaryDirectory() as aside:
        graph = quantise(translate(load_network(folder)), samples, architecture=architecture)
        made = save_graph(graph, Path(aside) / "int8").parent
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()  # as readable as the model folder, which a temporary folder is not
        for file in made.iterdir():
            shutil.copyfile(file, target / file.name)


def _samples(predictor: Predictor, cases: Sequence[CaseFiles], seed: int) -> Iterator[Sample]:
    """What the network sees of training cases, brains or crops as its card asks, of all sequences and of fewer."""
    random = np.random.default_rng(seed)
    subsets, whole = predictor.subsets, predictor.card.coverage == "whole"
    for files in cases:
        for number in range(SAMPLES_PER_CASE // 2 if whole else SAMPLES_PER_CASE):
            # the network's own sequences first: half of what it is asked for in practice is complete
            wanted = predictor.card.sequences if number % 2 == 0 else subsets[int(random.integers(len(subsets)))]
            try:
                subset = predictor.serve(files.case_id, files.sequences, wanted)
            except InputError:
                continue
            prepared = prepare_case(files.load(subset), predictor.preparation)
            image, present = predictor.columns(prepared)
            if whole:
                yield pad_to(image, padded_shape(image.shape[1:], STRIDE))[0][None], present[None]
            else:
                yield _crop(image, present, predictor.card.crop, random)


def _crop(image: NDArray[np.float32], present: NDArray[np.bool_], side: int, random: np.random.Generator) -> Sample:
    padded, _ = pad_to(image, [max(length, side) for length in image.shape[1:]])
    brain = np.argwhere(padded.max(0) > BACKGROUND)
    middle = brain[int(random.integers(len(brain)))].tolist()
    starts = [
        min(max(centre - side // 2, 0), length - side) for centre, length in zip(middle, padded.shape[1:], strict=True)
    ]
    a, b, c = starts
    return np.ascontiguousarray(padded[None, :, a : a + side, b : b + side, c : c + side]), present[None]


def _measure(
    model: TrainedNetwork,
    cases: GateCases,
    tally: _Tally,
    *,
    device: str,
    int8: bool,
    progress: Progress,
) -> None:
    """Every way on every validation case: the whole brain beside tiles, int8 beside fp32 as the card asks for."""
    with_openvino = detect_processor(device).device == "cpu" and importlib.util.find_spec("openvino") is not None
    engine = "openvino" if with_openvino else "auto"
    plain = Predictor(load_network(model.folder), device=device, precision="fp32", engine=engine)
    ways = {_TILES: _Way(plain.engine, "tiles", _TILES), _WHOLE: _Way(plain.engine, "whole", _TILES)}
    asked = plain.card.coverage
    if int8:
        from mindgap.inference.openvino_engine import OpenVinoEngine

        quick = OpenVinoEngine(quantised_file(model.folder), "int8", threads=plain.processor.threads)
        ways[_INT8] = _Way(quick, asked, asked)
    subsets = _tried(plain)
    done = 0
    for files in cases.validation:
        opened = OpenedCase(files, cases.convention, plain.preparation, DEFAULT_RULES)
        for subset in subsets:
            done += 1
            if set(subset) <= set(files.sequences):
                masks = _masks(plain, ways, opened.prepared(subset))
                reference = opened.case(subset).target
                assert reference is not None
                tally.add(masks, ways, reference)
            progress(done, len(cases.validation) * len(subsets), files.case_id)
    tally.dice[_FP32] = tally.dice[asked]


def _tried(predictor: Predictor) -> tuple[Subset, ...]:
    own = predictor.card.sequences
    if not predictor.card.any_subset or len(own) == 1:
        return (own,)
    return (own, *((sequence,) for sequence in SEQUENCES if sequence in own))


def _masks(predictor: Predictor, ways: Mapping[str, _Way], prepared: PreparedCase) -> dict[str, NDArray[np.uint8]]:
    masks = {}
    for name, way in ways.items():
        maps = predictor.probabilities(prepared, engine=way.engine, coverage=way.coverage)
        masks[name] = predictor.classes(put_back(maps, prepared.placement))
    return masks
