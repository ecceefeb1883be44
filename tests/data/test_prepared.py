import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from mindgap.batch import BACKGROUND, brain_of
from mindgap.data.codes import decode, encode
from mindgap.data.prepared import LOWEST_BRAIN, Preparation, join_boxes
from mindgap.errors import SettingError


def test_codes_come_back_within_half_a_step():
    image = np.linspace(LOWEST_BRAIN, 1, 5001, dtype=np.float32)
    error = np.abs(decode(torch.from_numpy(encode(image))).numpy() - image).max()
    assert 0 < float(error) <= 0.5 / 127.5 + 1e-6


def test_every_code_survives_the_round_trip():
    codes = torch.arange(256).to(torch.uint8)
    assert np.array_equal(encode(decode(codes).numpy()), codes)
    assert float(decode(codes)[0]) == BACKGROUND
    assert bool((decode(codes)[1:] > BACKGROUND).all())
    assert float(decode(codes)[-1]) == 1.0


def test_background_is_code_0_and_brain_never_is():
    image = np.array([BACKGROUND, BACKGROUND + 1e-6, LOWEST_BRAIN, 0.0, 1.0], np.float32)
    codes = encode(image)
    assert codes.tolist()[0] == 0
    assert int(codes[1:].min()) >= 1
    assert np.array_equal(brain_of(decode(torch.from_numpy(codes))), image > BACKGROUND)


def test_the_joint_box_is_the_smallest_around_all():
    first, second = ((2, 5), (0, 4), (7, 9)), ((3, 8), (1, 2), (1, 3))
    assert join_boxes([first]) == first
    assert join_boxes([first, second]) == ((2, 8), (0, 4), (1, 9))


@pytest.mark.parametrize("spacing_mm", [0.29, 10.1, -1.0])
def test_an_impossible_spacing_is_refused(spacing_mm):
    with pytest.raises(SettingError, match="spacing_mm"):
        Preparation(spacing_mm=spacing_mm)


@pytest.mark.parametrize("percentiles", [(-1.0, 99.0), (50.0, 50.0), (2.0, 101.0), (99.0, 1.0)])
def test_impossible_percentiles_are_refused(percentiles):
    with pytest.raises(SettingError, match="percentiles"):
        Preparation(percentiles=percentiles)


@pytest.mark.parametrize(
    "preparation",
    [Preparation(), Preparation(2.0, "zscore", (1.0, 99.0)), Preparation(None, "percentile", (0.0, 100.0))],
)
def test_a_preparation_survives_json(preparation):
    assert Preparation.from_plain(json.loads(json.dumps(asdict(preparation)))) == preparation


def test_codes_are_8_bit_and_keep_the_shape():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
    codes = encode(image)
    assert codes.dtype == np.uint8
    assert codes.shape == image.shape == decode(torch.from_numpy(codes)).shape
