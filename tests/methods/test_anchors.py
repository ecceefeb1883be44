from typing import get_args

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.methods.anchors import PAPER, AnchorName
from mindgap.methods.base import Parts
from mindgap.methods.teacher import TeacherRecipe
from mindgap.sequences import SEQUENCES, Sequence

ANCHORS = get_args(AnchorName)


def build(anchor, seed=0, **numbers):
    torch.manual_seed(seed)
    recipe = TeacherRecipe(anchor=anchor, force_literal=anchor == "literal", **numbers)
    return recipe.build(Parts(SEQUENCES, SEQUENCES, width=2, latent_channels=2))


@pytest.mark.parametrize("anchor", ANCHORS)
def test_every_anchor_gives_a_term_per_case_and_moves_every_parameter(make_batch, take_step, anchor):
    method = build(anchor)
    terms, gradients, _ = take_step(method, make_batch())
    assert ("alignment" in terms) == (anchor != "none")
    if anchor != "none":
        assert terms["alignment"].shape == (4,)
        assert bool(terms["alignment"].isfinite().all())
    expected = {name for n, network in method.networks.items() for name, _ in network.named_parameters(prefix=n)}
    assert set(gradients) == expected  # several processes wait for each other's


@pytest.mark.parametrize("encoder", ["per_sequence", "shared", "joint"])
@pytest.mark.parametrize("latent_norm", ["brain", "batch"])
def test_every_encoder_and_norm_trains_with_the_papers_anchors(make_batch, take_step, encoder, latent_norm):
    for anchor in PAPER:
        over = "brain" if anchor == "none" else "all"
        method = build(anchor, encoder=encoder, latent_norm=latent_norm, align_over=over)
        terms, gradients, _ = take_step(method, make_batch())
        assert all(bool(g.isfinite().all()) for g in gradients.values())
        assert all(bool(v.isfinite().all()) for v in terms.values())


def test_the_shared_encoder_knows_no_sequence_and_nothing_of_the_others(make_batch):
    network = build("mixture", encoder="shared").networks["segmenter"].eval()
    batch = make_batch()
    swapped = batch.image[:, [1, 0, 2, 3]]
    with torch.no_grad():
        latents, other = (network.encoders(image, batch.present)[0] for image in (batch.image, swapped))
        alone = network.encoders(batch.image, torch.tensor([[True, False, False, False]] * 4))[0]
    assert torch.equal(latents[0], other[1])
    torch.testing.assert_close(alone[0], latents[0])
    assert not bool(alone[1].any())


def test_a_joint_latent_sees_every_sequence(make_batch):
    network = build("mixture", encoder="joint").networks["segmenter"].eval()
    batch = make_batch()
    other = batch.image.clone()
    other[:, 1] = other[:, 1].flip(-1)
    with torch.no_grad():
        one, two = (network.encoders(image, batch.present)[0][0] for image in (batch.image, other))
    assert not torch.equal(one, two)


