import copy
import dataclasses
import json
import math

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.losses.alignment import align_to_mixture
from mindgap.losses.cotraining import sigmoid_dice_loss
from mindgap.methods.anchors import PAPER
from mindgap.methods.base import Parts
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.networks.build import build_network
from mindgap.networks.settling import settle_norms
from mindgap.sequences import SEQUENCES, Sequence, parse_subset
from mindgap.shapes import BACKGROUND

TERMS = {"full_dice", "dice", "consistency", "content", "style", "adversarial"}


def build(subset="T1ce", teacher=None, columns=SEQUENCES, width=2, **numbers):
    torch.manual_seed(0)
    parts = Parts(columns, parse_subset(subset), width=width, latent_channels=2, teacher=teacher)
    return SmuNetRecipe(**{"dropout": 0.0, **numbers}).build(parts)


@pytest.fixture
def smu_teacher(make_teacher, tmp_path):
    """A teacher with SMU-Net's backbone, and the settings it was trained with beside it."""

    def make(subset="all", **settings):
        recipe = {"name": "teacher", "anchor": "mixture", "k": "T1ce", "anchor_gradient": False, **settings}
        (tmp_path / "experiment.json").write_text(json.dumps({"method": recipe}))
        return make_teacher(subset, tmp_path, backbone="smunet", weighted=recipe["anchor"] == "mixture")

    return make


def gradients_of(method, player, batch):
    networks = torch.nn.ModuleDict(method.networks)
    networks.zero_grad()
    weights = method.weights(5, 10)
    terms = method.terms(player, batch)
    sum(weights.get(name, 1.0) * value.mean() for name, value in terms.items()).backward()
    return {name for name, p in networks.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}


def test_two_players_and_one_that_predicts():
    method = build("T1ce+FLAIR")
    assert [player.name for player in method.players] == ["segmenter", "discriminator"]
    assert set(method.players[0].networks) == {"segmenter", "full"}
    assert method.players[1].networks == ("discriminator",)
    assert (method.architecture, method.arguments) == ("smunet", {"channels_in": 2, "width": 2})
    build_network(method.architecture, method.arguments).load_state_dict(method.networks["segmenter"].state_dict())
    assert method.teacher is None  # the full path learns


@pytest.mark.parametrize("anchor", PAPER)
def test_every_parameter_of_each_player_gets_a_gradient(make_batch, anchor):
    method, batch = build(anchor=anchor), make_batch()
    for player in method.players:
        found = gradients_of(method, player.name, batch)
        own = {f"{n}.{name}" for n in player.networks for name, _ in method.networks[n].named_parameters()}
        assert own <= found
    assert not any(name.startswith(("full.", "segmenter.")) for name in found)  # the discriminator's turn


def test_terms_and_their_weights(make_batch):
    method = build(anchor="mixture", missing_share=0.7, consistency_weight=8.0, alignment_weight=0.5)
    terms = method.terms("segmenter", make_batch())
    assert set(terms) == TERMS | {"alignment"}
    assert terms["alignment"].shape == terms["adversarial"].shape == (4,)
    assert dict(method.weights(100, 100)) == {
        "full_dice": pytest.approx(0.3),
        "dice": 0.7,
        "consistency": 8.0,
        "content": 0.2,
        "style": 1e-4,
        "adversarial": 2e-4,
        "alignment": 0.5,
    }
    assert set(build(anchor="none").terms("segmenter", make_batch())) == TERMS


def test_the_consistency_rises_over_the_first_eight_per_cent():
    method = build()
    assert method.weights(0, 2500)["consistency"] == pytest.approx(10 * math.exp(-5))
    assert method.weights(200, 2500)["consistency"] == 10
    assert build(rise=0.5).weights(200, 2500)["consistency"] < 1
    assert method.weights(0, 2500)["dice"] == 0.6


def test_the_discriminator_learns_from_the_maps_of_the_paths_own_turn(make_batch):
    method, batches = build(), [make_batch(seed=seed) for seed in (0, 1)]
    for batch in batches:  # micro-batches, in the order of the loop
        method.terms("segmenter", batch)
    assert len(method._styles) == 2
    buffers = copy.deepcopy(dict(torch.nn.ModuleDict(method.networks).named_buffers()))
    full, missing = method._styles[batches[0]]
    assert not full.requires_grad
    assert not missing.requires_grad
    judge = method.networks["discriminator"]
    for batch in batches:
        found = method.terms("discriminator", batch)["discrimination"]
        if batch is batches[0]:
            bce = torch.nn.functional.binary_cross_entropy_with_logits
            expected = bce(judge(full), torch.zeros(4), reduction="none")
            expected = expected + bce(judge(missing), torch.ones(4), reduction="none")
            torch.testing.assert_close(found, expected)
    assert len(method._styles) == 0
    after = dict(torch.nn.ModuleDict(method.networks).named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in buffers.items())  # averages saw each batch once


