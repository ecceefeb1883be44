"""On a GPU a step may not wait for a value that is computed there; here everything made of such a value is marked."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mindgap.data.resident import ResidentCases
from mindgap.methods.kdnet import KdNetRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.protokd import ProtoKdRecipe
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.session import open_session, train
from mindgap.training.loop import Schedule, Training

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount", "repeat_interleave")
WAITS = {f"aten::{name}" for name in _WAITS}


class Waiting(TorchDispatchMode):
    """Follows all that is computed from some tensors, and notes where the host asks for a value of it."""

    def __init__(self, tensors):
        super().__init__()
        self.on_device = {id(t): t for t in tensors}
        self.waited = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, _ = tree_flatten((args, kwargs or {}))
        tensors = [t for t in given if isinstance(t, torch.Tensor)]
        if any(id(t) in self.on_device for t in tensors):
            name = function._schema.name
            booleans = name == "aten::index" and any(t.dtype == torch.bool for t in tensors[1:])
            if name in WAITS or booleans:
                self.waited.append(name)
            for t in tree_flatten(result)[0]:
                if isinstance(t, torch.Tensor):
                    self.on_device[id(t)] = t
        return result


@pytest.fixture(scope="module")
def teacher(make_experiment, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sync") / "teacher"
    train(make_experiment(TeacherRecipe(incomplete=True), steps=1), out)
    return out


def step_of(make_experiment, tmp_path, recipe, monkeypatch, **changes):
    """The names of the operations in one step without a log for which a GPU would be waited for."""
    monkeypatch.setattr(Training, "_read", lambda self, player, sums, draws: {})  # what a log line reads is not meant
    schedule = Schedule(steps=8, batch=2, crop=32, foreground=0.5, log_every=100, **changes)
    subset = "all" if isinstance(recipe, TeacherRecipe) else "T1ce"
    session = open_session(make_experiment(recipe, schedule=schedule, subset=subset), tmp_path / "run")
    training = session.training
    held = [*training._terms.parameters(), *training._terms.buffers(), *session.cases.codes]
    if session.method.teacher is not None:
        held += [*session.method.teacher.parameters(), *session.method.teacher.buffers()]
    training._step()  # optimisers make their state in the first
    with Waiting(held) as waiting:
        training._step()
    assert len(waiting.on_device) > 2 * len(held)  # the computation was followed
    return waiting.waited


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("anchor", ["none", "k", "mixture"])
def test_a_teacher_steps_without_waiting(make_experiment, tmp_path, monkeypatch, anchor, accumulate):
    recipe = TeacherRecipe(anchor=anchor, incomplete=True)
    assert step_of(make_experiment, tmp_path, recipe, monkeypatch, accumulate=accumulate) == []


def test_students_step_without_waiting(make_experiment, tmp_path, monkeypatch, teacher):
    assert step_of(make_experiment, tmp_path / "unimodal", UnimodalRecipe(), monkeypatch) == []
    for recipe in (PmklRecipe, KdNetRecipe, ProtoKdRecipe):
        assert step_of(make_experiment, tmp_path / recipe.__name__, recipe(teacher=teacher), monkeypatch) == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_players_step_without_waiting(make_experiment, tmp_path, monkeypatch, accumulate):
    assert step_of(make_experiment, tmp_path, SmuNetRecipe(), monkeypatch, accumulate=accumulate) == []


def test_one_that_waits_is_found(make_experiment, tmp_path, monkeypatch):
    whole = ResidentCases.batch

    def reads(self, draws, augmentation, *, crop):
        batch = whole(self, draws, augmentation, crop=crop)
        assert bool((batch.image >= -3).all())
        return batch

    monkeypatch.setattr(ResidentCases, "batch", reads)
    assert step_of(make_experiment, tmp_path, TeacherRecipe(), monkeypatch) == ["aten::_local_scalar_dense"]
