"""Which engine computes, and that all of them give the same answer."""

import ctypes
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap import networks
from mindgap.errors import MindgapError, SettingError
from mindgap.inference.engines import choose_engine, memory_gib
from mindgap.inference.openvino_engine import OpenVinoEngine, import_quietly, representation_of, save_graph
from mindgap.inference.predictor import Predictor
from mindgap.inference.torch_engine import TorchEngine, outputs_per_voxel
from mindgap.inference.translation import translate
from mindgap.networks.build import NETWORKS, build_network
from mindgap.networks.card import ModelCard, TrainedNetwork
from mindgap.networks.weights import load_network
from mindgap.processor import Processor
from mindgap.sequences import SEQUENCES
from mindgap.shapes import BACKGROUND

NATIVE = Processor("cpu", "a CPU", native_bf16=True, vector="AVX512", threads=2)
LAPTOP = replace(NATIVE, native_bf16=False, vector="AVX2")
GPU = replace(NATIVE, device="cuda")
COMPACT = {"sequences": 4, "latent_channels": 2, "width": 2, "own_share": 0.5}
ARGUMENTS = {
    "vnet": {"channels_in": 4, "width": 2},
    "aligned": {"sequences": 4, "latent_channels": 2, "width": 2},
    "fused": {"sequences": 4, "latent_channels": 2, "width": 2},
    "masked": {"sequences": 4, "width": 2},
    "smunet": {"channels_in": 4, "width": 4},
    "dynunet": {"sequences": 4, "width": 2},
    "fused_unet": COMPACT,
    "ensemble": {"count": 2, "architecture": "fused_unet", "arguments": {**COMPACT, "shared_norm": False}},
}
ANY_SUBSET = {"fused", "masked", "dynunet", "fused_unet", "ensemble"}


@pytest.mark.parametrize(
    ("processor", "engine", "precision", "int8", "expected"),
    [
        (NATIVE, "auto", "auto", False, ("openvino", "bf16")),
        (NATIVE, "auto", "auto", True, ("openvino", "bf16")),
        (LAPTOP, "auto", "auto", True, ("openvino", "int8")),
        (LAPTOP, "auto", "auto", False, ("openvino", "fp32")),
        (LAPTOP, "auto", "fp32", True, ("openvino", "fp32")),
        (NATIVE, "auto", "int8", True, ("openvino", "int8")),
        (NATIVE, "torch", "auto", True, ("torch", "bf16")),
        (LAPTOP, "torch", "auto", True, ("torch", "fp32")),
        (GPU, "auto", "auto", True, ("torch", "bf16")),
    ],
)
def test_the_engine_follows_the_processor(processor, engine, precision, int8, expected):
    choice = choose_engine(engine, precision, processor, int8=int8)
    assert (choice.name, choice.precision) == expected
    assert choice.reason


