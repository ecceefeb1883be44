from dataclasses import replace

import numpy as np
import pytest

from mindgap.report.figures import to_png
from mindgap.report.gallery import NOT_RUN, SEQUENCE_COLOURS, Embedding, draw_embeddings, draw_latent_maps, draw_masks
from mindgap.report.scene import ERROR_COLOURS, Picture

NAMES = ("T1", "T2", "T1ce", "FLAIR")


@pytest.fixture
def picture() -> Picture:
    rng = np.random.default_rng(0)
    head = np.zeros((20, 24, 16), np.float32)
    head[3:17, 3:21, 2:14] = 1
    reference = np.zeros(head.shape, np.uint8)
    reference[6:12, 8:15, 5:10] = 3
    reference[8:10, 10:13, 6:9] = 1
    predicted = np.roll(reference, 1, axis=0)
    images = {name: head * rng.uniform(0.4, 1, head.shape).astype(np.float32) for name in NAMES}
    return Picture("case", "mean Dice 0.812", "teacher", NAMES, images, reference, predicted, np.diag([-4.0, -4, 4, 1]))


def texts(figure) -> str:
    found = [text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, *axes.texts)]
    return "\n".join([*found, figure.get_suptitle()])


def test_embeddings_show_every_sequence_with_its_colour_and_the_measures():
    points = np.random.default_rng(0).normal(size=(40, 2))
    shown = Embedding(points, [name for name in NAMES for _ in range(10)], {"paired gap": "0.412"})
    figure = draw_embeddings({"P_*": shown, "P_N": None}, caption="an illustration")
    assert to_png(figure)[:4] == b"\x89PNG"
    first, second = figure.axes[:2]
    assert len(first.collections) == len(SEQUENCE_COLOURS)
    drawn = np.concatenate([part.get_offsets() for part in first.collections])
    assert np.array_equal(np.sort(drawn, axis=0), np.sort(points, axis=0))
    assert "paired gap: 0.412" in texts(figure)
    assert NOT_RUN in second.texts[0].get_text()


def test_masks_have_the_reference_then_every_network_and_its_errors_below(picture):
    right = replace(picture, predicted=picture.reference, caption="mean Dice 1.000")
    figure = draw_masks({"one case": {"P_*": picture, "P_k": right, "P_N": None}}, background="T1ce", caption="said")
    to_png(figure)
    said = texts(figure)
    assert all(word in said for word in ("reference", "P_*", "mean Dice 0.812", "mean Dice 1.000", "one case", "said"))
    assert said.count(NOT_RUN) == 2
    errors = [axes.images[-1].get_array() for axes in (figure.axes[5], figure.axes[6])]
    assert errors[0][..., 3].any(), "the shifted mask differs from the reference"
    assert not errors[1][..., 3].any(), "the perfect mask has no errors"
    assert len(figure.legends[0].get_texts()) == 3 + len(ERROR_COLOURS)


def test_maps_of_equal_latents_are_equal_pictures(picture):
    one = np.random.default_rng(1).uniform(size=(20, 24, 16, 3)).astype(np.float32)
    other = 1 - one
    aligned, apart = dict.fromkeys(NAMES, one), dict.fromkeys(NAMES, one) | {"FLAIR": other}
    figure = draw_latent_maps(picture, {"P_*": aligned, "none": apart, "P_N": None}, caption="said")
    to_png(figure)
    rows = np.array(figure.axes).reshape(4, 4)
    planes = [[axes.images[0].get_array() for axes in row] for row in rows[1:3]]
    assert all(np.array_equal(plane, planes[0][0]) for plane in planes[0])
    assert not np.array_equal(planes[1][3], planes[1][0])
    assert texts(figure).count(NOT_RUN) == 4
