import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from mindgap.batch import Output
from mindgap.data.augmentation import Augmentation
from mindgap.data.resident import ResidentCases
from mindgap.errors import SettingError
from mindgap.losses.segmentation import segmentation_terms
from mindgap.methods.base import AbstractMethod, Player
from mindgap.sequences import parse_subset
from mindgap.training.checkpoint import load_newest, save_checkpoint, seed_everything
from mindgap.training.loop import NonFiniteLoss, Schedule, Training, add_terms
from mindgap.training.optimisation import Optimisation, learning_rate_share
from mindgap.training.processes import make_accelerator

STEPS = 6
PLAYERS = (Player("segmenter", ("segmenter",)), Player("critic", ("critic",), learning_rate_factor=0.5))


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(2, 4, kernel_size=1)

    def forward(self, image, present):
        return Output(self.conv(image))


@dataclass
class Toy(AbstractMethod):
    """A segmenter and a critic with terms of its own; both sets of terms reach both networks. Noise is drawn."""

    noise: float = 0.0
    spoil_at: int = 0

    def __post_init__(self):
        self.asked = []

    def terms(self, player, batch):
        self.asked.append(player)
        seen = batch.select(self.subset)
        image = seen.image + self.noise * torch.randn(seen.image.shape)
        logits = self.networks["segmenter"](image, seen.present).logits
        verdict = self.networks["critic"](torch.softmax(logits, 1)).mean((1, 2, 3, 4))
        if player == "critic":
            return {"fooled": verdict.square()}
        spoilt = torch.nan if len(self.asked) == self.spoil_at else 1.0
        return segmentation_terms(logits, batch.target) | {"adversarial": (1 - verdict).square() * spoilt}


@pytest.fixture
def cases(store):
    return ResidentCases(store, store.part("train"), subset=parse_subset("T2+FLAIR"))


def make_method(players=PLAYERS, **changes) -> Toy:
    torch.manual_seed(0)
    networks = {"segmenter": Segmenter(), "critic": nn.Conv3d(4, 1, kernel_size=1)}
    weights = {"adversarial": 3.0}
    return Toy(networks, parse_subset("T2+FLAIR"), "toy", {}, players=players, term_weights=weights, **changes)


def make_training(method, cases, *, schedule=None, **optimisation) -> Training:
    return Training(
        method,
        cases,
        schedule or Schedule(steps=STEPS, batch=2, crop=16, foreground=0.5),
        Optimisation(**{"learning_rate": 1e-2, "schedule": "poly", **optimisation}),
        Augmentation(scale=0.2, noise=0.05),
        accelerator=make_accelerator("cpu", "fp32"),
        seed=3,
        settings="toy",
    )


def everything(training: Training) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, network in training.method.networks.items()
        for key, value in network.state_dict().items()
    }


def test_players_are_stepped_in_order_and_each_by_its_own_terms(cases):
    training = make_training(make_method(), cases)
    reference = make_method()
    own = {p.name: [q for n in p.networks for q in reference.networks[n].parameters()] for p in PLAYERS}
    optimisers = {
        p.name: torch.optim.Adam(own[p.name], lr=1e-2 * p.learning_rate_factor, weight_decay=1e-5, fused=True)
        for p in PLAYERS
    }
    batches = []
    cut = training.cases.batch
    training.cases.batch = lambda *args, **kw: batches.append(cut(*args, **kw)) or batches[-1]
    steps = training.run()
    for number in range(STEPS):
        next(steps)
        for player in PLAYERS:
            share = learning_rate_share("poly", number, STEPS)
            optimisers[player.name].param_groups[0]["lr"] = 1e-2 * player.learning_rate_factor * share
            loss = add_terms(reference.terms(player.name, batches[-1]), reference.term_weights)
            gradients = torch.autograd.grad(loss, own[player.name])  # nothing of anybody else's
            for parameter, gradient in zip(own[player.name], gradients, strict=True):
                parameter.grad = gradient
            optimisers[player.name].step()
    assert training.method.asked == ["segmenter", "critic"] * STEPS
    for name, network in reference.networks.items():
        for key, value in network.state_dict().items():
            torch.testing.assert_close(training.method.networks[name].state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_a_player_moves_only_its_own_networks(cases):
    training = make_training(make_method(players=PLAYERS[:1]), cases)
    before = everything(training)
    list(training.run())
    moved = {name for name, value in everything(training).items() if not torch.equal(value, before[name])}
    assert moved == {"segmenter.conv.weight", "segmenter.conv.bias"}


def test_terms_of_every_player_are_logged_with_their_weighted_sum(cases):
    step = next(make_training(make_method(), cases).run())
    terms = step.terms
    assert set(terms) == {
        *(f"segmenter/{name}" for name in ("cross_entropy", "dice", "adversarial", "loss")),
        "critic/fooled",
        "critic/loss",
    }
    weighted = terms["segmenter/cross_entropy"] + terms["segmenter/dice"] + 3 * terms["segmenter/adversarial"]
    assert terms["segmenter/loss"] == pytest.approx(weighted, rel=1e-5)
    assert (step.number, step.learning_rate) == (1, 1e-2)
    alone = next(make_training(make_method(players=PLAYERS[:1]), cases).run())
    assert "cross_entropy" in alone.terms


def test_weights_may_change_from_step_to_step(cases):
    method = make_method(players=PLAYERS[:1])
    method.weights = lambda step, steps: {"adversarial": step / steps, "dice": 0.0}
    for step in make_training(method, cases).run():
        terms = step.terms
        weighted = terms["cross_entropy"] + (step.number - 1) / STEPS * terms["adversarial"]
        assert terms["loss"] == pytest.approx(weighted, rel=1e-5)


def test_log_every_leaves_steps_unread_but_not_the_last(cases):
    schedule = Schedule(steps=5, batch=2, crop=16, log_every=2)
    steps = list(make_training(make_method(), cases, schedule=schedule).run())
    assert [bool(step.terms) for step in steps] == [False, True, False, True, True]
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]


