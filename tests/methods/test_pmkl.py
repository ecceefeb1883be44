from pathlib import Path

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.losses.distillation import regularised_distillation
from mindgap.methods.base import Parts, Player
from mindgap.methods.pmkl import PmklRecipe
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard, TrainedNetwork
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.shapes import BACKGROUND
from mindgap.training.optimisation import Optimisation, make_optimiser

LACK_T1 = [(1, 0), (3, 0)]


def make_teacher(subset: str = "T1+T1ce+FLAIR") -> TrainedNetwork:
    torch.manual_seed(7)
    sequences = parse_subset(subset)
    arguments = {"sequences": len(sequences), "latent_channels": 2, "width": 3, "weighted": True}
    card = ModelCard("aligned", arguments, sequences, {}, crop=16, method="teacher")
    network = build_network("aligned", arguments)
    with torch.no_grad():
        network.predictor.head.weight.mul_(20)  # a teacher with opinions
    return TrainedNetwork(network, card, Path("teachers/one"), "0" * 64)


def build(subset: str = "T1ce+FLAIR", teacher: TrainedNetwork | None = None, columns=SEQUENCES, **numbers):
    teacher = teacher or make_teacher()
    torch.manual_seed(0)
    return PmklRecipe(**numbers).build(Parts(columns, parse_subset(subset), width=2, teacher=teacher))


def test_terms_and_their_weights(make_batch):
    method = build(pixel_weight=0.3, image_weight=0.7)
    terms = method.terms("segmenter", make_batch())
    assert set(terms) == {"cross_entropy", "dice", "pixel_distillation", "image_distillation"}
    assert method.term_weights == {"pixel_distillation": 0.3, "image_distillation": 0.7}
    assert float(terms["pixel_distillation"].detach()) > 0
    assert float(terms["image_distillation"].detach()) > 0


def test_the_teacher_never_changes(make_batch):
    method = build()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    student = {name: value.clone() for name, value in method.networks["segmenter"].state_dict().items()}
    optimiser = make_optimiser(Optimisation(weight_decay=0.1), method, method.players[0])
    assert not any(p.requires_grad for p in method.teacher.parameters())
    for seed in range(3):
        optimiser.zero_grad()
        sum(value.mean() for value in method.terms("segmenter", make_batch(seed=seed)).values()).backward()
        optimiser.step()
        assert not any(module.training for module in method.teacher.modules())
        assert all(p.grad is None for p in method.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    assert any(not torch.equal(v, student[name]) for name, v in method.networks["segmenter"].state_dict().items())


def test_student_and_both_heads_learn_together(make_batch, take_step):
    method = build()
    assert method.players == (Player("segmenter", ("segmenter", "student_head", "teacher_head")),)
    _, gradients, _ = take_step(method, make_batch())
    for name in method.networks:
        own = [g for key, g in gradients.items() if key.startswith(f"{name}.")]
        assert own
        assert any(float(g.abs().max()) > 0 for g in own), name


@pytest.mark.parametrize("filling", [float("nan"), 9.0])
@pytest.mark.parametrize("absent", [LACK_T1, [(row, 0) for row in range(4)]])
def test_what_stands_in_absent_voxels_changes_no_number_of_a_whole_step(
    make_batch, take_step, assert_same, absent, filling
):
    results = [take_step(build(), make_batch(absent, fill)) for fill in (BACKGROUND, filling)]
    assert_same(*results)


def test_rows_the_teacher_cannot_serve_teach_by_labels_only(make_batch):
    method = build()
    batch = make_batch(LACK_T1, float("nan"))
    terms = method.terms("segmenter", batch)
    served = batch.rows(torch.tensor([True, False, True, False])).select(parse_subset("T1+T1ce+FLAIR"))
    with torch.no_grad():
        teacher = method.teacher(served.image, served.present)
        fresh = build().networks["segmenter"]  # the same start; running averages play no role in train mode
        student = fresh(batch.select(method.subset).image, batch.select(method.subset).present)
    expected = regularised_distillation(student.logits[[0, 2]], teacher.logits, served.target)
    torch.testing.assert_close(terms["pixel_distillation"].detach(), expected)
    assert method.teacher_cases(batch.available, SEQUENCES) == 2


def test_where_the_teacher_can_serve_nobody_the_distillation_is_zero_with_a_finite_gradient(make_batch, take_step):
    terms, gradients, _ = take_step(build(), make_batch([(row, 0) for row in range(4)]))
    assert float(terms["pixel_distillation"]) == float(terms["image_distillation"]) == 0
    assert float(terms["dice"]) > 0
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    heads = {name: g for name, g in gradients.items() if "_head." in name}
    assert len(heads) == 4  # they take part, with nothing, so that other processes do not wait for them
    assert all(not bool(g.any()) for g in heads.values())


def test_it_is_refused_without_a_teacher():
    with pytest.raises(SettingError, match="pmkl distils from a teacher: name its run folder with --teacher"):
        PmklRecipe().build(Parts(SEQUENCES, parse_subset("T1ce"), width=2))


def test_it_is_refused_with_a_teacher_whose_sequences_the_data_lacks():
    with pytest.raises(SettingError, match=r"teachers.one sees T1\+T1ce\+FLAIR, but the data has no T1"):
        build(columns=parse_subset("T2+T1ce+FLAIR"))


def test_heads_fit_the_widths_of_teacher_and_student():
    method = build()
    assert method.networks["student_head"].hidden.in_features == 2 * 8
    assert method.networks["teacher_head"].hidden.in_features == 3 * 8


def test_the_student_learns_from_cases_that_hold_its_subset():
    available = torch.tensor([[False, True, True, True], [True, True, False, True]])
    assert build().usable(available, SEQUENCES).tolist() == [True, False]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"temperature": -1.0}, "--temperature is -1"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"pixel_weight": -0.5}, "--pixel-weight is -0.5"),
        ({"image_weight": -0.1}, "--image-weight is -0.1"),
        ({"image_weight": float("inf")}, "--image-weight is inf"),
    ],
)
def test_numbers_that_cannot_work_are_refused(numbers, said):
    with pytest.raises(SettingError, match=said):
        build(teacher=make_teacher(), **numbers)
    build(teacher=make_teacher(), pixel_weight=0.0, image_weight=0.0)
