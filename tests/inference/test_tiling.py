from itertools import pairwise, product

import numpy as np
import pytest
import torch

from mindgap.errors import SettingError
from mindgap.inference.tiling import pad_to, predict_tiled, predict_whole, window_starts
from mindgap.shapes import BACKGROUND


def _random(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


class _Spy:
    """A network that remembers what it is given and echoes its input."""

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(images.copy())
        return images


@pytest.mark.parametrize("window", [1, 2, 5, 16, 80])
def test_windows_cover_an_axis_and_end_flush_with_it(window):
    for length in range(1, 200):
        starts = window_starts(length, window)
        assert starts[0] == 0
        assert starts == sorted(set(starts))
        assert starts[-1] + window == max(length, window)
        assert all(later - first <= max(window // 2, 1) for first, later in pairwise(starts))


def test_the_published_crop_takes_48_windows():
    counts = [len(window_starts(side, 80)) for side in (140, 192, 192)]
    assert counts == [3, 4, 4]
    spy = _Spy()
    predict_tiled(_random(1, 35, 48, 48), spy, window=20)  # the same at a quarter of the size
    assert sum(len(tiles) for tiles in spy.seen) == 48
    assert max(len(tiles) for tiles in spy.seen) == 4
    assert {tuple(tiles.shape[1:]) for tiles in spy.seen} == {(1, 20, 20, 20)}


@pytest.mark.parametrize("shape", [(16, 16, 16), (37, 50, 23), (17, 16, 100), (5, 20, 9), (3, 3, 3)])
def test_a_constant_prediction_stays_constant(shape):
    constant = np.array([0.9, 0.37, 1 / 3], np.float32)[:, None, None, None]
    predicted = predict_tiled(
        _random(2, *shape), lambda x: np.broadcast_to(constant, (len(x), 3, *x.shape[2:])), window=16
    )
    assert tuple(predicted.shape) == (3, *shape)
    np.testing.assert_allclose(predicted, np.broadcast_to(constant, predicted.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16, 16), (37, 50, 23), (5, 20, 9)])
@pytest.mark.parametrize("window", [16, 11])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_an_echo_reproduces_the_image(shape, window, batch):
    image = _random(3, *shape)
    np.testing.assert_allclose(predict_tiled(image, lambda x: x, window=window, batch=batch), image, rtol=0, atol=1e-6)
    np.testing.assert_allclose(predict_whole(image, lambda x: x, multiple=16), image, rtol=0, atol=0)


def test_windows_are_averaged_with_the_same_weight_everywhere():
    shape, window = (13, 9, 16), 8
    ramp = np.arange(window**3, dtype=np.float32).reshape(1, 1, window, window, window)
    predicted = predict_tiled(_random(2, *shape), lambda x: ramp.repeat(len(x), 0), window=window)
    total, count = np.zeros(shape), np.zeros(shape)
    for a, b, c in product((0, 4, 5), (0, 1), (0, 4, 8)):
        total[a : a + 8, b : b + 8, c : c + 8] += ramp[0, 0]
        count[a : a + 8, b : b + 8, c : c + 8] += 1
    assert count.max() == 3 * 2 * 2
    np.testing.assert_allclose(predicted[0], total / count, rtol=1e-5)


@pytest.mark.parametrize("run", [predict_tiled, predict_whole])
def test_a_volume_smaller_than_the_window_is_padded_with_background(run):
    image, spy = np.full((2, 5, 20, 9), 0.5, np.float32), _Spy()
    size = {"window": 16} if run is predict_tiled else {"multiple": 16}
    predicted = run(image, spy, **size)
    assert np.array_equal(predicted, image)
    for tiles in spy.seen:
        assert tiles.shape[1] == 2
        assert set(np.unique(tiles).tolist()) == {BACKGROUND, 0.5}
    tile = spy.seen[0][0]
    if run is predict_tiled:
        assert bool((tile[:, 5:10, :, 3:12] == 0.5).all())
        assert int((tile == 0.5).sum()) == 2 * 5 * 16 * 9
    else:
        assert tuple(tile.shape) == (2, 16, 32, 16)
        assert bool((tile[:, 5:10, 6:26, 3:12] == 0.5).all())
        assert int((tile == 0.5).sum()) == image.size


def test_the_whole_pass_is_the_network_on_the_padded_volume():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).requires_grad_(False)
    image = _random(2, 14, 16, 19)
    padded = torch.full((1, 2, 16, 16, 32), BACKGROUND)
    padded[0, :, 1:15, :, 6:25] = torch.from_numpy(image)
    expected = network(padded)[0, :, 1:15, :, 6:25].numpy()
    found = predict_whole(image, lambda given: network(torch.from_numpy(given)).numpy(), multiple=16)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_volume_that_fits_is_not_padded():
    image = _random(1, 16, 32, 16)
    padded, place = pad_to(image, [16, 32, 16])
    assert np.array_equal(padded, image)
    assert place == (slice(0, 16), slice(0, 32), slice(0, 16))


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_voxels_is_refused(window):
    with pytest.raises(SettingError, match="window"):
        predict_tiled(_random(1, 4, 4, 4), lambda x: x, window=window)
