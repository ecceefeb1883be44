import pytest
import torch

from mindgap.methods.base import Parts
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.shapes import BACKGROUND


def build(subset: str, seed: int = 0):
    torch.manual_seed(seed)
    return UnimodalRecipe().build(Parts(SEQUENCES, parse_subset(subset), width=2))


@pytest.mark.parametrize("subset", ["T1ce", "T2+FLAIR"])
def test_only_the_columns_of_the_subset_are_read(make_batch, take_step, assert_same, subset):
    chosen = parse_subset(subset)
    others = [(row, j) for row in range(4) for j, s in enumerate(SEQUENCES) if s not in chosen]
    results = [take_step(build(subset), make_batch(others, fill)) for fill in (BACKGROUND, float("nan"))]
    assert_same(*results)
    assert set(results[0][0]) == {"cross_entropy", "dice"}


def test_input_channels_follow_the_subset():
    assert build("T1ce").networks["segmenter"].encode1[0].in_channels == 1
    assert build("T1+T2+FLAIR").networks["segmenter"].encode1[0].in_channels == 3


def test_usable_cases_hold_the_whole_subset():
    available = torch.tensor([[True, True, True, False], [True, True, False, True]])
    assert build("T1+FLAIR").usable(available, SEQUENCES).tolist() == [False, True]
    assert build("T1").usable(available, SEQUENCES).tolist() == [True, True]
    assert build("T1").teacher_cases(available, SEQUENCES) == 0
