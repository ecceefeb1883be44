import os
import subprocess
import sys

import pytest
import torch

from mindgap.files import read_json
from mindgap.networks.build import build_network
from mindgap.runfiles import CHECKPOINTS
from mindgap.session import train
from mindgap.training.checkpoint import load_newest
from mindgap.training.loop import Schedule
from mindgap.training.memory import explain_shortage, recompute_activations

TOO_LARGE = """
import resource, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from mindgap.errors import MindgapError
from mindgap.experiment import Experiment
from mindgap.session import open_session
from mindgap.training.loop import Schedule

schedule = Schedule(steps=1, batch=64, crop=48)
settings = Experiment(data=Path(sys.argv[1]), width=16, schedule=schedule, device="cpu", precision="fp32")
session = open_session(settings, Path(sys.argv[2]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))  # 1 GiB more; the step takes over 10
try:
    next(session.training.run())
except MindgapError as error:
    print(type(error).__name__, error)
"""


def learn(network, steps=3):
    """Weights, running averages and gradients after some steps."""
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        output = network(torch.randn(2, 1, 16, 16, 16, generator=generator))
        optimiser.zero_grad()
        (output.logits.square().mean() + output.features["bottleneck"].mean()).backward()
        optimiser.step()
    return network.state_dict()


def test_recomputed_activations_give_the_same_weights_and_running_averages_bit_for_bit():
    states = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build_network("vnet", {"channels_in": 1, "width": 2})
        if recompute:
            recompute_activations(network)
        states.append(learn(network))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert int(states[1]["encode1.1.num_batches_tracked"]) == 3


def test_recomputing_keeps_fewer_activations():
    kept = []
    for recompute in (False, True):
        network = build_network("vnet", {"channels_in": 1, "width": 4})
        if recompute:
            recompute_activations(network)
        sizes = {}
        pack = lambda t, sizes=sizes: sizes.update({t.untyped_storage().data_ptr(): t.nbytes}) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network(torch.randn(2, 1, 32, 32, 32))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.6 * kept[0]


def test_a_run_that_recomputes_is_the_run_that_does_not(make_experiment, tmp_path):
    weights = []
    for recompute in (False, True):
        schedule = Schedule(steps=3, batch=2, crop=16, foreground=0.5, recompute=recompute)
        out = tmp_path / str(recompute)
        train(make_experiment(schedule=schedule), out)
        assert read_json(out / "experiment.json")["schedule"]["recompute"] is recompute
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_memory_that_runs_out_is_answered_with_the_settings_that_help(store_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(store_folder), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "MemoryShort step 1: memory ran out. What helps, best first: --accumulate 2 computes 32"
    )
    for setting in ("--recompute", "--crop 32", "--width"):
        assert setting in done.stdout
    assert load_newest(tmp_path / "run" / CHECKPOINTS, settings="")[0] is None


def test_only_settings_that_are_left_are_named():
    shortage = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    text = explain_shortage(shortage, batch=4, accumulate=4, recompute=True, crop=16)
    assert "--accumulate" not in text
    assert "--recompute" not in text
    assert "--crop" not in text
    assert "--width" in text
    text = explain_shortage(shortage, batch=6, accumulate=2, recompute=False, crop=80)
    assert "--accumulate 3 computes 2 instead of 3 cases at once" in text
    assert "--crop 64 has 49% fewer voxels" in text


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), ValueError("out"), MemoryError()])
def test_other_errors_are_not_taken_for_it(error):
    found = explain_shortage(error, batch=4, accumulate=1, recompute=False, crop=80)
    assert (found is not None) == isinstance(error, MemoryError)
