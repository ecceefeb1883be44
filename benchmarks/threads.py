"""How long a training step takes when OpenMP threads spin, sleep, or do as ours, alone and beside another program.

    python benchmarks/threads.py

Each setting runs in a process of its own (the policy is read once, when torch is loaded), in turn, three rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict

from mindgap.processor import calm_threads

POLICIES: dict[str, dict[str, str]] = {
    "spin": {"OMP_WAIT_POLICY": "active"},
    "sleep": {"OMP_WAIT_POLICY": "passive"},
    "ours": {},
}
calm_threads(POLICIES["ours"])
STEP = """
import time, torch
from mindgap.networks.build import build_aligned
from mindgap.networks.blocks import channels_last
from mindgap.processor import choose_precision, detect_processor
processor = detect_processor("cpu")
network = channels_last(build_aligned(sequences=4, width=8))
optimiser = torch.optim.AdamW(network.parameters(), fused=True)
image = torch.rand(4, 4, 48, 48, 48).contiguous(memory_format=torch.channels_last_3d)
present = torch.ones(4, 4, dtype=torch.bool)
seconds = []
for _ in range(6):
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto", processor) == "bf16"):
        loss = network(image, present).logits.float().square().mean()
    loss.backward(); optimiser.step(); optimiser.zero_grad()
    seconds.append(time.perf_counter() - began)
print(sorted(seconds[1:])[2], processor.kind, sep=";")
"""


def measure(policy: str, *, busy: bool) -> tuple[float, str]:
    """Median step of one process, in seconds, and the processor's class."""
    environment = {**os.environ, **POLICIES[policy]}
    forever = STEP.replace("range(6)", "iter(int, 1)")
    others = [subprocess.Popen([sys.executable, "-c", forever], env=environment)] if busy else []
    try:
        done = subprocess.run(
            [sys.executable, "-c", STEP],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for other in others:
            other.kill()
    seconds, kind = done.stdout.strip().split(";")
    return float(seconds), kind


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[tuple[str, bool], list[float]] = defaultdict(list)
    kind = ""
    for _ in range(rounds):
        for policy in POLICIES:
            for busy in (False, True):
                seconds, kind = measure(policy, busy=busy)
                found[policy, busy].append(seconds)
    print(f"{kind}; aligned network, width 8, batch 4 of 48^3, seconds per step, median of {rounds}")
    for (policy, busy), values in found.items():
        place = "beside another one" if busy else "alone"
        print(f"threads {policy:<8} {place:<22} {statistics.median(values):.2f}")


if __name__ == "__main__":
    main()