def test_the_normal_anchor_samples_in_training_only(make_batch):
    network = build("normal").networks["segmenter"]
    batch = make_batch()
    with torch.no_grad():
        first, second = (network(batch.image, batch.present).logits for _ in range(2))
        network.eval()
        third, fourth = (network(batch.image, batch.present).logits for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


def test_free_weights_start_where_the_drafts_start_and_softmax_weights_sum_to_one(make_batch):
    batch = make_batch()
    for anchor in ANCHORS:
        network = build(anchor).networks["segmenter"]
        features = network(batch.image, batch.present).features
        assert float(features["sequence_weights"].detach().sum()) == pytest.approx(1, abs=1e-5)
        if anchor == "literal":
            assert features["anchor_weights"].tolist() == [1.0] * 4


def test_the_segmentation_loss_reaches_the_weights_of_the_mixture_alone(make_batch):
    batch = make_batch()
    reached = {}
    for anchor in ("mixture", "precision", "literal_softmax", "medmap_b"):
        method = build(anchor)
        terms = method.terms("segmenter", batch)
        (terms["cross_entropy"] + terms["dice"]).backward()
        gradient = method.networks["segmenter"].anchor_logits.grad
        reached[anchor] = gradient is not None and bool(gradient.any())
    assert reached == {"mixture": True, "precision": False, "literal_softmax": False, "medmap_b": False}


def test_alignment_alone_draws_mixture_weights_to_uniform_and_literal_ones_to_k(make_batch):
    batch = make_batch()
    ends = {}
    for anchor, rate in (("mixture", 0.3), ("literal_softmax", 0.3), ("literal", 0.3)):
        method = build(anchor)
        weights = method.networks["segmenter"].anchor_logits
        if anchor == "mixture":
            with torch.no_grad():
                weights.copy_(torch.tensor([1.0, -0.5, 0.5, 0.0]))
        optimiser = torch.optim.Adam([weights], rate)
        for _ in range(40):
            optimiser.zero_grad()
            loss = method.terms("segmenter", batch)["alignment"].mean()
            loss.backward()
            optimiser.step()
        ends[anchor] = (weights.detach().clone(), float(loss.detach()))
    start = torch.softmax(torch.tensor([1.0, -0.5, 0.5, 0.0]), 0)
    assert torch.softmax(ends["mixture"][0], 0).std() < 0.5 * start.std()
    assert int(ends["literal_softmax"][0].argmax()) == SEQUENCES.index(Sequence.T1CE)
    assert float(torch.softmax(ends["literal_softmax"][0], 0).max()) > 0.9
    assert ends["literal"][1] < 0  # unbounded below


def test_literal_is_refused_unless_forced():
    with pytest.raises(SettingError, match=r"diverges.*--force-literal"):
        TeacherRecipe(anchor="literal").build(Parts(SEQUENCES, SEQUENCES, width=2))


@pytest.mark.parametrize(
    ("anchor", "numbers", "said"),
    [
        ("none", {"anchor_gradient": True}, r"--anchor-gradient says nothing to anchor none.* uses it \(k\)"),
        ("mixture", {"anchor_gradient": True}, "--anchor-gradient says nothing to anchor mixture"),
        ("literal_softmax", {"anchor_gradient": True}, "--anchor-gradient says nothing to anchor literal_softmax"),
        ("mixture", {"k": Sequence.T2}, r"--k T2 says nothing to anchor mixture.*\(k, literal, literal_softmax\)"),
        ("none", {"k": Sequence.T2}, "--k T2 says nothing to anchor none"),
        ("none", {"alignment_weight": 0.5}, "--alignment-weight 0.5 says nothing to anchor none"),
        ("none", {"align_over": "all"}, "--align-over all says nothing to anchor none"),
        ("normal_medmap", {"align_over": "all"}, "--align-over all says nothing to anchor normal_medmap"),
        ("mixture", {"force_literal": True}, "--force-literal says nothing to anchor mixture"),
    ],
)
def test_what_an_anchor_does_not_use_is_refused(anchor, numbers, said):
    with pytest.raises(SettingError, match=said):
        TeacherRecipe(anchor=anchor, **numbers).build(Parts(SEQUENCES, SEQUENCES, width=2))


def differs(one, other):
    return any(not torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("anchor", [name for name in ANCHORS if name != "none"])
def test_what_an_anchor_takes_changes_what_it_trains(make_batch, take_step, anchor):
    as_it_is = take_step(build(anchor), make_batch())
    other = {"k": Sequence.T2, "anchor_gradient": True, "align_over": "all", "alignment_weight": 0.5}
    for name, value in other.items():
        try:
            method = build(anchor, **{name: value})
        except SettingError:
            continue
        found = take_step(method, make_batch())
        assert differs(as_it_is[0], found[0]) or differs(as_it_is[1], found[1]), name


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_of_the_alignment_that_is_no_weight_is_refused(weight):
    with pytest.raises(SettingError, match=r"--alignment-weight is .*at least 0, and finite"):
        build("mixture", alignment_weight=weight)


@pytest.mark.parametrize(
    "numbers", [{"encoder": "joint"}, {"latent_norm": "batch"}, {"anchor": "medmap_a"}, {"anchor": "normal_moments"}]
)
def test_what_needs_complete_cases_says_so(numbers):
    with pytest.raises(SettingError, match="need complete cases: leave --incomplete out"):
        TeacherRecipe(incomplete=True, **numbers).build(Parts(SEQUENCES, SEQUENCES, width=2))
