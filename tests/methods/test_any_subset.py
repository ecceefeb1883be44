"""Networks that answer for every subset: dropout, the fused latents, and the outside comparator."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mindgap.citations import bibtex
from mindgap.data.augmentation import Augmentation, draw
from mindgap.errors import SettingError
from mindgap.methods import METHODS
from mindgap.methods.base import Parts
from mindgap.sequences import SEQUENCES
from mindgap.shapes import BACKGROUND

NAMES = ("dropout", "anysubset", "dynunet")


def build(name, seed=0, **numbers):
    torch.manual_seed(seed)
    return METHODS[name](**numbers).build(Parts(SEQUENCES, SEQUENCES, width=2, latent_channels=2))


def with_chance(batch, *chances):
    return replace(batch, chance=chances)


def for_network(name, batch):
    """InstanceNorm of DynUNet needs two voxels at the bottom: twice the size."""
    if name != "dynunet":
        return batch
    twice = [tensor.repeat_interleave(2, -1).repeat_interleave(2, -2) for tensor in (batch.image, batch.target)]
    return replace(batch, image=twice[0].repeat_interleave(2, -3), target=twice[1].repeat_interleave(2, -3))


def test_every_subset_of_what_a_case_has_is_drawn_alike_and_the_full_one_more_often(make_batch):
    batch = with_chance(make_batch([(3, 0), (3, 1), (3, 2)]), 0.0, 0.0, 0.0, 0.0)
    counts = Counter()
    alone = Counter()
    for chance in np.linspace(0, 1, 1500, endpoint=False).tolist():
        present = with_chance(batch, *[chance] * 4).drop(0.2).present
        counts[tuple(present[0].tolist())] += 1
        alone[tuple(present[3].tolist())] += 1
    assert len(counts) == 15
    assert (False,) * 4 not in counts
    assert counts[(True,) * 4] == pytest.approx(1500 * (0.2 + 0.8 / 15), abs=3)
    assert counts[(True, False, False, False)] == pytest.approx(1500 * 0.8 / 15, abs=3)
    assert set(alone) == {(False, False, False, True)}
    assert bool(with_chance(batch, *[0.99] * 4).drop(1.0).present[0].all())


def test_single_sequences_are_drawn_more_often_where_that_is_asked_for(make_batch):
    batch, counts = make_batch([(3, 0)]), Counter()
    for chance in np.linspace(0, 1, 1500, endpoint=False).tolist():
        present = with_chance(batch, *[chance] * 4).drop(0.2, 0.4).present
        counts[tuple(present[0].tolist())] += 1
        assert not present[3, 0]
    assert len(counts) == 15
    assert counts[(True,) * 4] == pytest.approx(1500 * (0.2 + 0.4 / 15), abs=3)
    assert counts[(False, True, False, False)] == pytest.approx(1500 * (0.4 / 4 + 0.4 / 15), abs=3)
    assert counts[(True, True, False, False)] == pytest.approx(1500 * 0.4 / 15, abs=3)
    ends = [with_chance(batch, *[chance] * 4).drop(0.5, 0.5).present[0].tolist() for chance in (0.49, 0.5, 0.999999)]
    assert [sum(row) for row in ends] == [4, 1, 1]


def test_chance_is_drawn_with_the_step_and_shared_by_processes():
    settings = {"batch": 4, "cases": 3, "sequences": 4}
    one, other = (draw(Augmentation(), seed=0, step=step, **settings).chance for step in (0, 1))
    assert one.tolist() != other.tolist()
    assert draw(Augmentation(), seed=0, step=0, **settings).rows(2, 4).chance.tolist() == one[2:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_dropped_or_absent_is_not_read(make_batch, take_step, assert_same, name):
    """NaN in absent voxels, and in those of sequences that were dropped, changes no number of a whole step."""
    absent, results = [(0, 0), (1, 2)], []
    dropped = with_chance(make_batch(absent), 0.0, 0.3, 0.6, 0.9).drop(0.0).present
    for filling in (BACKGROUND, float("nan")):
        batch = for_network(name, with_chance(make_batch(absent, filling), 0.0, 0.3, 0.6, 0.9))
        batch.image[~dropped] = filling
        results.append(take_step(build(name, full_share=0.0), batch))
    assert_same(*results)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_from_every_step(make_batch, take_step, name):
    method = build(name, full_share=0.0)
    for chances in ((0.99,) * 4, (0.01,) * 4, (0.0, 0.3, 0.6, 0.9)):
        batch = for_network(name, with_chance(make_batch(), *chances))
        _, gradients, _ = take_step(build(name, full_share=0.0), batch)
        assert len(gradients) == len(list(method.networks["segmenter"].parameters()))


def test_of_one_sequence_the_mean_is_its_latent_and_the_variance_0(make_batch):
    network = build("anysubset").networks["segmenter"].eval()
    seen = []
    network.predictor.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = make_batch()
    with torch.no_grad():
        latents = network(batch.image, batch.show((SEQUENCES[1],)).present).latents
    torch.testing.assert_close(seen[0][:, :2], latents[1])
    assert not bool(seen[0][:, 2:].any())


def test_mean_and_variance_are_weighted_over_what_is_present(make_batch):
    network = build("anysubset").networks["segmenter"].eval()
    with torch.no_grad():
        network.anchor_logits.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
    seen = []
    network.predictor.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    batch = make_batch()
    with torch.no_grad():
        output = network(batch.image, batch.show((SEQUENCES[0], SEQUENCES[2])).present)
    z0, z2 = output.latents[0], output.latents[2]
    share = torch.softmax(torch.tensor([0.0, 2.0]), 0)
    mean = share[0] * z0 + share[1] * z2
    torch.testing.assert_close(seen[0][:, :2], mean)
    torch.testing.assert_close(seen[0][:, 2:], share[0] * (z0 - mean) ** 2 + share[1] * (z2 - mean) ** 2)


@pytest.mark.parametrize("name", NAMES)
def test_one_network_answers_for_every_subset_and_says_so(make_batch, name):
    method = build(name)
    assert method.any_subset
    assert method.shown_at_validation() == (SEQUENCES, *((s,) for s in SEQUENCES))
    available = torch.tensor([[True, False, False, False], [False] * 4])
    assert method.usable(available, SEQUENCES).tolist() == [True, False]
    network, batch = method.networks["segmenter"].eval(), for_network(name, make_batch())
    with torch.no_grad():
        answers = [network(batch.image, batch.show(s).present).logits for s in method.shown_at_validation()]
    assert all(not torch.equal(answers[0], other) for other in answers[1:])


def test_each_cites_what_it_is_made_of():
    found = {name: set(build(name).citations) for name in (*NAMES, "compact")}
    assert found == {
        "dropout": {"protokd"},  # the paper has no sequence dropout
        "anysubset": {"mindgap", "hemis", "protokd"},
        "dynunet": {"monai", "nnunet"},
        "compact": {"mindgap", "hemis", "nnunet"},
    }
    text = bibtex(key for keys in found.values() for key in keys)
    assert text.count("@") == 5


def test_alignment_can_be_left_out(make_batch):
    batch = with_chance(make_batch(), 0.0, 0.3, 0.6, 0.9)
    assert "alignment" in build("anysubset").terms("segmenter", batch)
    assert "alignment" not in build("anysubset", alignment_weight=0.0).terms("segmenter", batch)


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_an_alignment_that_would_push_apart_is_refused(weight):
    with pytest.raises(SettingError, match=r"--alignment-weight is .*at least 0"):
        build("anysubset", alignment_weight=weight)