def test_a_checkpoint_holds_both_players_and_resuming_is_exact(cases, tmp_path):
    """Also what the method draws from torch's own generator goes on where it stood."""
    seed_everything(0)
    whole = make_training(make_method(noise=0.3), cases, average=0.9)
    expected_steps = [step.terms for step in whole.run()]
    seed_everything(0)
    first = make_training(make_method(noise=0.3), cases, average=0.9)
    steps = first.run()
    begun = [next(steps).terms for _ in range(4)]
    save_checkpoint(tmp_path, first.state())
    seed_everything(99)
    method = make_method(noise=0.3)
    for network in method.networks.values():
        for parameter in network.parameters():
            nn.init.normal_(parameter)
    resumed = make_training(method, cases, average=0.9)
    state, _ = load_newest(tmp_path, settings="toy")
    assert set(state.networks) == set(state.optimisers) == {"segmenter", "critic"}
    resumed.load(state)
    assert resumed.finished == 4
    assert begun + [step.terms for step in resumed.run()] == expected_steps
    found = everything(resumed)
    assert all(torch.equal(value, found[name]) for name, value in everything(whole).items())
    average = resumed.predicting_state()
    assert all(torch.equal(value, average[name]) for name, value in whole.predicting_state().items())
    without_noise = make_training(make_method(), cases, average=0.9)
    assert [step.terms for step in without_noise.run()] != expected_steps


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt(cases):
    training = make_training(make_method(spoil_at=3), cases)  # asked segmenter, critic, segmenter
    steps = training.run()
    next(steps)
    before = everything(training)
    with pytest.raises(NonFiniteLoss) as caught:
        next(steps)
    message = str(caught.value)
    assert "not finite at step 2" in message
    assert "segmenter/adversarial nan" in message
    assert "segmenter/dice 0." in message
    named = [case_id for case_id in ("a", "b", "lacks-t1") if case_id in message.split("on cases ")[1].split(". ")[0]]
    assert len(named) >= 1
    assert all(torch.equal(value, before[name]) for name, value in everything(training).items())


def test_a_loss_that_is_not_finite_stops_an_unlogged_step_too_and_names_its_cases(cases):
    schedule = Schedule(steps=STEPS, batch=2, crop=16, log_every=3)
    training = make_training(make_method(spoil_at=1), cases, schedule=schedule)
    with pytest.raises(NonFiniteLoss, match="at step 1 "):
        next(training.run())
    assert training.finished == 0


def test_weights_that_are_not_finite_never_reach_a_checkpoint(cases):
    training = make_training(make_method(), cases)
    next(training.run())
    with torch.no_grad():
        training.method.networks["segmenter"].conv.weight[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="weights of the segmenter are not finite at step 1"):
        training.state()


def test_the_gradient_of_a_player_is_clipped(cases):
    def norms(clip):
        training = make_training(make_method(), cases, clip=clip, weight_decay=0.0)
        next(training.run())
        states = {name: optimiser.state_dict()["state"] for name, optimiser in training.optimisers.items()}
        return {  # after one step Adam's first moment is a tenth of the gradient
            name: float(torch.cat([s["exp_avg"].flatten() * 10 for s in state.values()]).norm())
            for name, state in states.items()
        }

    free, clipped = norms(0.0), norms(1e-2)
    for player in free:
        assert free[player] > 2e-2
        assert clipped[player] == pytest.approx(1e-2, rel=1e-3)
    loose = norms(1e3)
    assert loose == pytest.approx(free, rel=1e-5)


def test_the_learning_rate_follows_the_schedule(cases):
    rates = [step.learning_rate for step in make_training(make_method(), cases).run()]
    assert rates == pytest.approx([1e-2 * (1 - t / STEPS) ** 0.9 for t in range(STEPS)])


def test_the_averaged_network_predicts(cases):
    training = make_training(make_method(), cases, average=0.5)
    copies = [copy.deepcopy(training.segmenter.state_dict())]
    copies += [copy.deepcopy(training.segmenter.state_dict()) for _ in training.run()]
    expected = copies[0]["conv.weight"]
    for update, state in enumerate(copies[1:], start=1):
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * state["conv.weight"]
    torch.testing.assert_close(training.predicting_state()["conv.weight"], expected)
    plain = make_training(make_method(), cases)
    assert torch.equal(plain.predicting_state()["conv.weight"], plain.segmenter.conv.weight)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 0}, {"log_every": 0}, {"crop": 24}, {"crop": 0}])
@pytest.mark.parametrize("foreground", [0.5])
def test_impossible_schedules_are_refused(changes, foreground):
    with pytest.raises(SettingError):
        replace(Schedule(steps=10, foreground=foreground), **changes)


@pytest.mark.parametrize("foreground", [-0.1, 1.1])
def test_foreground_is_a_share(foreground):
    with pytest.raises(SettingError, match="share"):
        Schedule(steps=10, foreground=foreground)


def test_a_batch_too_small_to_normalise_is_refused():
    with pytest.raises(SettingError, match="batch"):
        Schedule(steps=10, batch=1, crop=16)
    Schedule(steps=10, batch=1, crop=32)
    Schedule(steps=10, batch=2, crop=16)
