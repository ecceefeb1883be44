import json
from dataclasses import asdict

import numpy as np
import pytest

from mindgap.data.prepared import Placement, Preparation, PreparedCase, join_boxes
from mindgap.errors import SettingError
from mindgap.sequences import SEQUENCES


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


def test_a_prepared_case_is_compared_by_identity():
    images = [np.zeros((1, 2, 2, 2), np.float32) for _ in range(2)]
    box = ((0, 2), (0, 2), (0, 2))
    placement = Placement((2, 2, 2), (0, 1, 2), (False, False, False), (2, 2, 2), box)
    one, other = (PreparedCase("a", i, SEQUENCES[:1], (box,), None, placement, (1.0, 1.0, 1.0)) for i in images)
    assert one != other, "the truth of an array has no single answer"
