import math
from dataclasses import replace

import pytest
import torch

from mindgap.errors import SettingError
from mindgap.losses.distillation import elementwise_distillation, prototype_distillation
from mindgap.methods.base import Parts
from mindgap.methods.protokd import ProtoKdRecipe
from mindgap.sequences import SEQUENCES, parse_subset


def build(teacher, subset="T1ce+FLAIR", **numbers):
    torch.manual_seed(0)
    return ProtoKdRecipe(**numbers).build(Parts(SEQUENCES, parse_subset(subset), width=2, teacher=teacher))


def test_the_published_weights_are_the_defaults(make_teacher):
    method = build(make_teacher())
    assert method.term_weights == {"elementwise_distillation": 10.0, "prototype_distillation": 0.1}
    assert method.temperature == 10.0


def test_terms_are_those_of_the_losses_on_the_taught_rows(make_teacher, make_batch):
    batch = make_batch([(1, 0), (3, 0)], float("nan"))
    method = build(make_teacher(width=3))  # another width than the student's
    terms = method.terms("segmenter", batch)
    seen = batch.select(method.subset)
    fresh = build(make_teacher(width=3)).networks["segmenter"](seen.image, seen.present)
    lesson = method.lesson(batch)
    assert lesson.teacher.features["feature"].shape[1] == 3
    pixel = elementwise_distillation(fresh.logits[[0, 2]], lesson.teacher.logits)
    prototype = prototype_distillation(
        fresh.features["feature"][[0, 2]], lesson.teacher.features["feature"], batch.target[[0, 2]]
    )
    torch.testing.assert_close(terms["elementwise_distillation"], pixel)
    torch.testing.assert_close(terms["prototype_distillation"], prototype)
    assert float(prototype.detach()) > 0


def test_a_class_counts_where_every_taught_case_has_it(make_teacher, make_batch, monkeypatch):
    """The third case has no ET; when the teacher cannot serve it, ET counts."""
    target = make_batch().target.clone()
    target[2][target[2] == 1] = 0
    counted = []
    monkeypatch.setattr(
        "mindgap.methods.protokd.prototype_distillation",
        lambda student, teacher, labels: counted.append([bool((labels == 1).flatten(1).any(1).all())]) or student.sum(),
    )
    for absent in ([], [(2, 0)]):
        build(make_teacher()).terms("segmenter", replace(make_batch(absent), target=target))
    assert counted == [[False], [True]]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"pixel_weight": -1.0}, "--pixel-weight is -1: it has to be at least 0"),
        ({"prototype_weight": -1.0}, "--prototype-weight is -1"),
        ({"prototype_weight": math.nan}, "--prototype-weight is nan"),
        ({"temperature": 0.0}, "--temperature is 0: it has to lie above 0"),
        ({"temperature": math.nan}, "--temperature is nan"),
    ],
)
def test_impossible_numbers_are_refused(make_teacher, numbers, said):
    with pytest.raises(SettingError, match=said):
        build(make_teacher(), **numbers)