@pytest.mark.parametrize(
    ("processor", "engine", "precision", "said"),
    [
        (GPU, "openvino", "auto", "--device cpu"),
        (LAPTOP, "openvino", "bf16", "no native bf16"),
        (LAPTOP, "torch", "int8", "needs the engine openvino"),
        (LAPTOP, "auto", "int8", "mindgap export"),
        (LAPTOP, "onnx", "auto", "choose auto, torch or openvino"),
        (LAPTOP, "auto", "fp16", "choose auto, fp32, bf16 or int8"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_way_out(processor, engine, precision, said):
    with pytest.raises(SettingError, match=said):
        choose_engine(engine, precision, processor)


def test_without_openvino_torch_computes_and_says_what_would_be_faster(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    choice = choose_engine("auto", "auto", LAPTOP)
    assert choice.name == "torch"
    assert "mindgap[cpu]" in choice.reason
    with pytest.raises(SettingError, match=r"mindgap\[cpu\]"):
        choose_engine("openvino", "auto", LAPTOP)


def test_every_architecture_is_covered():
    assert set(ARGUMENTS) == set(NETWORKS)


@pytest.fixture(scope="module", params=ARGUMENTS)
def both(request, tmp_path_factory):
    """A network with running averages that are not the first ones, in torch and in OpenVINO."""
    torch.manual_seed(3)
    network = build_network(request.param, ARGUMENTS[request.param])
    with torch.no_grad():
        for name, value in network.named_buffers():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + (0.5 if "var" in name else -0.5))
    card = ModelCard(
        request.param, ARGUMENTS[request.param], SEQUENCES, {}, 32, "test", any_subset=request.param in ANY_SUBSET
    )
    folder = tmp_path_factory.mktemp(request.param)
    graph = save_graph(translate(TrainedNetwork(network.eval(), card, folder, "none")), folder / "graph")
    return card, TorchEngine(network, "cpu", "fp32"), OpenVinoEngine(graph, "fp32", threads=1)


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 16, 32)])
def test_engines_agree_on_every_size_and_subset(both, shape):
    card, plain, quick = both
    image = np.random.default_rng(4).uniform(-0.9, 1, (1, 4, *shape)).astype(np.float32)
    image[:, :, :3] = BACKGROUND
    for present in ([True] * 4, [False, False, False, True], [True, False, True, False]):
        if not all(present) and not card.any_subset:
            continue
        shown = np.array(present)
        given = np.where(shown[:, None, None, None], image, np.float32(BACKGROUND))
        np.testing.assert_allclose(quick(given, shown), plain(given, shown), rtol=0, atol=5e-4)


