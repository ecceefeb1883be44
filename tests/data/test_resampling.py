import numpy as np
import pytest
import torch

from mindgap.data.resampling import resample_box


def _interpolated(whole, wanted):
    mode = {"mode": "trilinear", "align_corners": False}
    return torch.nn.functional.interpolate(torch.from_numpy(whole)[None], size=wanted, **mode)[0].numpy()


@pytest.mark.parametrize("shape", [(24, 20, 15), (7, 9, 31)])
@pytest.mark.parametrize("wanted", [(12, 10, 8), (24, 20, 15), (48, 33, 31), (5, 60, 3), (1, 1, 1)])
@pytest.mark.parametrize("box", [((0, 7), (0, 9), (0, 15)), ((2, 5), (3, 9), (6, 7)), ((6, 7), (0, 1), (14, 15))])
def test_a_box_is_resampled_as_its_whole_grid_would_be(shape, wanted, box):
    whole = np.zeros((2, *shape), np.float32)
    inside = (slice(None), *(slice(*ends) for ends in box))
    whole[inside] = np.random.default_rng(0).uniform(0.1, 1, whole[inside].shape)
    found, near = resample_box(whole[inside], box, shape, wanted)
    expected = _interpolated(whole, wanted)
    outside = expected.copy()
    place = (slice(None), *(slice(*ends) for ends in near))
    np.testing.assert_allclose(found, expected[place], rtol=0, atol=1e-6)
    outside[place] = 0
    assert not outside.any()
    if min(wanted) >= 24:  # a finer grid misses no voxel: the box is no larger than it has to be
        assert near == tuple((int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(expected)[1:])


def test_nothing_stays_nothing():
    found, near = resample_box(np.zeros((3, 0, 0, 0), np.float32), ((0, 0),) * 3, (8, 9, 7), (4, 18, 7))
    assert found.shape == (3, 0, 0, 0)
    assert near == ((0, 0),) * 3


def test_a_grid_that_stays_is_not_touched():
    maps = np.random.default_rng(1).random((3, 4, 5, 6), np.float32)
    found, near = resample_box(maps, ((2, 6), (0, 5), (1, 7)), (8, 5, 9), (8, 5, 9))
    np.testing.assert_array_equal(found, maps)
    assert near == ((2, 6), (0, 5), (1, 7))


def test_whole_numbers_stay_what_they_are_where_the_grid_is_halved():
    maps = np.arange(4 * 4 * 4, dtype=np.float32).reshape(1, 4, 4, 4)
    found, _ = resample_box(maps, ((0, 4),) * 3, (4, 4, 4), (2, 2, 2))
    np.testing.assert_array_equal(found[0], maps[0].reshape(2, 2, 2, 2, 2, 2).mean((1, 3, 5)))
