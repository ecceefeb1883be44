"""What 8-bit codes cost in accuracy, against float16: `python benchmarks/store_codes.py BRATS [--seeds 3]`.

Prepares a cohort twice, trains the same teachers (quick preset) on both stores, and scores them on the validation
cases. Two questions are answered apart: does a network learn less from 8-bit codes (trained on each, scored on each),
and does a trained network see less in them (one network, scored on both).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mindgap.api import prepare, train
from mindgap.data.prepared import Preparation
from mindgap.data.resident import ResidentCases
from mindgap.data.store import open_store
from mindgap.evaluation.statistics import paired_difference
from mindgap.experiment import quick
from mindgap.networks.card import head_of
from mindgap.networks.weights import load_network
from mindgap.processor import choose_precision, detect_processor, keep_freed_memory
from mindgap.regions import REGIONS
from mindgap.training.validation import validate

KINDS = ("uint8", "float16")


def score(model: Path, store_folder: Path) -> np.ndarray:
    """Dice of every validation case (rows) and region (columns) of a network on a store."""
    trained, store, processor = load_network(model), open_store(store_folder), detect_processor("cpu")
    subset = trained.card.sequences
    cases = ResidentCases(store, store.part("validation"), subset=subset)
    rows = validate(
        trained.network,
        cases,
        subset,
        window=trained.card.crop,
        device=torch.device("cpu"),
        bf16=choose_precision("auto", processor) == "bf16",
        head=head_of(trained.card.architecture, trained.card.arguments),
    )
    return np.array([values for _, values in sorted(rows)])


def main() -> None:
    """Train, score, print a Markdown table of paired differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="protokd")
    parser.add_argument("--spacing-mm", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    keep_freed_memory()
    own: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    crossed: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in KINDS:
            preparation = Preparation(spacing_mm=options.spacing_mm)
            store = prepare(options.data, folder / kind, preparation, split=options.split, codes=kind)
            size = sum(store.path_of(case_id).stat().st_size for case_id in store.cases) / 2**20
            print(f"{kind}: {len(store.cases)} cases, {size:.0f} MiB", flush=True)
        for seed in range(options.seeds):
            for kind in KINDS:
                settings = replace(quick(folder / kind), seed=seed, device="cpu")
                settings = replace(settings, schedule=replace(settings.schedule, steps=options.steps))
                out = folder / f"{kind}-{seed}"
                train(settings, out)
                own[kind].append(score(out, folder / kind))
                print(f"seed {seed} {kind}: mean Dice {own[kind][-1].mean():.4f}", flush=True)
            crossed.append(score(folder / f"float16-{seed}", folder / "uint8") - own["float16"][-1])
    print(f"\n{detect_processor('cpu').kind}; {options.seeds} seeds, {options.steps} steps\n")
    print("| Dice with 8-bit codes minus with float16, validation cases | WT | TC | ET |\n|---|---|---|---|")
    # cases are the units: seeds are averaged first
    learnt = paired_rows(np.mean(own["uint8"], axis=0), np.mean(own["float16"], axis=0))
    base = np.mean(own["float16"], axis=0)
    seen = paired_rows(base + np.mean(crossed, axis=0), base)
    print("| trained and scored on each | " + " | ".join(learnt) + " |")
    print("| trained on float16, scored on both | " + " | ".join(seen) + " |")
    spread = np.std([rows.mean(0) for rows in own["float16"]], axis=0, ddof=1)
    print("| for scale: spread between seeds (float16) | " + " | ".join(f"{value:.4f}" for value in spread) + " |")


def paired_rows(one: np.ndarray, other: np.ndarray) -> list[str]:
    """Mean paired difference and its 95 % bootstrap interval over cases, for each region."""
    cells = []
    for column in range(len(REGIONS)):
        first, second = ({str(case): float(v) for case, v in enumerate(rows[:, column])} for rows in (one, other))
        found = paired_difference(first, second)
        cells.append(f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
    return cells


if __name__ == "__main__":
    main()
