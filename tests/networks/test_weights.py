import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindgap.errors import MindgapError, SettingError
from mindgap.files import sha256_of
from mindgap.networks.build import build_network
from mindgap.networks.card import MODEL_CARD, WEIGHTS, ModelCard
from mindgap.networks.weights import load_network, save_network
from mindgap.sequences import SEQUENCES


def rewrite_card(folder, **values):
    path = folder / MODEL_CARD
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_network_comes_home_as_it_left(saved):
    folder, network, card = saved
    loaded = load_network(folder)
    assert loaded.card == card
    assert loaded.sha256 == sha256_of(folder / WEIGHTS)
    assert not loaded.network.training
    state = loaded.network.state_dict()
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    image, present = torch.rand(1, 2, 16, 16, 16), torch.tensor([[True, False]])
    assert torch.equal(loaded.network(image, present).logits, network.eval()(image, present).logits)


def test_a_folder_without_a_card_is_explained(tmp_path):
    with pytest.raises(MindgapError, match=r"model\.json is missing.*name the folder of a finished run"):
        load_network(tmp_path)


def test_missing_weights_are_explained(saved):
    folder, _, _ = saved
    (folder / WEIGHTS).unlink()
    with pytest.raises(MindgapError, match=r"model\.safetensors is missing: copy"):
        load_network(folder)


def test_damaged_weights_are_explained(saved):
    folder, _, _ = saved
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(MindgapError, match=r"model\.safetensors is damaged .*copy it again"):
        load_network(folder)


def test_a_card_that_lacks_an_entry_is_explained(saved):
    path = saved[0] / MODEL_CARD
    value = json.loads(path.read_text())
    del value["arguments"]
    path.write_text(json.dumps(value))
    with pytest.raises(MindgapError, match=r"model\.json lacks 'arguments': copy"):
        load_network(saved[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "vnet", "arguments": {"channels_in": 2, "width": 1}}, "does not fit architecture vnet"),
        (
            {"arguments": {"sequences": 2, "latent_channels": 2, "width": 2, "weighted": True}},
            "does not fit architecture aligned",
        ),
        (
            {"architecture": "unheard-of"},
            r"model\.safetensors does not fit .*'unheard-of' is unknown: choose one of vnet, aligned",
        ),
        ({"arguments": {"channels": 2}}, r"model\.safetensors does not fit .*does not take"),
    ],
)
def test_a_card_of_another_architecture_is_refused_by_name(saved, changes, words):
    rewrite_card(saved[0], **changes)
    with pytest.raises(SettingError, match=words):
        load_network(saved[0])


def test_weights_that_lack_a_tensor_are_refused(saved):
    folder, _, _ = saved
    tensors = load_file(folder / WEIGHTS)
    del tensors["anchor_logits"]
    save_file(tensors, folder / WEIGHTS)
    rewrite_card(folder, sha256=sha256_of(folder / WEIGHTS))
    with pytest.raises(
        SettingError, match=r"(?s)model\.safetensors does not fit.*anchor_logits.*Copy the whole folder"
    ):
        load_network(folder)


def test_weights_that_are_no_safetensors_are_refused(saved):
    folder, _, _ = saved
    (folder / WEIGHTS).write_bytes(b"nothing of the kind")
    rewrite_card(folder, sha256=sha256_of(folder / WEIGHTS))
    with pytest.raises(SettingError, match=r"model\.safetensors does not fit"):
        load_network(folder)


def test_a_network_that_holds_a_layer_under_two_names_is_saved_and_comes_back(tmp_path):
    arguments = {"sequences": 4, "width": 4}
    network = build_network("dynunet", arguments).eval()
    card = ModelCard("dynunet", arguments, SEQUENCES, {}, 32, "dynunet", any_subset=True)
    save_network(tmp_path, network, card)
    found = load_network(tmp_path).network
    image, present = torch.rand(1, 4, 32, 32, 32), torch.ones(1, 4, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(found(image, present).logits, network(image, present).logits)


def test_in_half_the_space_weights_are_rounded_and_averages_are_not(saved, tmp_path):
    _, network, card = saved
    torch.manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(1e5, 2e5)  # float16 ends at 65,504
    assert any(name.endswith("running_var") for name in network.state_dict())
    save_network(tmp_path / "half", network, card, half=True)
    save_network(tmp_path / "whole", network, card)
    state, learnt = load_network(tmp_path / "half").network.state_dict(), dict(network.named_parameters())
    for name, value in network.state_dict().items():
        expected = value.half().float() if name in learnt else value
        assert torch.equal(state[name], expected), name
    kinds = {name: value.dtype for name, value in load_file(tmp_path / "half" / WEIGHTS).items()}
    assert all(kinds[name] == torch.float16 for name in learnt)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < sizes[1]


def test_a_weight_that_half_the_space_cannot_hold_keeps_all_of_it(saved, tmp_path):
    _, network, card = saved
    weight = next(p for name, p in network.named_parameters() if name.endswith("conv.weight") or p.ndim == 5)
    weight.data.flatten()[0] = 7e4
    save_network(tmp_path / "half", network, card, half=True)
    found = dict(load_network(tmp_path / "half").network.named_parameters())
    name = next(name for name, p in network.named_parameters() if p is weight)
    assert torch.equal(found[name], weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(saved, value, tmp_path):
    _, network, card = saved
    next(buffer for name, buffer in network.named_buffers() if name.endswith("running_var")).flatten()[0] = value
    save_network(tmp_path / "spoilt", network, card)
    with pytest.raises(MindgapError, match=r"not finite .*running_var"):
        load_network(tmp_path / "spoilt")