def test_style_maps_nobody_asked_for_are_let_go(make_batch):
    method = build()
    for seed in range(3):
        method.terms("segmenter", make_batch(seed=seed))
    assert len(method._styles) <= 1


def test_the_missing_path_sees_only_its_subset_and_the_full_path_everything(make_batch):
    """Both in eval mode, where rows and sequences do not meet in statistics."""
    method = build("T1ce")
    for network in method.networks.values():
        network.eval()
    plain, other = make_batch(), make_batch()
    other.image[:, 0] = other.image[:, 0].flip(-1)
    with torch.no_grad():
        one, two = (method.terms("segmenter", batch) for batch in (plain, other))
    assert torch.equal(one["dice"], two["dice"])
    assert not torch.equal(one["full_dice"], two["full_dice"])
    seen = plain.select(method.subset)
    with torch.no_grad():
        output = method.networks["segmenter"](seen.image, seen.present)
    assert torch.equal(one["dice"], sigmoid_dice_loss(output.logits, plain.target))


@pytest.mark.parametrize("filling", [float("nan"), 9.0])
def test_what_stands_in_voxels_of_a_sequence_nobody_sees_changes_nothing(make_batch, smu_teacher, filling):
    results = []
    for fill in (BACKGROUND, filling):
        method = build("T1ce", smu_teacher("T1+T1ce+FLAIR"))
        batch = make_batch([(row, 1) for row in range(4)], fill)
        terms = method.terms("segmenter", batch)
        sum(value.mean() for value in terms.values()).backward()
        grads = [p.grad for n in ("full", "segmenter") for p in method.networks[n].parameters()]
        results.append([*terms.values(), *grads, *method.terms("discriminator", batch).values()])
    assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(*results, strict=True))


def test_cases_that_lack_a_sequence_of_the_full_path_are_left_out(smu_teacher):
    available = torch.tensor([[True] * 4, [False, True, True, True], [True, False, True, True]])
    assert build("T1ce").usable(available, SEQUENCES).tolist() == [True, False, False]
    method = build("T1ce", smu_teacher("T1+T1ce+FLAIR"))
    assert method.usable(available, SEQUENCES).tolist() == [True, False, True]
    assert method.teacher_cases(available, SEQUENCES) == 0


def test_the_full_path_begins_as_its_teacher_and_goes_on_learning(make_batch, smu_teacher):
    teacher = smu_teacher()
    method = build("T1ce", teacher)
    full = method.networks["full"]
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in full.state_dict().items())
    assert full.training
    assert all(p.requires_grad for p in full.parameters())
    method.terms("segmenter", make_batch())["full_dice"].backward()
    torch.optim.SGD(full.parameters(), 0.1).step()
    assert any(not torch.equal(value, before[name]) for name, value in full.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())


def test_the_alignment_is_that_of_the_teachers_anchor(make_batch, smu_teacher):
    assert build("T1ce", smu_teacher(anchor="none")).anchor.name == "none"
    held = build("T1ce", smu_teacher(anchor="k", k="FLAIR", anchor_gradient=True, align_over="all")).anchor
    assert (held.name, held.k, held.gradient, held.over) == ("k", Sequence.FLAIR, True, "all")
    method, batch = build("T1ce", smu_teacher()), make_batch()
    found = method.terms("segmenter", batch)["alignment"]
    output = copy.deepcopy(build("T1ce", smu_teacher()).networks["full"])(batch.image, batch.present)
    shares, brain = output.features["sequence_weights"], output.features["brain"]
    torch.testing.assert_close(found, align_to_mixture(output.latents, shares, batch.present, brain))


def test_validation_looks_at_the_latents_of_the_full_path(make_batch):
    method = build("T1ce", anchor="mixture")
    batch = make_batch()
    found = method.diagnose(method.networks["segmenter"], [batch])
    for name in ("anchor_weight", "anchor_logit", "latent_distance", "latent_spread"):
        assert {f"{name}/{sequence}" for sequence in SEQUENCES} <= set(found.numbers), name
    assert sum(found.numbers[f"anchor_weight/{sequence}"] for sequence in SEQUENCES) == pytest.approx(4)
    assert all(latents.shape[0] == 4 for latents in found.latents)
    full = method.networks["full"]
    assert full.training, "it goes on learning"
    settle_norms(full)
    settled = {name: module.training for name, module in full.named_modules()}
    method.diagnose(method.networks["segmenter"], [batch])
    assert {name: module.training for name, module in full.named_modules()} == settled
    assert len(set(settled.values())) == 2
    dimmer = dataclasses.replace(batch, image=batch.image * 0.5)
    other = method.diagnose(method.networks["segmenter"], [dimmer])
    assert other.numbers["latent_distance/T1"] != found.numbers["latent_distance/T1"]
    method.networks["full"] = torch.nn.DataParallel(method.networks["full"])
    assert method.diagnose(method.networks["segmenter"], [batch]).numbers == found.numbers, "wrapped or not"


