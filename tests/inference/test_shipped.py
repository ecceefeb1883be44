"""The network that comes with the package."""

import shutil

import pytest

from mindgap.data.splits import published_split
from mindgap.errors import MindgapError, SettingError
from mindgap.inference.exported import quantised_file, read_exported
from mindgap.inference.predictor import Predictor
from mindgap.inference.shipped import CARD, DEFAULT, model_folder, shipped
from mindgap.networks.card import MODEL_CARD, WEIGHTS
from mindgap.networks.weights import load_network
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset

NEVER = {*published_split("protokd").test, "BraTS20_Training_001"}


@pytest.fixture(scope="module")
def box():
    return shipped()[DEFAULT]


def test_it_is_small_whole_and_takes_every_subset(box):
    assert box.bytes <= 8_000_000
    assert load_network(box.folder).sha256 == box.sha256
    assert Predictor.load(box.folder, device="cpu", precision="fp32").subsets == SUBSETS
    assert box.card.sequences == SEQUENCES


def test_damaged_weights_are_refused(box, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(box.folder, copy)
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(MindgapError, match="damaged"):
        load_network(copy)


def test_no_test_case_taught_it_or_is_known_to_it(box):
    known = box.confidence
    assert known.part == "cross-validation"
    seen = {row.case for row in known.observed} | set(known.known)
    assert len(seen) == 28
    assert not seen & NEVER


def test_what_is_expected_of_every_subset_is_known(box):
    assert box.card.decision == "expected_dice"
    for subset in map(format_subset, SUBSETS):
        dice = box.dice(subset)
        assert all(interval.n == 28 and interval.low <= interval.mean <= interval.high for interval in dice.values())


def test_its_card_says_what_it_is(box):
    assert box.sha256 in box.text
    for word in ("Research use only", "BraTS", "Intended use", "Known failures"):
        assert word in box.text, word
    assert (box.folder / CARD).is_file()


def test_a_folder_comes_before_a_name_and_a_strange_one_is_refused(box, tmp_path, monkeypatch):
    assert model_folder(None) == model_folder(DEFAULT) == box.folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT).mkdir()
    assert model_folder(DEFAULT).resolve() == (tmp_path / DEFAULT).resolve()
    assert model_folder(None) == box.folder
    for strange in ("bx", "../box", str(tmp_path / "nothing"), "box/model.json", ""):
        with pytest.raises(SettingError, match="neither the folder"):
            model_folder(strange) if strange else model_folder("no such")
    assert (box.folder / MODEL_CARD).is_file()


def test_an_int8_network_is_shipped_where_it_passed_its_gate_only():
    for name, network in shipped().items():
        exported = read_exported(network.folder, network.sha256)
        passed = exported is not None and exported.int8 is not None and exported.int8.passed
        assert quantised_file(network.folder).parent.exists() == passed, name
