import math

import pytest
import torch
from torch import nn

from mindgap.errors import SettingError
from mindgap.training.optimisation import AveragedWeights, Optimisation, learning_rate_share, set_learning_rate


def test_poly_falls_from_one_to_zero():
    assert learning_rate_share("poly", 0, 1000) == 1
    assert learning_rate_share("poly", 500, 1000) == pytest.approx(0.5**0.9)
    assert learning_rate_share("poly", 999, 1000) == pytest.approx(0.001**0.9)
    assert learning_rate_share("poly", 1000, 1000) == 0


def test_onecycle_warms_up_over_a_tenth_and_falls_as_a_cosine():
    assert learning_rate_share("onecycle", 0, 1000) == pytest.approx(0.04)
    assert learning_rate_share("onecycle", 50, 1000) == pytest.approx(0.04 + 0.96 / 2)
    assert learning_rate_share("onecycle", 100, 1000) == pytest.approx(1)
    assert learning_rate_share("onecycle", 550, 1000) == pytest.approx(0.5)
    assert learning_rate_share("onecycle", 325, 1000) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate_share("onecycle", 1000, 1000) == pytest.approx(0, abs=1e-12)


def test_constant_stays():
    assert {learning_rate_share("constant", step, 7) for step in range(7)} == {1.0}


def test_every_group_keeps_its_own_height():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimiser = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(parameters, (1e-3, 1e-2), strict=True)])
    for group in optimiser.param_groups:
        group["peak_lr"] = group["lr"]
    for share in (0.5, 0.25):  # a share of the highest, not of the last
        set_learning_rate(optimiser, share)
        assert [group["lr"] for group in optimiser.param_groups] == [1e-3 * share, 1e-2 * share]


def test_averaged_weights_by_hand():
    network = nn.BatchNorm1d(1)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average = AveragedWeights(network, decay=0.25)
    expected = 1.0
    for update, value in enumerate((3.0, -2.0, 5.0, 8.0), start=1):
        with torch.no_grad():
            network.weight.fill_(value)
        network.num_batches_tracked.fill_(update)
        average.update()
        decay = min(0.25, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        assert float(average.state["weight"]) == pytest.approx(expected, rel=1e-6)
    assert int(average.state["num_batches_tracked"]) == 4
    assert average.updates == 4
    assert (1 + 1) / (10 + 1) < 0.25 < (1 + 4) / (10 + 4)  # both branches were taken


def test_the_average_is_no_view_of_the_network():
    network = nn.Linear(1, 1)
    before = network.weight.detach().clone()
    average = AveragedWeights(network, decay=0.5)
    with torch.no_grad():
        network.weight.add_(1)
    assert torch.equal(average.state["weight"], before)


@pytest.mark.parametrize(
    "numbers",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"weight_decay": -1.0},
        {"clip": -1.0},
        {"average": 1.0},
        {"average": -0.1},
    ],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(SettingError):
        Optimisation(**numbers)
