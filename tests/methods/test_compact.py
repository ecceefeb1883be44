"""The method of the network in the box."""

from dataclasses import replace

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.methods import METHODS
from mindgap.methods.base import Parts
from mindgap.sequences import SEQUENCES


def build(seed=0, **numbers):
    torch.manual_seed(seed)
    return METHODS["compact"](**numbers).build(Parts(SEQUENCES, SEQUENCES, width=2, latent_channels=2))


def with_chance(batch, *chances):
    return replace(batch, chance=chances)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_what_is_dropped_or_absent_is_not_read(make_batch, take_step, assert_same, weight):
    results = []
    for filling in (-1.0, float("nan")):
        batch = with_chance(make_batch([(1, 0), (2, 3)], filling), 0.3, 0.55, 0.8, 0.97)
        results.append(take_step(build(distillation_weight=weight), batch))
    assert_same(results[0], results[1])
    assert ("distillation" in results[0][0]) == (weight > 0)


def test_the_whole_teaches_the_part_and_not_the_other_way(make_batch):
    """With the segmentation terms left out, the gradient is that of the part's pass alone."""
    batch = with_chance(make_batch(), 0.1, 0.4, 0.6, 0.9)
    method = build(distillation_weight=1.0)
    network = method.networks["segmenter"]
    method.terms("segmenter", batch)["distillation"].backward()
    found = network.head.weight.grad.clone()
    network.zero_grad()
    part = batch.drop(0.0)
    both = network(batch.image.repeat(2, 1, 1, 1, 1), torch.cat([batch.present, part.present])).logits
    whole, partial = both.chunk(2)
    q = whole.detach().log_softmax(1)
    (q.exp() * (q - partial.log_softmax(1))).sum(1).mean().backward()
    assert torch.allclose(network.head.weight.grad, found, atol=1e-6)


@pytest.mark.parametrize(
    "shares", [{"single_share": -0.1}, {"single_share": float("nan")}, {"full_share": 0.6, "single_share": 0.5}]
)
def test_shares_that_are_more_than_all_rows_are_refused(shares):
    with pytest.raises(SettingError, match="together at most 1"):
        build(**shares)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(SettingError, match="at least 0"):
        build(distillation_weight=weight)
