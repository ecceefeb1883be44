"""What is kept of a faster way is measured first."""

import shutil
from dataclasses import replace

import pytest

from mindgap.errors import MindgapError
from mindgap.files import read_json, write_json
from mindgap.inference import export as module
from mindgap.inference.export import GateCases, export, make_int8
from mindgap.inference.exported import (
    MOST_LOST,
    RECORD,
    Exported,
    Gate,
    is_stale,
    judge,
    quantised_file,
    read_exported,
    write_exported,
)
from mindgap.inference.predictor import Predictor
from mindgap.inference.torch_engine import outputs_per_voxel
from mindgap.networks.weights import load_network
from mindgap.processor import detect_processor
from mindgap.regions import find_convention

FP32 = {"WT": 0.8, "TC": 0.7, "ET": 0.6}


def _gate(**lost):
    dice = {region: value - lost.get(region, 0.0) for region, value in FP32.items()}
    return judge("int8", dice, "fp32", FP32, mutual_dice=FP32, cases=5)


def test_a_gate_opens_when_no_region_loses_more_than_is_let_through():
    assert _gate().passed
    assert _gate(WT=-0.1, ET=MOST_LOST - 1e-6).passed
    closed = _gate(WT=-0.1, TC=MOST_LOST + 1e-4)
    assert not closed.passed
    assert "TC" in closed.reason
    assert "0.005" in closed.reason


def test_a_record_is_of_the_weights_beside_it(tmp_path):
    assert read_exported(tmp_path, "a") is None
    exported = Exported(whole=_gate(), int8=None)
    write_exported(tmp_path, "a", exported)
    assert read_exported(tmp_path, "a") == exported
    assert read_exported(tmp_path, "b") is None
    assert is_stale(tmp_path, "b")
    assert not is_stale(tmp_path, "a")
    write_json(tmp_path / RECORD, {**read_json(tmp_path / RECORD), "format": 99})
    with pytest.raises(MindgapError, match="Update mindgap"):
        read_exported(tmp_path, "a")


