"""Ways from four NIfTI files to a mask; started by ``segment.py``, segments once for each line it is sent.

The reference is the protocol of the paper's base as a user of torch runs it: nibabel, the fixed crop of 140x192x192,
48 windows of 80^3 at stride 40, contiguous fp32, inference mode, the allocator as it comes, windows per call as is best
of 1, 2 and 4. MONAI's is the network of its BraTS bundle on one window of 240x240x160, read and written by nibabel.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mindgap.processor import peak_memory_gib

Phases = dict[str, float]
Go = Callable[[], Phases]
CROP, STRIDE, BOX = 80, 40, (192, 192, 140)


def _paths(case: Path) -> list[Path]:
    from mindgap.data.cohort import case_from_folder
    from mindgap.sequences import SEQUENCES

    images = case_from_folder(case, label=False).images
    return [images[sequence].path for sequence in SEQUENCES]


def _fit(volume: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Crop or pad around the middle."""
    result = np.zeros(shape, dtype=volume.dtype)
    pairs = [(min(a, b), (a - min(a, b)) // 2, (b - min(a, b)) // 2) for a, b in zip(volume.shape, shape, strict=True)]
    source = tuple(slice(start, start + size) for size, start, _ in pairs)
    target = tuple(slice(start, start + size) for size, _, start in pairs)
    result[target] = volume[source]
    return result


def _read(case: Path, shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    images = [nib.load(path) for path in _paths(case)]
    volumes = []
    for image in images:
        data = image.get_fdata(dtype=np.float32)
        inside = data[data > 0]
        volumes.append(_fit(np.where(data > 0, (data - inside.mean()) / inside.std(), 0), shape))
    return torch.from_numpy(np.stack(volumes)).float(), images[0]


def _write(out: Path, classes: np.ndarray, like: Any) -> None:
    nib.save(nib.Nifti1Image(_fit(classes.astype(np.uint8), like.shape), like.affine), out)


def _windows(image: Tensor) -> list[tuple[slice, slice, slice]]:
    starts = [[*range(0, side - CROP, STRIDE), side - CROP] for side in image.shape[1:]]
    return [(slice(a, a + CROP), slice(b, b + CROP), slice(c, c + CROP)) for a, b, c in product(*starts)]


def _plain_network(model: Path) -> Callable[[Tensor], Tensor]:
    from mindgap.networks.weights import load_network

    network = load_network(model).network
    return lambda tiles: torch.softmax(network(tiles, torch.ones(tiles.shape[:2], dtype=torch.bool)).logits, 1)


@torch.inference_mode()
def _slide(image: Tensor, run: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    places = _windows(image)
    total, count = torch.zeros(4, *image.shape[1:]), torch.zeros(image.shape[1:])
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        found = run(torch.stack([image[(slice(None), *place)] for place in some]))
        for place, tile in zip(some, found, strict=True):
            total[(slice(None), *place)] += tile
            count[place] += 1
    return total / count


@torch.inference_mode()
def _best_batch(image: Tensor, run: Callable[[Tensor], Tensor]) -> int:
    seconds = {}
    tile = image[(slice(None), *_windows(image)[0])]
    for batch in (1, 2, 4):
        tiles = tile.expand(batch, -1, -1, -1, -1).contiguous()
        run(tiles)
        began = time.perf_counter()
        for _ in range(4 // batch):
            run(tiles)
        seconds[batch] = time.perf_counter() - began
    return min(seconds, key=lambda batch: seconds[batch])


def reference(case: Path, model: Path, out: Path) -> Go:
    """The protocol of the paper's base."""
    run = _plain_network(model)
    batch: list[int] = []

    def go() -> Phases:
        image, like = _read(case, BOX)
        if not batch:
            batch.append(1 if "--once" in sys.argv else _best_batch(image, run))
        _write(out, _slide(image, run, batch[0]).argmax(0).numpy(), like)
        return {}

    return go


def reference_windows(case: Path, model: Path, out: Path) -> Go:
    """Its 48 windows alone, without reading and writing."""
    run, (image, _) = _plain_network(model), _read(case, BOX)
    batch = _best_batch(image, run)

    def go() -> Phases:
        _slide(image, run, batch)
        return {}

    return go


def mindgap_windows(case: Path, model: Path, out: Path) -> Go:
    """The same windows through the engine that mindgap chooses."""
    from mindgap.inference.predictor import Predictor
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    predictor, (image, _) = Predictor.load(model, device="cpu", engine="auto"), _read(case, BOX)
    present = np.ones(len(image), dtype=bool)

    def run(tiles: Tensor) -> Tensor:
        regions = torch.from_numpy(predictor.engine(tiles.numpy(), present))
        return torch.cat([1 - regions[:, :1], regions], 1)  # four maps, as the reference adds up

    def go() -> Phases:
        _slide(image, run, 1)
        return {}

    return go


def mindgap(case: Path, model: Path, out: Path, *, precision: str = "auto") -> Go:
    """What ``mindgap segment`` does, in a process that holds the network; the whole brain in one pass."""
    from torch.utils.flop_counter import FlopCounterMode

    from mindgap.data.cohort import case_from_folder
    from mindgap.inference.predictor import Predictor
    from mindgap.inference.record import find_in, read_for, write_mask
    from mindgap.processor import keep_freed_memory
    from mindgap.regions import find_convention

    keep_freed_memory()
    predictor = Predictor.load(model, device="cpu", precision=precision, engine="auto", coverage="whole")
    spent = {"network": 0.0, "gflop": 0.0}
    engine = predictor.engine

    def timed(images: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        began = time.perf_counter()
        found = engine(images, present)
        spent["network"] = time.perf_counter() - began
        if not spent["gflop"]:
            network = copy.deepcopy(predictor.network).to("meta")
            with torch.device("meta"), FlopCounterMode(display=False) as counter:
                shown = torch.ones(1, len(present), dtype=torch.bool, device="cpu")
                network(torch.empty(images.shape), shown)
            spent["gflop"] = counter.get_total_flops() / 1e9
        return found

    timed.name, timed.precision = engine.name, engine.precision  # type: ignore[attr-defined]
    predictor.engine = timed  # type: ignore[assignment]

    def go() -> Phases:
        files = case_from_folder(case, label=False)
        began = time.perf_counter()
        reading = read_for(predictor, files)
        read = time.perf_counter()
        found = find_in(predictor, reading)
        computed = time.perf_counter()
        write_mask(out, found, predictor, convention=find_convention("brats2017"))
        ended = time.perf_counter()
        around = computed - read - spent["network"]
        phases = {"read": read - began, "network": spent["network"], "prepare and put back": around}
        return phases | {"write": ended - computed, "gflop": spent["gflop"]}

    return go


def monai(case: Path, model: Path, out: Path) -> Go:
    """The network of MONAI's BraTS bundle, random weights."""
    from monai.networks.nets.segresnet import SegResNet

    network = SegResNet(
        init_filters=16, in_channels=4, out_channels=3, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1), dropout_prob=0.2
    ).eval()

    @torch.inference_mode()
    def go() -> Phases:
        image, like = _read(case, (240, 240, 160))
        found = torch.sigmoid(network(image[None]))[0] > 0.5
        _write(out, found.sum(0).numpy(), like)
        return {}

    return go


WAYS = {
    "mindgap": mindgap,
    "mindgap-int8": partial(mindgap, precision="int8"),
    "mindgap-windows": mindgap_windows,
    "reference": reference,
    "reference-windows": reference_windows,
    "monai": monai,
}


def main() -> None:
    """Get ready, then segment for each line on standard input; ``--once`` segments once and ends."""
    name, case, model, out = sys.argv[1:5]
    go = WAYS[name](Path(case), Path(model), Path(out))
    for _ in [""] if "--once" in sys.argv else sys.stdin:
        began = time.perf_counter()
        phases = go()
        found = {"seconds": time.perf_counter() - began, "phases": phases, "peak_gib": peak_memory_gib()}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
