"""The end of a training, in which normalisations hold still as they do in prediction; and a start from a network."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from mindgap.api import train
from mindgap.data.augmentation import Augmentation
from mindgap.data.resident import ResidentCases
from mindgap.errors import SettingError
from mindgap.experiment import Experiment, build_method, course_hash
from mindgap.files import read_json, write_json
from mindgap.methods.base import Parts
from mindgap.methods.compact import CompactRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.networks.build import build_network
from mindgap.networks.settling import running_averages, settle_norms
from mindgap.networks.weights import load_network, save_network
from mindgap.sequences import SEQUENCES
from mindgap.session import open_session
from mindgap.training.loop import Schedule, Training
from mindgap.training.optimisation import Optimisation
from mindgap.training.processes import make_accelerator


def settings_of(store_folder, **changes) -> Experiment:
    base = Experiment(
        store_folder,
        CompactRecipe(),
        width=1,
        latent_channels=2,
        schedule=Schedule(steps=2, batch=2, crop=16),
        optimisation=Optimisation(optimiser="adamw", learning_rate=1e-2),
        augmentation=Augmentation(),
        device="cpu",
        precision="fp32",
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def trained(store_folder, tmp_path_factory):
    torch.set_num_threads(1)
    return train(settings_of(store_folder), tmp_path_factory.mktemp("start") / "run").folder


def make_training(store, *, settle: float, average: float = 0.0) -> Training:
    torch.manual_seed(0)
    method = CompactRecipe(own_share=0.0).build(Parts(SEQUENCES, SEQUENCES, width=1, latent_channels=2))
    return Training(
        method,
        ResidentCases(store, store.part("train"), subset=SEQUENCES),
        Schedule(steps=4, batch=2, crop=16, settle=settle),
        Optimisation(optimiser="adamw", learning_rate=1e-2, average=average),
        Augmentation(),
        accelerator=make_accelerator("cpu", "fp32"),
        seed=3,
    )


def averages_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in running_averages(training.segmenter)}


def test_averages_move_until_the_last_steps_and_weights_to_the_end(store):
    training = make_training(store, settle=0.5)
    states, weights = [averages_of(training)], []
    for _ in training.run():
        states.append(averages_of(training))
        weights.append(training.segmenter.head.weight.detach().clone())
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert moved == [True, True, False, False]
    assert not torch.equal(weights[2], weights[3])


def test_what_learns_in_the_last_steps_is_what_predicts(store):
    training = make_training(store, settle=0.5)
    for step in training.run():
        if step.number == 3:
            break
    batch = training.cases.whole(0, multiple=8)
    with torch.no_grad():
        learning = training.segmenter(batch.image, batch.present).logits
        predicting = training.segmenter.eval()(batch.image, batch.present).logits
        as_before = training.segmenter.train()(batch.image, batch.present).logits
    assert torch.equal(learning, predicting)
    assert not torch.allclose(as_before, predicting)


def test_averaged_weights_give_their_averages(store):
    training = make_training(store, settle=0.25, average=0.9)
    for step in training.run():
        if step.number == 3:
            kept = {name: training.average.state[name].clone() for name in averages_of(training)}
    found = averages_of(training)
    assert found
    assert all(torch.equal(found[name], value) for name, value in kept.items())


def test_a_run_that_goes_on_finds_the_averages_as_they_were(store):
    straight = make_training(store, settle=0.5, average=0.9)
    list(straight.run())
    first = make_training(store, settle=0.5, average=0.9)
    for step in first.run():
        if step.number == 3:
            state = first.state()
            break
    second = make_training(store, settle=0.5, average=0.9)
    second.load(state)
    list(second.run())
    assert second.finished == 4
    for name, value in straight.segmenter.state_dict().items():
        assert torch.equal(value, second.segmenter.state_dict()[name]), name


def test_every_norm_of_every_architecture_is_found():
    network = build_network("aligned", {"sequences": 2, "latent_channels": 2, "width": 1, "weighted": True}).train()
    settle_norms(network)
    norms = [module for module in network.modules() if "Norm" in type(module).__name__]
    assert norms
    assert not any(module.training for module in norms)
    assert network.training
    names = {name for name, value in network.named_buffers() if value.is_floating_point() and value.ndim}
    assert names == {name for name, _ in running_averages(network)}


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(SettingError, match="settle is"):
        Schedule(steps=4, settle=share)


def test_a_network_starts_where_another_ended(trained, store_folder, store):
    method = build_method(settings_of(store_folder, start=trained), store)
    known = load_network(trained).network.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in method.networks["segmenter"].state_dict().items())


def test_what_is_kept_may_lie_half_way_back_to_the_start_also_after_a_kill(trained, store_folder, tmp_path):
    before = load_network(trained).network.state_dict()
    kept = {}
    for share in (0.0, 0.5):
        settings = settings_of(store_folder, start=trained, start_share=share)
        train(settings, tmp_path / str(share))
        kept[share] = load_network(tmp_path / str(share)).network.state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, kept[0.0][name])]
    assert moved
    for name in moved:
        if before[name].is_floating_point():
            torch.testing.assert_close(kept[0.5][name], (before[name] + kept[0.0][name]) / 2)
    session = open_session(settings, tmp_path / "0.5", resume=True)
    assert all(torch.equal(value, before[name]) for name, value in session.start.items()), "not what the checkpoint has"


@pytest.mark.parametrize("changes", [{"start_share": 1.0}, {"start_share": -0.1}, {"start": None, "start_share": 0.5}])
def test_a_share_of_no_start_is_refused(changes, trained, store_folder, store):
    with pytest.raises(SettingError, match="it is a share, 0 to below 1, of the weights that --start names"):
        build_method(settings_of(store_folder, **({"start": trained} | changes)), store)


def test_another_start_is_another_course(trained, store_folder):
    plain, other = settings_of(store_folder), settings_of(store_folder, start=trained)
    assert course_hash(plain, data="d") != course_hash(other, data="d", start="a")
    assert course_hash(other, data="d", start="a") != course_hash(other, data="d", start="b")
    moved = dataclasses.replace(other, start=trained.parent)
    assert course_hash(other, data="d", start="a") == course_hash(moved, data="d", start="a")


def test_a_member_of_an_ensemble_can_be_the_start(trained, store_folder, store, tmp_path):
    one = load_network(trained)
    arguments = {"count": 2, "architecture": one.card.architecture, "arguments": one.card.arguments}
    both = build_network("ensemble", arguments)
    save_network(tmp_path, both, dataclasses.replace(one.card, architecture="ensemble", arguments=arguments))
    method = build_method(settings_of(store_folder, start=tmp_path, start_member=2), store)
    found = method.networks["segmenter"].head.weight
    assert torch.equal(found, both.members[1].head.weight)
    assert not torch.equal(found, both.members[0].head.weight)
    with pytest.raises(SettingError, match="holds 2 networks: there is no number 3"):
        build_method(settings_of(store_folder, start=tmp_path, start_member=3), store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 2}, "do not fit"),
        ({"method": TeacherRecipe()}, "it is fused_unet, not aligned"),
        ({"subset": "T1ce+FLAIR"}, "start from a network of the same sequences"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_what_helps(changes, message, trained, store_folder, store):
    with pytest.raises(SettingError, match=message):
        build_method(settings_of(store_folder, start=trained, **changes), store)


def test_another_grid_or_a_test_case_among_its_lessons_is_refused(trained, store_folder, store, tmp_path):
    one = load_network(trained)
    card = dataclasses.replace(one.card, preparation={**one.card.preparation, "spacing_mm": 1.0})
    save_network(tmp_path / "finer", one.network, card)
    with pytest.raises(SettingError, match="use the same preparation"):
        build_method(settings_of(store_folder, start=tmp_path / "finer"), store)
    save_network(tmp_path / "leaky", one.network, one.card)
    manifest = read_json(trained / "manifest.json")
    manifest["cases"]["train"] = ["a", "t"]
    write_json(tmp_path / "leaky" / "manifest.json", manifest)
    with pytest.raises(SettingError, match=r"the network in .* learnt from 1 test cases"):
        build_method(settings_of(store_folder, start=tmp_path / "leaky"), store)
    for part, learnt in (("test", {"before": {"train": ["t"]}}), ("validation", {"train": store.part("validation")})):
        manifest["cases"] = {"train": ["a"], "validation": []} | learnt
        write_json(tmp_path / "leaky" / "manifest.json", manifest)
        with pytest.raises(SettingError, match=rf"learnt from 1 {part} cases"):
            build_method(settings_of(store_folder, start=tmp_path / "leaky"), store)


def test_the_network_in_the_box_can_be_adapted(store):
    recipe = CompactRecipe(shared_norm=False, own_share=0.75)
    experiment = Experiment(store.folder, recipe, start=Path("box"), start_member=4, width=8, latent_channels=4)
    method = build_method(experiment, store)
    assert method.networks["segmenter"].head.weight.abs().sum() > 0
