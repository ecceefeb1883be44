"""Untrained networks whose answers have every class, and small cases with a reference on disk."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mindgap.data.case import CaseFiles, Source
from mindgap.data.preparation import prepare_case
from mindgap.data.prepared import Preparation
from mindgap.inference.predictor import Predictor
from mindgap.inference.tiling import pad_to
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard
from mindgap.networks.weights import save_network
from mindgap.regions import find_convention
from mindgap.sequences import SEQUENCES

SHAPE = (26, 22, 17)


@dataclass(frozen=True)
class Study:
    """Cases, and networks that were never trained."""

    cases: tuple[CaseFiles, ...]
    any_subset: Path
    fixed: Path


def write_case(folder: Path, seed: int) -> CaseFiles:
    """Round brains of nearly one size with smooth texture, and a reference with a core."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    rng = np.random.default_rng(seed)
    affine = np.diag([-1.0, -1.0, 1.5, 1.0])
    folder.mkdir(parents=True)
    sources = {}
    for place, sequence in enumerate(SEQUENCES):
        brain = sum(axis**2 for axis in axes) < 0.85 - 0.01 * place
        waves = sum(np.sin(rng.uniform(3, 9) * axis + rng.uniform(0, 6)) for axis in axes)
        array = ((waves + 4 + rng.uniform(0, 0.5, SHAPE)) * 100 * brain).astype(np.float32)
        sources[sequence] = Source(folder / f"{folder.name}_{sequence}.nii")
        nib.save(nib.Nifti1Image(array, affine), sources[sequence].path)
    label = np.zeros(SHAPE, np.uint8)
    label[6:18, 6:16, 4:12] = 2
    label[8:16, 8:14, 5:11] = 1
    label[9:15, 9:13, 6:10] = 4
    source = Source(folder / f"{folder.name}_seg.nii")
    nib.save(nib.Nifti1Image(label, affine), source.path)
    return CaseFiles(folder.name, sources, source)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("study")
    cases = tuple(write_case(root / "cohort" / name, seed) for seed, name in enumerate(("P01", "P02")))
    torch.manual_seed(1)
    arguments = {"sequences": 4, "latent_channels": 2, "width": 2, "weighted": True}
    network = build_network("aligned", arguments)
    image = prepare_case(cases[0].load(convention=find_convention("brats2017")), Preparation()).image
    padded, _ = pad_to(image, [32, 32, 32])
    head = network.predictor.head
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(padded)[None], torch.ones(1, 4, dtype=torch.bool)).logits[0]
        spread = logits.flatten(1).std(1)
        head.bias.sub_(logits.flatten(1).mean(1)).div_(spread)
        head.weight.div_(spread[:, None, None, None, None])
    card = ModelCard("aligned", arguments, SEQUENCES, asdict(Preparation(spacing_mm=1.2)), 16, "teacher")
    save_network(root / "fixed", network, card)
    save_network(root / "any", network, replace(card, any_subset=True))
    return Study(cases, root / "any", root / "fixed")


@pytest.fixture(scope="session")
def anything(study: Study) -> Predictor:
    """A network that takes every subset."""
    return Predictor.load(study.any_subset, device="cpu", precision="fp32", coverage="whole")


@pytest.fixture(scope="session")
def fixed(study: Study) -> Predictor:
    """The same network, said to need all four sequences."""
    return Predictor.load(study.fixed, device="cpu", precision="fp32", coverage="whole")
