import math
from pathlib import Path

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.methods.base import Parts
from mindgap.methods.kdnet import KdNetRecipe
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard, TrainedNetwork
from mindgap.sequences import SEQUENCES, parse_subset


def build(teacher, subset="T1ce+FLAIR", width=2, **numbers):
    torch.manual_seed(0)
    return KdNetRecipe(**numbers).build(Parts(SEQUENCES, parse_subset(subset), width=width, teacher=teacher))


def test_the_weights_are_those_of_the_formula(make_teacher):
    method = build(make_teacher(), segmentation_share=0.6, bottleneck_weight=3.0)
    assert method.term_weights == {
        "cross_entropy": 0.6,
        "dice": 0.6,
        "softened_distillation": pytest.approx(0.4),
        "bottleneck_distillation": 3.0,
    }
    assert build(make_teacher(), temperature=2.0).temperature == 2.0
    assert method.weights(0, 10) == method.term_weights


def test_terms_are_one_value_per_taught_case(make_teacher, make_batch):
    terms = build(make_teacher()).terms("segmenter", make_batch([(1, 0)]))
    for name in ("softened_distillation", "bottleneck_distillation"):
        assert terms[name].shape == (3,)
        assert bool((terms[name] > 0).all())


def test_a_student_that_is_its_teacher_costs_nothing(make_batch):
    """Were the teacher's other sequence nothing to it."""
    torch.manual_seed(1)
    network = build_network("vnet", {"channels_in": 2, "width": 2})
    with torch.no_grad():
        network.encode1[0].weight[:, 1] = 0
    card = ModelCard("vnet", {"channels_in": 2, "width": 2}, parse_subset("T1+T2"), {}, crop=16, method="unimodal")
    method = build(TrainedNetwork(network, card, Path("teachers/plain"), "0"), subset="T1")
    state = method.teacher.state_dict()
    state["encode1.0.weight"] = state["encode1.0.weight"][:, :1]
    method.networks["segmenter"].load_state_dict(state)
    method.networks["segmenter"].eval()
    terms = method.terms("segmenter", make_batch())
    assert float(terms["softened_distillation"].detach().abs().max()) < 1e-6
    assert float(terms["bottleneck_distillation"].detach().abs().max()) < 1e-6


def test_a_teacher_of_another_width_is_refused(make_teacher):
    with pytest.raises(SettingError, match=r"48 channels at its bottleneck.*--width 2 has 32.*train both with one"):
        build(make_teacher(width=3))


def test_a_teacher_without_bottleneck_is_refused(make_teacher):
    teacher = make_teacher()
    whole = teacher.network.predictor.forward

    def without(image, present=None):
        output = whole(image, present)
        return type(output)(output.logits, {"feature": output.features["feature"]})

    teacher.network.predictor.forward = without
    with pytest.raises(SettingError, match=r"gives no 'bottleneck' map to learn from"):
        build(teacher)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"segmentation_share": 1.2}, "--segmentation-share is 1.2: it is a share"),
        ({"segmentation_share": math.nan}, "--segmentation-share is nan"),
        ({"bottleneck_weight": -1.0}, "--bottleneck-weight is -1"),
        ({"bottleneck_weight": math.nan}, "--bottleneck-weight is nan"),
        ({"temperature": 0.0}, "--temperature is 0"),
        ({"temperature": math.nan}, "--temperature is nan"),
    ],
)
def test_impossible_numbers_are_refused(make_teacher, numbers, said):
    with pytest.raises(SettingError, match=said):
        build(make_teacher(), **numbers)
