"""Raw scans through a network: onto the atlas grid, and the probabilities home to the grid of a scan."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from mindgap.data.case import CaseFiles
from mindgap.data.nifti import read_volume, volume_of_voxel_ml
from mindgap.data.prepared import Placement
from mindgap.data.raw import RawOptions, bring_back, to_atlas_grid
from mindgap.files import sha256_of
from mindgap.inference.confidence import Confidence
from mindgap.inference.predictor import Predictor, region_voxels
from mindgap.inference.record import Found, Reading, find_in


def segment_raw(
    predictor: Predictor, files: CaseFiles, options: RawOptions, confidence: Confidence | None, *, force: bool = False
) -> Found:
    """Segment raw scans; region probabilities are resampled to the native grid and classes decided there.

    Args:
        predictor: The network.
        files: The scans on disk, each on a grid of its own; those the network does not use are not opened.
        options: How they are registered and stripped.
        confidence: What is known of the network; it judges what was found on the atlas grid.
        force: Let a registration through that is not plausible.

    Raises:
        InputError: A scan cannot be used, or registration fails.
    """
    began = time.perf_counter()
    used = predictor.serve(files.case_id, files.sequences)
    sources = {sequence: files.images[sequence] for sequence in used}
    images = {s: read_volume(source.path, case=files.case_id, channel=source.channel) for s, source in sources.items()}
    sha256 = {path: sha256_of(path) for path in dict.fromkeys(source.path for source in sources.values())}
    read = time.perf_counter()
    raw = to_atlas_grid(files.case_id, images, options, force=force)
    reading = Reading(files, raw.case, sha256, read - began, raw.record, raw.warnings)
    on_atlas = find_in(predictor, reading, confidence).segmentation
    maps = torch.from_numpy(bring_back(raw, on_atlas.probabilities))
    target = predictor.classes(maps)
    voxel_ml = volume_of_voxel_ml(raw.native.affine)
    i, j, k = target.shape
    whole = Placement((i, j, k), (0, 1, 2), (False, False, False), (i, j, k), ((0, i), (0, j), (0, k)))
    found = replace(
        on_atlas,
        target=target,
        maps=maps,
        placement=whole,
        like=raw.native,
        volumes_ml={region: count * voxel_ml for region, count in region_voxels(target).items()},
    )
    return Found(reading, found, time.perf_counter() - read)
