import numpy as np
import torch

from mindgap.batch import brain_of
from mindgap.data.codes import decode, encode
from mindgap.data.prepared import LOWEST_BRAIN
from mindgap.shapes import BACKGROUND


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


def test_codes_are_8_bit_and_keep_the_shape():
    image = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
    codes = encode(image)
    assert codes.dtype == np.uint8
    assert codes.shape == image.shape == decode(torch.from_numpy(codes)).shape
