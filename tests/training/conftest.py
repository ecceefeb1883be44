"""A tiny prepared cohort, and settings small enough to train in a second."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap.data.augmentation import Augmentation
from mindgap.data.prepared import Placement, Preparation, PreparedCase
from mindgap.data.store import Store, open_store, write_case, write_index
from mindgap.experiment import Experiment
from mindgap.methods.teacher import TeacherRecipe
from mindgap.sequences import SEQUENCES, Subset
from mindgap.shapes import BACKGROUND
from mindgap.training.loop import Schedule
from mindgap.training.optimisation import Optimisation

SHAPE = (24, 22, 20)
CASES: dict[str, Subset] = {
    "a": SEQUENCES,
    "b": SEQUENCES,
    "lacks-t1": SEQUENCES[1:],
    "v": SEQUENCES,
    "t": SEQUENCES,
}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_case(case_id: str, sequences: Subset, seed: int) -> PreparedCase:
    """Brain in a box with a tumour of three nested cubes that every sequence shows."""
    rng = np.random.default_rng(seed)
    box = ((2, 23), (1, 21), (2, 19))
    inside = tuple(slice(start, end) for start, end in box)
    target = np.zeros(SHAPE, dtype=np.uint8)
    for half, class_ in ((5, 3), (3, 2), (2, 1)):
        target[tuple(slice(10 - half, 10 + half) for _ in range(3))] = class_
    image = np.full((len(sequences), *SHAPE), BACKGROUND, dtype=np.float32)
    for j in range(len(sequences)):
        image[j][inside] = rng.uniform(-0.6, 0.1, image[j][inside].shape)
        image[j][target > 0] += 0.15 * (j + 1) * target[target > 0] / 2
    placement = Placement(SHAPE, (0, 1, 2), (False, False, False), SHAPE, tuple((0, n) for n in SHAPE))
    return PreparedCase(
        case_id=case_id,
        image=image.clip(-1, 1),
        sequences=sequences,
        boxes=(box,) * len(sequences),
        target=target,
        placement=placement,
        spacing_mm=(2.0, 2.0, 2.0),
    )


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory) -> Path:
    """Three training cases, one of which lacks T1, one validation and one test case."""
    folder = tmp_path_factory.mktemp("store")
    cases = {
        name: write_case(folder, make_case(name, sequences, seed), fingerprint=name)
        for seed, (name, sequences) in enumerate(CASES.items())
    }
    split = {
        "name": "hand",
        "sha256": "0" * 64,
        "train": ["a", "b", "lacks-t1"],
        "validation": ["v"],
        "test": ["t"],
    }
    preparation = Preparation(spacing_mm=2.0)
    write_index(Store(folder, preparation, cases, {}, split, source="nowhere", convention="brats2017"))
    return folder


@pytest.fixture(scope="session")
def store(store_folder) -> Store:
    return open_store(store_folder)


@pytest.fixture(scope="session")
def make_experiment(store_folder):
    """Eight steps of a width-2 network with every kind of variation on."""

    def make(method=None, **changes) -> Experiment:
        steps = changes.pop("steps", 8)
        values = {
            "data": store_folder,
            "method": method or TeacherRecipe(incomplete=True),
            "width": 2,
            "latent_channels": 2,
            "schedule": Schedule(steps=steps, batch=2, crop=16, foreground=0.5),
            "optimisation": Optimisation(
                optimiser="adamw", learning_rate=2e-3, weight_decay=1e-2, schedule="onecycle", clip=5.0, average=0.9
            ),
            "augmentation": Augmentation(scale=0.2, gamma=0.2, shift=0.1, bias=0.2, noise=0.05),
            "validate_every": 4,
            "save_every": 3,
            "device": "cpu",
            "precision": "fp32",
        }
        return Experiment(**{**values, **changes})

    return make
