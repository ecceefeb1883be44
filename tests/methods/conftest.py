"""Batches of four small cases, and teachers as if they had been trained."""

from pathlib import Path

import pytest
import torch

from mindgap.batch import Batch
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard, TrainedNetwork
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.shapes import BACKGROUND

SIDE = 16


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_batch():
    """Four cases, four sequences; ``absent`` lists (row, column), whose voxels hold ``filling``."""

    def make(absent=(), filling: float = BACKGROUND, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        image = torch.full((4, 4, SIDE, SIDE, SIDE), BACKGROUND)
        image[..., 2:15, 1:14, 2:15] = torch.rand((4, 4, 13, 13, 13), generator=generator) * 1.8 - 0.9
        target = torch.randint(0, 4, (4, SIDE, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        available = torch.ones(4, 4, dtype=torch.bool)
        for row, column in absent:
            available[row, column] = False
            image[row, column] = filling
        return Batch(image, SEQUENCES, available, available, target, tuple("abcd"))

    return make


@pytest.fixture
def take_step():
    """One optimiser step of a method on a batch; gives terms, gradients and the state after it."""

    def step(method, batch):
        networks = torch.nn.ModuleDict(method.networks)
        optimiser = torch.optim.Adam(networks.parameters(), 1e-3)
        terms = method.terms("segmenter", batch)
        sum(method.term_weights.get(name, 1.0) * value.mean() for name, value in terms.items()).backward()
        gradients = {name: p.grad.clone() for name, p in networks.named_parameters() if p.grad is not None}
        optimiser.step()
        state = {name: value.clone() for name, value in networks.state_dict().items()}
        return {name: value.detach() for name, value in terms.items()}, gradients, state

    return step


@pytest.fixture
def assert_same():
    """Two results of ``take_step`` are equal bit for bit and finite."""

    def check(expected, found):
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert torch.equal(value, other[name]), name
                assert bool(value.isfinite().all()), name

    return check


@pytest.fixture
def make_teacher():
    """An aligned teacher with opinions, in a folder that need not be there."""

    def make(subset: str = "T1+T1ce+FLAIR", folder: Path = Path("teachers/one"), **changes) -> TrainedNetwork:
        torch.manual_seed(7)
        sequences = parse_subset(subset)
        arguments = {"sequences": len(sequences), "latent_channels": 2, "width": 2, "weighted": True, **changes}
        card = ModelCard("aligned", arguments, sequences, {}, crop=16, method="teacher")
        network = build_network("aligned", arguments)
        with torch.no_grad():
            network.predictor.head.weight.mul_(20)
        return TrainedNetwork(network.eval(), card, folder, "0" * 64)

    return make
