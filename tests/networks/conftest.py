"""One thread, since these tensors are too small for more; a saved network."""

import pytest
import torch

from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard
from mindgap.networks.weights import save_network
from mindgap.sequences import parse_subset


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def saved(tmp_path):
    """A small network in a folder, itself, and its card."""
    torch.manual_seed(0)
    arguments = {"sequences": 2, "latent_channels": 2, "width": 1, "weighted": True}
    preparation = {"spacing_mm": 2.0, "normalisation": "percentile", "percentiles": [0.5, 99.5]}
    network = build_network("aligned", arguments)
    network.anchor_logits.data.copy_(torch.tensor([0.5, -0.25]))
    card = ModelCard("aligned", arguments, parse_subset("T1+FLAIR"), preparation, crop=48, method="teacher")
    folder = tmp_path / "run"
    save_network(folder, network.to(memory_format=torch.channels_last_3d), card)
    return folder, network, card
