import pytest
import torch

from mindgap.batch import Batch, Output, brain_of
from mindgap.errors import MindgapError, SettingError
from mindgap.methods.base import Parts, Player, parameter_groups
from mindgap.methods.teacher import TeacherRecipe, latent_summary, sample_latents
from mindgap.sequences import SEQUENCES, Sequence, parse_subset
from mindgap.shapes import BACKGROUND
from mindgap.training.optimisation import Optimisation, make_optimiser


def build(subset: str = "all", seed: int = 0, **numbers):
    torch.manual_seed(seed)
    return TeacherRecipe(**numbers).build(Parts(SEQUENCES, parse_subset(subset), width=2, latent_channels=2))


@pytest.mark.parametrize("anchor", ["none", "k", "mixture"])
def test_terms_by_anchor(make_batch, anchor):
    terms = build(anchor=anchor).terms("segmenter", make_batch())
    assert set(terms) == {"cross_entropy", "dice"} | ({"alignment"} if anchor != "none" else set())
    if anchor != "none":
        assert terms["alignment"].shape == (4,)
        assert bool((terms["alignment"] > 0).all())


@pytest.mark.parametrize("anchor", ["none", "k", "mixture"])
@pytest.mark.parametrize("filling", [float("nan"), 9.0])
def test_what_stands_in_absent_voxels_changes_no_number_of_a_whole_step(
    make_batch, take_step, assert_same, anchor, filling
):
    absent = [(0, 0), (1, 2), (2, 0), (2, 1), (2, 3)]
    results = [
        take_step(build(anchor=anchor, incomplete=True), make_batch(absent, fill)) for fill in (BACKGROUND, filling)
    ]
    assert_same(*results)


def test_a_present_sequence_is_read(make_batch, take_step):
    terms, _, _ = take_step(build(incomplete=True), make_batch([(0, 0)]))
    all_there, _, _ = take_step(build(incomplete=True), make_batch())
    assert not torch.equal(terms["dice"], all_there["dice"])


def test_columns_outside_the_subset_are_not_read(make_batch, take_step, assert_same):
    absent = [(row, 1) for row in range(4)]
    results = [take_step(build("T1+T1ce+FLAIR"), make_batch(absent, fill)) for fill in (BACKGROUND, float("nan"))]
    assert_same(*results)


def test_a_case_that_lacks_k_or_has_nothing_else_is_not_aligned(make_batch):
    method = build(anchor="k", k=Sequence.T2, incomplete=True)
    alignment = method.terms("segmenter", make_batch([(0, 1), (3, 0), (3, 2), (3, 3)]))["alignment"].detach()
    assert (alignment == 0).tolist() == [True, False, False, True]


def test_which_cases_are_usable():
    available = torch.tensor([[True] * 4, [False, True, True, True], [False, False, True, False]])
    assert build().usable(available, SEQUENCES).tolist() == [True, False, False]
    assert build(incomplete=True).usable(available, SEQUENCES).tolist() == [True, True, True]
    assert build("T2+FLAIR").usable(available, SEQUENCES).tolist() == [True, True, False]
    assert build("T2+FLAIR", incomplete=True).usable(available, SEQUENCES).tolist() == [True, True, False]


def test_k_has_to_be_in_the_subset():
    with pytest.raises(SettingError, match=r"k=T1ce is not in the subset T1\+FLAIR: choose k among them"):
        build("T1+FLAIR", anchor="k")
    assert build("T1+FLAIR", anchor="k", k=Sequence.T1).anchor.k is Sequence.T1


@pytest.mark.parametrize("anchor", ["k", "mixture"])
def test_an_anchor_needs_two_sequences(anchor):
    with pytest.raises(SettingError, match=r"needs at least two sequences.*T1ce.*--anchor none"):
        build("T1ce", anchor=anchor)
    assert build("T1ce", anchor="none").subset == (Sequence.T1CE,)


def test_the_weight_of_the_alignment_stands_in_the_term_weights():
    assert build(alignment_weight=0.25).term_weights == {"alignment": 0.25}


