"""Small images on disk."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (12, 10, 8)
AFFINE = np.array([[-1.0, 0, 0, 6], [0, -1, 0, 5], [0, 0, 1.5, -4], [0, 0, 0, 1]])


@pytest.fixture
def make_image():
    """An image array: noise above 0 in a box, 0 around it; every seed gives another one."""

    def make(seed: int = 0) -> np.ndarray:
        array = np.zeros(SHAPE, dtype=np.float32)
        array[2:10, 2:8, 1:7] = np.random.default_rng(seed).uniform(1, 100, (8, 6, 6))
        return array

    return make


@pytest.fixture
def make_label():
    """A label array with the given values, one voxel layer each, on background 0."""

    def make(values=(1, 2, 4)) -> np.ndarray:
        array = np.zeros(SHAPE, dtype=np.uint8)
        for layer, value in enumerate(values):
            array[4 + layer, 3:6, 2:5] = value
        return array

    return make


@pytest.fixture
def write_nifti():
    """Write an array as NIfTI and give its path back."""

    def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def write_case(write_nifti, make_image, make_label):
    """Write one case folder; the names of its files are the folder's name and the given endings."""

    def write(folder: Path, endings=("_t1", "_t2", "_t1ce", "_flair"), label="_seg", values=(1, 2, 4)) -> Path:
        for seed, ending in enumerate(endings):
            write_nifti(folder / f"{folder.name}{ending}.nii.gz", make_image(seed))
        if label:
            write_nifti(folder / f"{folder.name}{label}.nii.gz", make_label(values))
        return folder

    return write