def test_without_a_teacher_the_anchor_is_the_one_named():
    assert build().anchor.name == "mixture"
    method = build(anchor="k", k=Sequence.T2)
    assert (method.anchor.name, method.anchor.k) == ("k", Sequence.T2)
    assert method.networks["full"].anchor_logits is None
    with pytest.raises(SettingError, match="k=T2 is not in the subset"):
        build("T1ce", columns=parse_subset("T1+T1ce"), anchor="k", k=Sequence.T2)


def test_dropout_is_a_number_of_the_recipe():
    for method in (build(dropout=0.3), build(dropout=0.0)):
        found = [
            m.p for n in ("full", "segmenter") for m in method.networks[n].modules() if isinstance(m, torch.nn.Dropout)
        ]
        assert found in ([0.3, 0.3], [0.0, 0.0])


def test_a_teacher_with_smunets_backbone_learns_with_smunets_dice(make_batch, take_step):
    torch.manual_seed(0)
    recipe = TeacherRecipe(anchor="mixture", backbone="smunet")
    method = recipe.build(Parts(SEQUENCES, SEQUENCES, width=2, latent_channels=2))
    terms, gradients, _ = take_step(method, make_batch())
    assert set(terms) == {"dice", "alignment"}
    assert set(gradients) == {f"segmenter.{name}" for name, _ in method.networks["segmenter"].named_parameters()}
    assert method.arguments["backbone"] == "smunet"
    assert "smunet" in method.citations


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"subset": "all"}, r"full path sees T1\+T2\+T1ce\+FLAIR, its missing path T1\+T2.*smaller --subset"),
        ({"missing_share": 1.5}, "missing_share and rise are shares"),
        ({"rise": -0.1}, "missing_share and rise are shares"),
        ({"dropout": 1.0}, "dropout lies from 0"),
        ({"style_weight": -1.0}, "--style-weight is -1: it has to be at least 0"),
        ({"style_weight": math.nan}, "--style-weight is nan"),
        ({"k": Sequence.T2}, "--k T2 says nothing to anchor mixture"),
        ({"anchor": "none", "alignment_weight": 0.5}, "--alignment-weight 0.5 says nothing to anchor none"),
        ({"anchor": "literal"}, "diverges"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(SettingError, match=words):
        build(**change)


def test_teachers_that_do_not_fit_are_refused(make_teacher, smu_teacher):
    with pytest.raises(SettingError, match=r"aligned with backbone vnet and width 2.*train teacher --backbone smunet"):
        build(teacher=make_teacher("all"))
    with pytest.raises(SettingError, match=r"backbone smunet and width 2, and .* width 4: train one"):
        build(teacher=smu_teacher(), width=4)
    with pytest.raises(SettingError, match=r"sees T1\+T1ce\+FLAIR, but the data has no T1"):
        build(teacher=smu_teacher("T1+T1ce+FLAIR"), columns=parse_subset("T2+T1ce+FLAIR"))
    with pytest.raises(SettingError, match=r"trained on T1\+T1ce\+FLAIR and does not see T2"):
        build("T2", smu_teacher("T1+T1ce+FLAIR"))
    with pytest.raises(SettingError, match="has anchor mixture, not none: leave --anchor out"):
        build(teacher=smu_teacher(), anchor="none")
    with pytest.raises(SettingError, match="has k=FLAIR, not T2: leave --k out"):
        build(teacher=smu_teacher(anchor="k", k="FLAIR"), k=Sequence.T2)
    with pytest.raises(SettingError, match="--k FLAIR says nothing to anchor mixture"):
        build(teacher=smu_teacher(k="FLAIR"), k=Sequence.FLAIR)


def test_a_teacher_without_its_settings_needs_a_named_anchor_that_fits(make_teacher):
    teacher = make_teacher("all", backbone="smunet")
    with pytest.raises(SettingError, match=r"experiment\.json is missing.*name it with --anchor"):
        build(teacher=teacher)
    assert build(teacher=teacher, anchor="mixture").anchor.name == "mixture"
    with pytest.raises(SettingError, match="another anchor than normal"):
        build(teacher=teacher, anchor="normal")


def test_micro_batches_and_whole_batches_are_told_apart(make_batch):
    method, batch = build(), make_batch()
    parts = batch.split(2)
    for part in parts:
        method.terms("segmenter", part)
    assert [len(method.terms("discriminator", part)["discrimination"]) for part in parts] == [2, 2]
