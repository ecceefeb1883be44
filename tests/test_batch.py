import math

import numpy as np
import pytest
import torch

from mindgap.batch import Batch, Output, brain_of, fill_absent
from mindgap.inference.decision import classes_from_regions
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.shapes import BACKGROUND


def make(present=None, available=None, sequences=SEQUENCES, target=True) -> Batch:
    columns = len(sequences)
    everything = torch.ones(3, columns, dtype=torch.bool)
    image = torch.arange(3 * columns, dtype=torch.float32).view(3, columns, 1, 1, 1).expand(-1, -1, 2, 2, 2)
    return Batch(
        image=image,
        sequences=sequences,
        available=everything if available is None else available,
        present=everything if present is None else present,
        target=torch.arange(3).view(3, 1, 1, 1).expand(3, 2, 2, 2) if target else None,
        case_ids=("a", "b", "c"),
    )


def test_present_never_exceeds_available():
    available = torch.ones(3, 4, dtype=torch.bool)
    available[1, 2] = False
    with pytest.raises(ValueError, match="may not present a sequence that is not available"):
        make(available=available)
    assert make(available=available, present=available).present is available
    less = torch.zeros(3, 4, dtype=torch.bool)
    assert make(available=available, present=less).available is available


def test_columns_are_selected_by_name():
    available = torch.rand((3, 4), generator=torch.Generator().manual_seed(0)) > 0.5
    batch = make(available=available, present=available)
    chosen = batch.select(parse_subset("T2+FLAIR"))
    assert chosen.sequences == parse_subset("T2+FLAIR")
    assert torch.equal(chosen.image, batch.image[:, [1, 3]])
    assert torch.equal(chosen.available, available[:, [1, 3]])
    assert torch.equal(chosen.present, available[:, [1, 3]])
    assert (chosen.case_ids, chosen.target) == (batch.case_ids, batch.target)
    again = make(sequences=parse_subset("T2+T1ce+FLAIR")).select(parse_subset("FLAIR"))
    assert again.image[:, 0, 0, 0, 0].tolist() == [2, 5, 8]
    assert batch.select(SEQUENCES) is batch


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(KeyError, match=r"no column for .*T1ce"):
        make(sequences=parse_subset("T1+T2")).select(parse_subset("T1+T1ce"))


@pytest.mark.parametrize("target", [True, False])
def test_rows(target):
    batch = make(target=target)
    some = batch.rows(torch.tensor([True, False, True]))
    assert some.case_ids == ("a", "c")
    assert torch.equal(some.image, batch.image[[0, 2]])
    assert (some.target is None) == (not target)
    if target:
        assert torch.equal(some.target, batch.target[[0, 2]])
    assert some.available.shape == some.present.shape == (2, 4)
    assert batch.rows(torch.ones(3, dtype=torch.bool)) is batch


def test_absent_sequences_become_background_whatever_stands_there():
    image = torch.rand(2, 2, 2, 2, 2)
    present = torch.tensor([[True, False], [True, True]])
    image[0, 1] = torch.nan
    filled = fill_absent(image, present)
    assert bool((filled[0, 1] == BACKGROUND).all())
    assert torch.equal(filled[1], image[1])
    assert torch.equal(filled[0, 0], image[0, 0])
    assert bool(image[0, 1].isnan().all()), "the input is left as it is"


def test_brain_is_above_the_background_and_nan_is_not_brain():
    assert brain_of(torch.tensor([-1.0, -0.99, 1.0, math.nan])).tolist() == [False, True, True, False]


def test_region_probabilities_by_hand_and_nested():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    regions = Output(p.log().view(1, 4, 1, 1, 1)).region_probabilities()
    assert regions.flatten().tolist() == pytest.approx([0.9, 0.5, 0.2])  # WT, TC, ET
    logits = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16() * 20
    wt, tc, et = Output(logits).region_probabilities().unbind(1)
    assert wt.dtype == torch.float32
    assert bool(((et <= tc) & (tc <= wt) & (wt <= 1) & (et >= 0)).all())


def test_regions_of_a_sigmoid_head_are_maxima_and_nested():
    s = torch.tensor([0.3, 0.6, 0.2])  # ET, NCR, ED
    regions = Output(torch.logit(s).view(1, 3, 1, 1, 1), head="sigmoid").region_probabilities()
    assert regions.flatten().tolist() == pytest.approx([0.6, 0.6, 0.3])  # WT, TC, ET
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16() * 20
    wt, tc, et = Output(logits, head="sigmoid").region_probabilities().unbind(1)
    assert wt.dtype == torch.float32
    assert bool(((et <= tc) & (tc <= wt) & (wt <= 1) & (et >= 0)).all())


def test_the_mask_of_a_sigmoid_head_is_that_of_smunets_rule_wherever_it_is_sure():
    grid = torch.linspace(0.01, 0.99, 50)
    s = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij"))  # ET, NCR, ED
    regions = Output(torch.logit(s)[None], head="sigmoid").region_probabilities()[0]
    found = classes_from_regions(regions.numpy())
    rule = np.zeros_like(found)
    for class_ in (3, 2, 1):  # ET overrides NCR overrides ED
        rule[(s[class_ - 1] >= 0.5).numpy()] = class_
    sure = (((s < 0.25) | (s > 0.75)).all(0) | (s[0] > 0.5)).numpy()
    assert np.array_equal(found[sure], rule[sure])
    assert not np.array_equal(found, rule)


def test_what_holds_arrays_is_itself_and_no_other():
    batch = make()
    assert batch == batch
    assert batch != make(), "the truth of an array has no single answer"
    assert len({batch, make()}) == 2
    assert Output(batch.image) != Output(batch.image.clone())