def test_diagnostics_are_the_anchor_weights_and_sum_to_their_number():
    method = build("T1+T1ce+FLAIR")
    with torch.no_grad():
        method.networks["segmenter"].anchor_logits.copy_(torch.tensor([0.5, -1.0, 0.0]))
    numbers = method.diagnose(method.networks["segmenter"], []).numbers
    assert sum(v for name, v in numbers.items() if name.startswith("anchor_weight/")) == pytest.approx(3)
    assert numbers["anchor_logit/T1ce"] == -1.0
    plain = build(anchor="none")
    assert plain.diagnose(plain.networks["segmenter"], []).numbers == {}


def test_anchor_weights_stand_apart_without_weight_decay():
    method = build()
    network = method.networks["segmenter"]
    groups = parameter_groups(network, weight_decay=0.1, anchor_learning_rate_factor=10.0)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [group["lr_factor"] for group in groups] == [1.0, 10.0]
    assert len(groups[1]["params"]) == 1
    assert groups[1]["params"][0] is network.anchor_logits
    everything = {id(p) for group in groups for p in group["params"]}
    assert everything == {id(p) for p in network.parameters()}
    assert sum(len(group["params"]) for group in groups) == len(everything)


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_weight_decay_does_not_move_the_anchor_weights(optimiser):
    method = build()
    network = method.networks["segmenter"]
    start = torch.tensor([1.0, -1.0, 0.5, 0.0])
    with torch.no_grad():
        network.anchor_logits.copy_(start)
    settings = Optimisation(optimiser=optimiser, learning_rate=1e-2, weight_decay=0.5)
    stepper = make_optimiser(settings, method, Player("segmenter", ("segmenter",)))
    kernel = network.predictor.head.weight.detach().clone()
    for _ in range(5):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        stepper.step()
    assert torch.equal(network.anchor_logits.detach(), start)
    assert not torch.equal(network.predictor.head.weight.detach(), kernel)


def test_weight_decay_does_not_move_what_an_anchor_learns_beside_the_network():
    method = build(anchor="normal_medmap")
    network = method.networks["anchor"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    stepper = make_optimiser(Optimisation(learning_rate=1e-2, weight_decay=0.5), method, method.players[0])
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stepper.step()
    assert [float(p.detach()) for p in network.parameters()] == [1.0, 1.0]


def test_one_sequence_trains_without_anchor(make_batch, take_step):
    terms, gradients, _ = take_step(build("T2", anchor="none"), make_batch())
    assert set(terms) == {"cross_entropy", "dice"}
    assert all(bool(g.isfinite().all()) for g in gradients.values())


def test_spread_of_the_latents_is_one_in_training(make_batch):
    method = build()
    batch = make_batch()
    with torch.no_grad():
        output = method.networks["segmenter"](batch.image, batch.present)
    summary = latent_summary(output, batch.present)
    assert summary["latent_distance"].shape == summary["latent_spread"].shape == (4, 4)
    assert float(summary["latent_spread"].square().mean()) <= 1.01
    assert float(summary["latent_spread"].min()) > 0.3


def test_latents_are_sampled_at_the_same_brain_voxels_in_all_sequences():
    brain = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    brain[..., 2:6, :, :] = True
    places = torch.arange(512.0).view(1, 1, 8, 8, 8)
    output = Output(torch.zeros(1, 4, 8, 8, 8), features={"brain": brain}, latents=(places, -places, places))
    sampled = sample_latents(output, torch.tensor([[True, True, False]]), seed=0)
    assert sampled.shape == (3, 256, 1)
    assert sorted(sampled[0, :, 0].tolist()) == places[brain].tolist()
    assert (sampled[1] == -sampled[0]).all()
    assert bool(torch.from_numpy(sampled[2]).isnan().all())


def test_latents_that_collapsed_inside_the_brain_stop_the_run():
    method = build("T1+T2")

    def collapsed(image, present):
        brain = brain_of(image[:, :1])
        latents = tuple(brain * torch.full((1, 3, 16, 16, 16), 0.5) for _ in range(2))
        features = {"brain": brain, "sequence_weights": torch.full((2,), 0.5)}
        return Output(torch.zeros(1, 4, 16, 16, 16), features=features, latents=latents)

    image = torch.full((1, 2, 16, 16, 16), BACKGROUND)
    image[..., 4:12] = 0.3
    both = torch.ones(1, 2, dtype=torch.bool)
    batch = Batch(image, parse_subset("T1+T2"), both, both, None, ("P01",))
    network = method.networks["segmenter"]
    network.forward = collapsed
    with pytest.raises(MindgapError, match="latents collapsed"):
        method.diagnose(network, [batch])