@pytest.fixture(scope="module")
def model(study, tmp_path_factory):
    """A copy of an untrained network, exported."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(study.any_subset, folder)
    calibration = GateCases(study.cases, study.cases, find_convention("brats2017"))
    lines, seen = [], []
    exported = export(
        folder,
        calibration,
        device="cpu",
        say=lines.append,
        progress=lambda done, total, case: seen.append((done, total)),
    )
    return folder, exported, lines, seen


def test_an_export_measures_both_ways_and_keeps_what_passes(model):
    folder, exported, lines, seen = model
    assert read_exported(folder, load_network(folder).sha256) == exported
    assert seen == [(n, 10) for n in range(1, 11)]  # two cases, all sequences and each alone
    for gate, ways in ((exported.whole, {"whole", "tiles"}), (exported.int8, {"int8", "fp32"})):
        assert set(gate.dice) == ways
        assert gate.cases == 2
        assert all(0 < value <= 1 for value in gate.mutual_dice.values())
        assert any(gate.reason in line for line in lines)
    assert exported.int8.mutual_dice != exported.whole.mutual_dice
    assert quantised_file(folder).is_file() == exported.int8.passed


def test_a_predictor_follows_the_record(model, study, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    sha256 = load_network(folder).sha256
    case = study.cases[0].load()
    for passed, coverage in ((True, "whole"), (False, "tiles")):
        gate = Gate(passed, "said so", {"whole": FP32, "tiles": FP32}, FP32, 2)
        write_exported(folder, sha256, Exported(whole=gate))
        found = Predictor.load(folder, device="cpu", coverage="auto").segment(case)
        assert found.coverage == coverage


def test_what_a_pass_takes_is_counted_once(model, study, tmp_path):
    folder, exported, *_ = model
    network = load_network(folder)
    assert exported.outputs_per_voxel == outputs_per_voxel(network.network, len(network.card.sequences))
    heavy = tmp_path / "model"
    shutil.copytree(folder, heavy)
    whole = Gate(True, "said so", {"whole": FP32, "tiles": FP32}, FP32, 2)
    case = study.cases[0].load()
    for count, coverage in ((None, "whole"), (exported.outputs_per_voxel, "whole"), (1e9, "tiles")):
        write_exported(heavy, network.sha256, Exported(whole=whole, outputs_per_voxel=count))
        assert Predictor.load(heavy, device="cpu", coverage="auto").segment(case).coverage == coverage


def test_a_record_of_other_weights_is_none_until_the_next_export(model, study, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    write_exported(folder, "0" * 64, Exported(int8=Gate(True, "passed", {"int8": FP32, "fp32": FP32}, FP32, 2)))
    assert Predictor.load(folder, device="cpu", engine="auto").exported is None
    with pytest.raises(MindgapError, match="other weights: run `mindgap export` again"):
        Predictor.load(folder, device="cpu", engine="auto", precision="int8")
    export(folder, GateCases([], study.cases[:1], find_convention("brats2017")), device="cpu", int8=False)
    assert Predictor.load(folder, device="cpu", engine="auto").exported.whole is not None


def test_what_fitted_once_fits_again(model, study, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    write_exported(folder, load_network(folder).sha256, Exported(whole=_gate()))
    case, free = study.cases[0].load(), iter([1000.0, 0.0, 0.0])
    monkeypatch.setattr("mindgap.inference.predictor.available_memory_gib", lambda device: next(free))
    predictor = Predictor.load(folder, device="cpu", coverage="auto")
    assert [predictor.segment(case).coverage for _ in range(2)] == ["whole", "whole"]
    assert Predictor.load(folder, device="cpu", coverage="auto").segment(case).coverage == "tiles"


def test_without_a_record_brains_are_tiled(study):
    assert Predictor.load(study.fixed, device="cpu", coverage="auto").segment(study.cases[0].load()).coverage == "tiles"


def test_int8_is_chosen_where_it_passed_and_there_is_no_bf16(model, study, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model[0], folder)
    sha256 = load_network(folder).sha256
    write_exported(folder, sha256, Exported(int8=Gate(False, "loses 0.1", {"int8": FP32, "fp32": FP32}, FP32, 2)))
    with pytest.raises(MindgapError, match=r"loses 0\.1"):
        Predictor.load(folder, device="cpu", engine="auto", precision="int8")

    shutil.rmtree(folder / "int8", ignore_errors=True)
    make_int8(folder, study.cases)
    write_exported(folder, sha256, Exported(int8=Gate(True, "passed", {"int8": FP32, "fp32": FP32}, FP32, 2)))
    chosen = Predictor.load(folder, device="cpu", engine="auto", precision="int8")
    assert chosen.choice.precision == "int8"
    assert chosen.segment(study.cases[0].load()).target.shape == study.cases[0].load().reference.array.shape
    native = detect_processor("cpu").native_bf16
    assert Predictor.load(folder, device="cpu", engine="auto").choice.precision == ("bf16" if native else "int8")
    numbers = quantised_file(folder).with_suffix(".bin")
    numbers.write_bytes(bytes(len(numbers.read_bytes())))  # whole by its length, and wrong
    assert Predictor.load(folder, device="cpu", engine="auto").choice.precision == ("bf16" if native else "fp32")
    with pytest.raises(MindgapError, match="not those that were measured"):
        Predictor.load(folder, device="cpu", engine="auto", precision="int8")
    quantised_file(folder).write_text("<net of another OpenVINO>")
    write_exported(folder, sha256, read_exported(folder, sha256))
    assert Predictor.load(folder, device="cpu", engine="auto").choice.precision == ("bf16" if native else "fp32")
    with pytest.raises(MindgapError, match="cannot be loaded"):
        Predictor.load(folder, device="cpu", engine="auto", precision="int8")


def test_an_export_needs_cases_it_can_measure_on(study):
    with pytest.raises(MindgapError, match="validation cases"):
        export(study.fixed, GateCases(study.cases, [], find_convention("brats2017")))


def test_where_there_is_a_gpu_both_coverages_are_measured_by_torch(model, study, monkeypatch):
    class Asked(Exception):
        pass

    def predictor(network, *, engine, **named):
        raise Asked(engine)

    gpu = replace(detect_processor("cpu"), device="cuda")
    monkeypatch.setattr(module, "detect_processor", lambda device: gpu)
    monkeypatch.setattr(module, "Predictor", predictor)
    with pytest.raises(Asked, match="auto"):
        export(model[0], GateCases(study.cases, study.cases, find_convention("brats2017")), int8=False)