def test_a_batch_is_computed_row_by_row(both):
    _, plain, quick = both
    image, shown = np.random.default_rng(0).random((2, 4, 16, 32, 16), np.float32), np.ones(4, bool)
    np.testing.assert_allclose(quick(image, shown), plain(image, shown), rtol=0, atol=5e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux has them")
def test_an_engine_leaves_the_stack_of_signals_alone(study):
    """It would be freed with the engine, and the next signal would end the process."""

    class Stack(ctypes.Structure):
        _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    def stack():
        found = Stack()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
        return found.start, found.flags, found.size

    before = stack()
    predictor = Predictor.load(study.any_subset, device="cpu", engine="openvino")
    predictor.engine(np.zeros((1, 4, 16, 16, 16), np.float32), np.ones(4, bool))
    assert stack() == before


def test_a_network_is_translated_once(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = representation_of(load_network(study.any_subset))
    made = first.stat().st_mtime_ns
    assert first.is_relative_to(tmp_path)
    assert representation_of(load_network(study.any_subset)) == first
    assert first.stat().st_mtime_ns == made
    shutil.rmtree(first.parent)
    assert representation_of(load_network(study.any_subset)) == first


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(study, tmp_path, monkeypatch):
    (tmp_path / "mindgap").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = representation_of(load_network(study.any_subset))
    assert graph.is_file()
    OpenVinoEngine(graph, "fp32", threads=1, keep=True)


def test_what_was_compiled_is_kept_for_the_graph_it_was_compiled_from(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = representation_of(load_network(study.any_subset))
    image = np.random.default_rng(0).normal(size=(1, 4, 16, 16, 16)).astype(np.float32).clip(-0.9)
    present = np.ones(4, bool)
    first = OpenVinoEngine(graph, "fp32", threads=1, keep=True)(image, present)
    (kept,) = (tmp_path / "mindgap" / "openvino" / "compiled").glob("*/*.blob")
    assert np.array_equal(OpenVinoEngine(graph, "fp32", threads=1, keep=True)(image, present), first)
    old, recent = (kept.parent.parent / name for name in ("old", "recent"))
    for folder, days in ((kept.parent, 100), (old, 61), (recent, 59)):
        folder.mkdir(exist_ok=True)
        os.utime(folder, (time.time() - 86_400 * days,) * 2)
    OpenVinoEngine(graph, "fp32", threads=1, keep=True)
    assert sorted(kept.parent.parent.iterdir()) == sorted([kept.parent, recent])  # the one in use, however old
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:5000])  # its writer was killed
    assert np.array_equal(OpenVinoEngine(graph, "fp32", threads=1, keep=True)(image, present), first)
    other, date = load_network(study.any_subset), graph.stat().st_mtime
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(1.5)
    made = save_graph(translate(other), tmp_path / "other")
    for ending in (".xml", ".bin"):  # other weights behind the same name, of the same date
        shutil.copy(made.with_suffix(ending), graph.with_suffix(ending))
        os.utime(graph.with_suffix(ending), (date, date))
    assert not np.array_equal(OpenVinoEngine(graph, "fp32", threads=1, keep=True)(image, present), first)


def test_a_damaged_translation_is_named(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = representation_of(load_network(study.any_subset))
    graph.write_text("<net")
    with pytest.raises(MindgapError, match="delete its folder"):
        OpenVinoEngine(graph, "fp32", threads=1)


@pytest.mark.parametrize("coverage", ["tiles", "whole"])
def test_masks_of_both_engines_agree(study, coverage):
    case = study.cases[0].load()
    plain, quick = (
        Predictor.load(study.any_subset, device="cpu", precision="fp32", coverage=coverage, engine=engine)
        for engine in ("torch", "openvino")
    )
    for subset in (SEQUENCES, SEQUENCES[1:2]):
        one, other = plain.segment(case, subset).target, quick.segment(case, subset).target
        assert np.unique(one).size > 1
        assert np.mean(one == other) > 0.999


def test_mirror_images_are_averaged_each_turned_back(study):
    case = study.cases[0]
    plain, averaged = (
        Predictor.load(study.fixed, device="cpu", precision="fp32", coverage="whole", tta=tta) for tta in (False, True)
    )
    from mindgap.data.preparation import prepare_case

    prepared = prepare_case(case.load(), plain.preparation)
    mirror = replace(prepared, image=np.flip(prepared.image, 2))
    # the average is the same for the mirrored brain, mirrored; that of a single pass is not
    turned = np.flip(averaged.probabilities(prepared), 2)
    np.testing.assert_allclose(averaged.probabilities(mirror), turned, rtol=0, atol=1e-5)
    assert np.abs(plain.probabilities(mirror) - np.flip(plain.probabilities(prepared), 2)).max() > 1e-3


def test_memory_grows_with_the_volume_and_halves_in_bf16():
    network = build_network("vnet", {"channels_in": 4, "width": 4})
    outputs = outputs_per_voxel(network, 4)
    small, large = (memory_gib(outputs, shape, "fp32") for shape in ((32, 32, 32), (64, 64, 32)))
    assert large == pytest.approx(4 * small)
    assert memory_gib(outputs, (32, 32, 32), "bf16") == pytest.approx(small / 2)
    # at least what has to live at once: the input, the first map and what comes of it, in fp32
    assert small > 32**3 * (4 + 4) * 4 / 2**30
    assert next(network.parameters()).device.type == "cpu"


def test_a_full_disk_in_the_cache_costs_time_and_nothing_else(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    openvino = import_quietly()
    save, full = openvino.save_model, []

    def save_model(graph, path, **named):
        if path.is_relative_to(tmp_path):
            full.append(path)
            raise RuntimeError("basic_ios::clear: iostream error")
        save(graph, path, **named)

    monkeypatch.setattr(openvino, "save_model", save_model)
    graph = representation_of(load_network(study.any_subset))
    assert full
    assert graph.is_file()
    assert not list(tmp_path.rglob("*.xml"))


def test_a_translation_of_other_code_is_not_taken(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = representation_of(load_network(study.any_subset))
    for file in Path(networks.__path__[0]).glob("*.py"):
        (tmp_path / "code").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "code" / file.name)
    monkeypatch.setattr(networks, "__path__", [str(tmp_path / "code")])
    assert representation_of(load_network(study.any_subset)) == first
    (tmp_path / "code" / "vnet.py").write_text("# mended")
    assert representation_of(load_network(study.any_subset)) != first
