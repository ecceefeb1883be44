"""What holds for every student of a frozen teacher."""

from pathlib import Path

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.methods.base import Parts
from mindgap.methods.kdnet import KdNetRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.protokd import ProtoKdRecipe
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard, TrainedNetwork
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.shapes import BACKGROUND
from mindgap.training.optimisation import Optimisation, make_optimiser

LACK_T1 = [(1, 0), (3, 0)]
TAUGHT = {
    KdNetRecipe: ("softened_distillation", "bottleneck_distillation"),
    ProtoKdRecipe: ("elementwise_distillation", "prototype_distillation"),
    PmklRecipe: ("pixel_distillation", "image_distillation"),
}


@pytest.fixture(params=TAUGHT, ids=lambda recipe: recipe.__name__)
def recipe(request):
    return request.param


@pytest.fixture
def build(recipe, make_teacher):
    def make(teacher=None, subset="T1ce+FLAIR", columns=SEQUENCES, **numbers):
        teacher = teacher or make_teacher()
        torch.manual_seed(0)
        return recipe(**numbers).build(Parts(columns, parse_subset(subset), width=2, teacher=teacher))

    return make


def test_every_parameter_of_the_player_learns_in_every_step(build, recipe, make_batch, take_step):
    method = build()
    expected = {name for n, network in method.networks.items() for name, _ in network.named_parameters(prefix=n)}
    for absent in ([], LACK_T1, [(row, 0) for row in range(4)]):
        terms, gradients, _ = take_step(build(), make_batch(absent))
        assert set(terms) == {"cross_entropy", "dice", *TAUGHT[recipe]}
        assert set(gradients) == expected  # several processes wait for each other's
        assert all(bool(g.isfinite().all()) for g in gradients.values())


def test_the_teacher_never_changes(build, make_batch):
    method = build()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    optimiser = make_optimiser(Optimisation(weight_decay=0.1), method, method.players[0])
    assert not any(p.requires_grad for p in method.teacher.parameters())
    for seed in range(2):
        optimiser.zero_grad()
        sum(value.mean() for value in method.terms("segmenter", make_batch(seed=seed)).values()).backward()
        optimiser.step()
        assert not any(module.training for module in method.teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


@pytest.mark.parametrize("absent", [LACK_T1, [(row, 0) for row in range(4)], [(2, 1)]])
def test_what_stands_in_absent_voxels_changes_no_number_of_a_whole_step(
    build, make_batch, take_step, assert_same, absent
):
    assert_same(*(take_step(build(), make_batch(absent, fill)) for fill in (BACKGROUND, float("nan"))))


def test_where_the_teacher_can_serve_nobody_distillation_costs_nothing(build, recipe, make_batch):
    terms = build().terms("segmenter", make_batch([(row, 0) for row in range(4)]))
    assert [float(terms[name].detach()) for name in TAUGHT[recipe]] == [0, 0]
    assert float(terms["dice"].detach()) > 0


def test_distillation_looks_at_the_rows_the_teacher_can_serve(build, recipe, make_batch):
    batch = make_batch(LACK_T1, float("nan"))
    method = build()
    terms = method.terms("segmenter", batch)
    lesson = method.lesson(batch)
    assert lesson.rows.tolist() == [0, 2]
    assert torch.equal(lesson.taught(torch.arange(4)), torch.tensor([0, 2]))
    served = make_batch().rows(torch.tensor([True, False, True, False]))
    alone = method.lesson(served)
    torch.testing.assert_close(alone.teacher.logits, lesson.teacher.logits)
    assert torch.equal(lesson.target, batch.target[[0, 2]])
    values = terms[TAUGHT[recipe][0]]
    assert values.shape in ((), (2,))
    assert method.teacher_cases(batch.available, SEQUENCES) == 2


def test_it_is_refused_without_a_teacher(recipe):
    with pytest.raises(SettingError, match="distils from a teacher: name its run folder with --teacher"):
        recipe().build(Parts(SEQUENCES, parse_subset("T1ce"), width=2))


def test_it_is_refused_with_a_teacher_whose_sequences_the_data_lacks(build):
    with pytest.raises(SettingError, match=r"teachers.one sees T1\+T1ce\+FLAIR, but the data has no T1"):
        build(columns=parse_subset("T2+T1ce+FLAIR"))


def test_a_teacher_that_sees_no_more_than_the_student_is_refused(build):
    with pytest.raises(SettingError, match=r"sees T1\+T1ce\+FLAIR, nothing that a student.*choose a smaller --subset"):
        build(subset="T1+T1ce+FLAIR")


@pytest.mark.parametrize("subset", ["T2", "T1+T2", "all"])
def test_a_teacher_of_other_sequences_is_refused(build, subset):
    with pytest.raises(SettingError, match=r"was trained on T1\+T1ce\+FLAIR and does not see T2, which a student on"):
        build(subset=subset)


def test_a_teacher_with_another_head_is_refused(build, make_teacher):
    with pytest.raises(SettingError, match=r"3 outputs \(sigmoid\).*--backbone vnet"):
        build(make_teacher(backbone="smunet"))


def test_a_plain_vnet_teaches_too(build, make_batch):
    arguments = {"channels_in": 3, "width": 2}
    card = ModelCard("vnet", arguments, parse_subset("T1+T1ce+FLAIR"), {}, crop=16, method="unimodal")
    plain = TrainedNetwork(build_network("vnet", arguments), card, Path("teachers/plain"), "0")
    assert all(bool(v.isfinite().all()) for v in build(plain).terms("segmenter", make_batch()).values())
