"""How good a network is while it is being trained: mean Dice on the validation cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mindgap.batch import Output
from mindgap.data.resident import ResidentCases
from mindgap.evaluation.metrics import dice
from mindgap.inference.decision import classes_from_regions
from mindgap.inference.tiling import predict_tiled
from mindgap.regions import REGIONS, Head, region_mask
from mindgap.sequences import Subset


@torch.no_grad()
def validate(
    network: nn.Module,
    cases: ResidentCases,
    subset: Subset,
    *,
    window: int,
    device: torch.device,
    bf16: bool,
    head: Head,
    shown: Sequence[Subset] | None = None,
    indices: Iterable[int] | None = None,
) -> list[tuple[int, list[float]]]:
    """Dice of WT, TC and ET of each case, on the working grid, by half-overlapping windows.

    Each case is shown with every subset in ``shown``; its values are means over them.

    Windows of the crop's size, as in the published scores (``inference.scoring``): a network trained on small crops
    can do much worse on the whole brain in one pass, which would choose the wrong state.

    Args:
        network: In any mode; it is left in eval mode.
        cases: Validation cases that have every sequence of the subset.
        subset: Columns of the network.
        window: Side of the windows, the training crop.
        device: Where to compute.
        bf16: Whether to use bf16 autocast.
        head: Of the network, which decides how its masks are made.
        shown: Subsets each case is shown with (those it has of them); ``subset`` by default.
        indices: Which of the cases; all by default (processes share them).

    Returns:
        The position of each case and its three values.
    """
    network.eval()
    rows = []
    for index in range(len(cases)) if indices is None else indices:
        target = cases.whole(index).target
        assert target is not None
        reference = target[0].cpu().numpy().astype(np.uint8)
        values = []
        for some in shown or [subset]:
            if not set(some) & set(cases.entries[index].sequences):
                continue
            seen = cases.whole(index, shown=some).select(subset).show(some)  # nothing of what is absent, not its crop
            run = partial(_region_probabilities, network, seen.present, device=device, bf16=bf16)
            maps = predict_tiled(seen.image[0].cpu().numpy(), run, window=window)
            predicted = cases.spread(index, classes_from_regions(maps, head), some)
            values.append([dice(region_mask(predicted, region), region_mask(reference, region)) for region in REGIONS])
        rows.append((index, np.mean(values, axis=0).tolist()))
    return rows


def mean_scores(rows: Sequence[tuple[int, list[float]]]) -> dict[str, float]:
    """Mean Dice of WT, TC, ET and their average; the order of the rows does not matter. Empty without rows."""
    if not rows:
        return {}
    means = np.mean([values for _, values in sorted(rows)], axis=0)
    named = {str(region): float(mean) for region, mean in zip(REGIONS, means, strict=True)}
    return {**named, "mean": float(np.mean(means))}


def _region_probabilities(
    network: nn.Module, present: Tensor, tiles: NDArray[np.float32], *, device: torch.device, bf16: bool
) -> NDArray[np.float32]:
    image = torch.from_numpy(tiles).to(device).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        output: Output = network(image, present.expand(len(image), -1))
    maps: NDArray[np.float32] = output.region_probabilities().cpu().numpy()
    return maps
