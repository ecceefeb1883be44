import numpy as np
import pytest

from mindgap.inference.decision import LOWEST, highest_expected_dice
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS


def expected_dice(p, mask):
    """Ratio of expectations: overlap over size, if every voxel is tumour with its probability."""
    return 2 * p[mask].sum() / (mask.sum() + p.sum())


def faint_tumour(seed=0, peak=0.3):
    """Nested probabilities that never reach one half."""
    axes = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    rng = np.random.default_rng(seed)
    wt = np.clip(peak * (1.2 - radius) + 0.02 * rng.random(radius.shape), 0, peak)
    return np.stack([wt, 0.7 * wt * (radius < 0.6), 0.5 * wt * (radius < 0.4)]).astype(np.float32)


def test_no_mask_by_another_threshold_is_expected_to_do_better():
    probabilities = faint_tumour()
    found = highest_expected_dice(probabilities) > 0
    p = probabilities[0].astype(np.float64)
    best = expected_dice(p, found)
    for threshold in np.linspace(LOWEST, 0.3, 60):
        assert expected_dice(p, p >= threshold) <= best + 2e-3
    assert found.any()
    assert float(probabilities.max()) < 0.5, "the most probable class would find nothing"


def test_sure_probabilities_are_taken_as_they_are():
    sure = np.zeros((3, 8, 8, 8), np.float32)
    sure[0, 1:7, 1:7, 1:7] = 1.0
    sure[1, 2:6, 2:6, 2:6] = 1.0
    sure[2, 3:5, 3:5, 3:5] = 1.0
    found = highest_expected_dice(sure)
    assert int((found == ET_CLASS).sum()) == 8
    assert int((found == NCR_CLASS).sum()) == 64 - 8
    assert int((found == ED_CLASS).sum()) == 216 - 64


def test_regions_stay_nested_where_a_region_is_likelier_than_its_place():
    classes = highest_expected_dice(faint_tumour(seed=3))
    assert set(np.unique(classes).tolist()) <= {0, ET_CLASS, NCR_CLASS, ED_CLASS}
    core = faint_tumour(seed=3)[1] >= LOWEST
    assert not bool(((classes == NCR_CLASS) & ~core).any())


@pytest.mark.parametrize("value", [0.0, 0.001, 0.09])
def test_what_is_too_faint_is_no_tumour(value):
    assert not bool(highest_expected_dice(np.full((3, 4, 4, 4), value, np.float32)).any())
