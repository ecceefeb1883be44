import json
from dataclasses import replace

import pytest
import torch

from mindgap.errors import MindgapError
from mindgap.networks.card import MODEL_CARD, WEIGHTS, open_model, read_card
from mindgap.networks.weights import save_network


def test_a_card_says_whether_any_subset_will_do_and_older_ones_say_no(saved, tmp_path):
    folder, network, card = saved
    assert not card.any_subset
    save_network(tmp_path / "any", network, replace(card, any_subset=True))
    assert read_card(tmp_path / "any")[0] == replace(card, any_subset=True)
    value = json.loads((folder / MODEL_CARD).read_text())
    del value["any_subset"]
    (folder / MODEL_CARD).write_text(json.dumps(value))
    assert read_card(folder)[0] == card


def test_a_newer_format_is_refused(saved):
    path = saved[0] / MODEL_CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(MindgapError, match=r"model\.json has format 99.*Update mindgap"):
        read_card(saved[0])


@pytest.mark.parametrize("names", [["T1", "SWI", "FLAIR"], ["FLAIR", "T1"], ["T1", "T1"], []])
def test_columns_that_cannot_be_placed_are_refused(saved, names):
    path = saved[0] / MODEL_CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), "sequences": names}))
    with pytest.raises(MindgapError, match=r"model\.json: expected sequences among T1, T2, T1ce, FLAIR, each once"):
        read_card(saved[0])


def test_a_model_folder_loads_its_weights_when_asked_and_no_others(saved, tmp_path):
    _, network, card = saved
    save_network(tmp_path / "m", network, card)
    model, untouched = open_model(tmp_path / "m"), open_model(tmp_path / "m")
    state = model.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert (model.card, model.sha256) == read_card(tmp_path / "m")
    next(network.parameters()).data.add_(1)
    save_network(tmp_path / "m", network, card)
    with pytest.raises(MindgapError, match="other weights while it was in use"):
        untouched.network  # noqa: B018
    assert model.network is model.network


def test_damaged_weights_are_refused_before_they_are_loaded(saved, tmp_path):
    _, network, card = saved
    save_network(tmp_path / "m", network, card)
    (tmp_path / "m" / WEIGHTS).write_bytes(b"other")
    with pytest.raises(MindgapError, match="damaged"):
        open_model(tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).unlink()
    with pytest.raises(MindgapError, match="missing"):
        open_model(tmp_path / "m")
