import numpy as np
import pytest

from mindgap.data.nifti import read_volume, write_volume
from mindgap.data.volume import Volume
from mindgap.inference.familiarity import FEATURES, describe_image, strangeness
from mindgap.sequences import Sequence


@pytest.fixture
def volume(tmp_path) -> Volume:
    array = np.zeros((12, 12, 12), np.float32)
    array[1:11, 1:11, 1:11] = np.random.default_rng(0).gamma(4, 50, (10, 10, 10))
    write_volume(tmp_path / "x.nii", array, np.diag([2.0, 2.0, 2.0, 1.0]))
    return read_volume(tmp_path / "x.nii", case="x")


def _known(n, rng):
    return {f"C{i}": {Sequence.T1: tuple(rng.normal(0.5, 0.05, len(FEATURES)))} for i in range(n)}


def test_features_know_no_unit_of_brightness(volume):
    brighter = Volume(volume.array * 7, volume.affine, volume.path, volume.header)
    assert describe_image(brighter) == pytest.approx(describe_image(volume), abs=1e-5)
    assert describe_image(volume)[-1] == pytest.approx(np.log(8.0)), "1000 voxels of 8 mm3"
    assert len(describe_image(volume)) == len(FEATURES)


def test_a_case_far_out_is_named_by_its_feature():
    rng = np.random.default_rng(1)
    known = _known(20, rng)
    far = (*next(iter(known.values()))[Sequence.T1][:-1], 2.0)
    found = strangeness({Sequence.T1: far}, known)
    assert found is not None
    assert found.is_strange
    assert (found.feature, found.n) == ("T1 brain volume", 20)
    dark = (-2.0, *far[1:-1], known["C0"][Sequence.T1][-1])
    found = strangeness({Sequence.T1: dark}, known)
    assert found is not None
    assert found.feature == "10th percentile of T1 brightness"


def test_one_in_n_plus_one_of_the_same_kind_is_called_strange():
    rng = np.random.default_rng(2)
    n, called = 9, 0
    for _ in range(400):
        cases = _known(n + 1, rng)
        found = strangeness(cases.pop("C0"), cases)
        called += found.is_strange
    assert called / 400 == pytest.approx(1 / (n + 1), abs=0.04)


def test_few_cases_say_nothing_and_other_sequences_do_not_count():
    rng = np.random.default_rng(3)
    known = _known(5, rng)
    assert strangeness({Sequence.T1: known["C0"][Sequence.T1]}, known) is not None
    assert strangeness({Sequence.T1: known["C0"][Sequence.T1]}, _known(4, rng)) is None
    assert strangeness({Sequence.T2: known["C0"][Sequence.T1]}, known) is None
