"""Do all engines give the same mask? Every way of computing a trained network beside torch in fp32 and tiles.

    python benchmarks/engines.py RUN DATA

Test cases of the run, all sequences: Dice between the masks (the worst case for WT; the mean for TC and ET; regions
under 1 mL by the volume that differs), Dice against the labels, and the loss of it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindgap.data.cohort import discover
from mindgap.data.volume import volume_of_voxel_ml
from mindgap.errors import MindgapError
from mindgap.evaluation.metrics import dice
from mindgap.files import read_json
from mindgap.inference.predictor import Predictor
from mindgap.processor import detect_processor, keep_freed_memory
from mindgap.regions import Region, region_mask

WAYS = {
    "torch fp32, tiles": {"engine": "torch", "precision": "fp32"},
    "torch bf16, tiles": {"engine": "torch", "precision": "bf16"},
    "openvino fp32, tiles": {"engine": "openvino", "precision": "fp32"},
    "openvino bf16, tiles": {"engine": "openvino", "precision": "bf16"},
    "openvino int8, tiles": {"engine": "openvino", "precision": "int8"},
    "torch fp32, whole": {"engine": "torch", "precision": "fp32", "coverage": "whole"},
    "openvino bf16, whole": {"engine": "openvino", "precision": "bf16", "coverage": "whole"},
}
SMALL_ML = 1.0


def load(run: Path) -> dict[str, Predictor]:
    """The ways this processor and this model folder have; the others are said."""
    predictors = {}
    for name, settings in WAYS.items():
        try:
            predictors[name] = Predictor.load(run, device="cpu", **settings)
        except MindgapError as error:
            print(f"left out: {name} ({error})")
    return predictors


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    settings = parser.parse_args()
    keep_freed_memory()
    cohort, wanted = discover(settings.data), set(read_json(settings.run / "manifest.json")["cases"]["test"])
    assert cohort.convention is not None
    predictors = load(settings.run)
    labelled: dict[str, dict[Region, list[float]]] = defaultdict(lambda: defaultdict(list))
    mutual: dict[str, dict[Region, list[float]]] = defaultdict(lambda: defaultdict(list))
    small_ml: dict[str, list[float]] = defaultdict(list)
    for files in cohort.cases:
        if files.case_id not in wanted:
            continue
        case = files.load(convention=cohort.convention)
        assert case.target is not None
        voxel_ml = volume_of_voxel_ml(case.reference.affine)
        masks = {name: predictor.segment(case).target for name, predictor in predictors.items()}
        first = next(iter(masks.values()))
        for name, mask in masks.items():
            for region in Region:
                found, plain = region_mask(mask, region), region_mask(first, region)
                labelled[name][region].append(dice(found, region_mask(case.target, region)))
                if plain.sum() * voxel_ml >= SMALL_ML:
                    mutual[name][region].append(dice(found, plain))
                else:
                    small_ml[name].append(float((found != plain).sum()) * voxel_ml)
    _print(labelled, mutual, small_ml)


def _print(
    labelled: dict[str, dict[Region, list[float]]],
    mutual: dict[str, dict[Region, list[float]]],
    small_ml: dict[str, list[float]],
) -> None:
    first = next(iter(labelled))

    def row(values: dict[Region, list[float]], take: Callable[[NDArray[np.float64]], float]) -> str:
        return " / ".join(f"{take(np.array(values[region])):.4f}" if values[region] else "-" for region in Region)

    print(f"{detect_processor('cpu').kind}, {len(labelled[first][Region.WT])} cases, against {first}\n")
    print("| way | Dice against labels, WT / TC / ET | lost | between masks, worst | mean | mL, small regions |")
    print("|---|---|---|---|---|---|")
    for name, values in labelled.items():
        lost = {r: [np.mean(labelled[first][r]) - np.mean(values[r])] for r in Region}
        small = f"{max(small_ml[name]):.2f}" if small_ml[name] else "-"
        cells = [row(values, np.mean), row(lost, np.mean), row(mutual[name], np.min), row(mutual[name], np.mean), small]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
