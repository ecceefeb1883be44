"""Raw scans through a network: onto the atlas grid, and the probabilities home to the grid of a scan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mindgap.data.case import CaseFiles
from mindgap.data.nifti import read_volume
from mindgap.data.prepared import Placement
from mindgap.data.raw import RawCase, RawOptions, bring_back, to_atlas_grid
from mindgap.data.volume import volume_of_voxel_ml
from mindgap.errors import InputError
from mindgap.evaluation.conformal import volume_interval
from mindgap.files import sha256_of
from mindgap.inference.confidence import Confidence
from mindgap.inference.estimate import Estimate
from mindgap.inference.predictor import Predictor
from mindgap.inference.record import Found, Reading, doubts_about, find_in, refuse_copies, refuse_same_voxels
from mindgap.progress import Say, mute
from mindgap.regions import Region, region_volumes_ml

_CUT_SHARE, _CUT_ML = 0.05, 1.0  # lost on the way home; thick slices alone move volumes by less


@dataclass(frozen=True, eq=False)
class RawReading:
    """Raw scans that were read and laid upon the atlas, before a network sees them.

    Attributes:
        reading: The case on the atlas grid.
        raw: The way back.
        seconds: What registration took.
    """

    reading: Reading
    raw: RawCase
    seconds: float


def read_raw(
    predictor: Predictor,
    files: CaseFiles,
    options: RawOptions,
    *,
    force: bool = False,
    say: Say = mute,
) -> RawReading:
    """Open the scans a network looks at, and lay them upon the atlas.

    Args:
        predictor: The network.
        files: The scans on disk, each on a grid of its own; those the network does not use are not opened.
        options: How they are registered and stripped.
        force: Let a registration through that is not plausible.
        say: As in :func:`~mindgap.data.raw.to_atlas_grid`.

    Raises:
        InputError: A scan cannot be used, or registration fails.
    """
    began = time.perf_counter()
    used = predictor.serve(files.case_id, files.sequences)
    sources = {sequence: files.images[sequence] for sequence in used}
    images = {s: read_volume(source.path, case=files.case_id, channel=source.channel) for s, source in sources.items()}
    sha256 = {path: sha256_of(path) for path in dict.fromkeys(source.path for source in sources.values())}
    refuse_copies(files, sha256)
    refuse_same_voxels(files, images)
    read = time.perf_counter()
    try:
        raw = to_atlas_grid(files.case_id, images, options, force=force, say=say)
    except RuntimeError as error:  # SimpleITK says by it whatever it cannot do
        raise InputError(
            case=files.case_id,
            expected="scans that can be laid upon each other",
            found=f"an error of SimpleITK ({' '.join(str(error).split())[-160:]})",
            mend="look at the scans and their headers; leave out the one that is broken",
        ) from error
    doubts = doubts_about(images.values())
    reading = Reading(files, raw.case, sha256, read - began, raw.record, (*doubts, *raw.warnings))
    return RawReading(reading, raw, time.perf_counter() - read)


def find_raw(predictor: Predictor, given: RawReading, confidence: Confidence | None = None) -> Found:
    """Segment on the atlas grid; region probabilities are resampled to the native grid and classes decided there.

    Volumes are those of the mask that is written; where its grid cuts off a part of what was found, that is said.

    Args:
        predictor: The network.
        given: The scans.
        confidence: What is known of the network; it judges what was found on the atlas grid.
    """
    began = time.perf_counter()
    on_atlas = find_in(predictor, given.reading, confidence).segmentation
    maps = bring_back(given.raw, on_atlas.probabilities)
    target = predictor.classes(maps)
    volumes_ml = region_volumes_ml(target, volume_of_voxel_ml(given.raw.native.affine))
    cut = _cut_regions(on_atlas.volumes_ml, volumes_ml)
    i, j, k = target.shape
    whole = Placement((i, j, k), (0, 1, 2), (False, False, False), (i, j, k), ((0, i), (0, j), (0, k)))
    found = replace(
        on_atlas,
        confidence=_at_home(on_atlas.confidence, confidence, volumes_ml, cut),
        target=target,
        maps=maps,
        native=maps,
        placement=whole,
        like=given.raw.native,
        volumes_ml=volumes_ml,
    )
    reading = replace(
        given.reading,
        raw={**given.reading.raw, "volumes_on_atlas_ml": {str(r): round(v, 3) for r, v in on_atlas.volumes_ml.items()}},
        warnings=(*given.reading.warnings, *_say_cut(cut, on_atlas.volumes_ml, volumes_ml, given.raw)),
    )
    return Found(reading, found, given.seconds + time.perf_counter() - began)


def _cut_regions(on_atlas_ml: Mapping[Region, float], native_ml: Mapping[Region, float]) -> tuple[Region, ...]:
    """Regions that lost more on the way home than a change of grid explains."""
    return tuple(r for r, ml in on_atlas_ml.items() if ml - native_ml[r] > max(_CUT_ML, _CUT_SHARE * ml))


def _say_cut(
    cut: tuple[Region, ...], on_atlas_ml: Mapping[Region, float], native_ml: Mapping[Region, float], raw: RawCase
) -> tuple[str, ...]:
    if not cut:
        return ()
    lost = ", ".join(f"{region} {native_ml[region]:.1f} of {on_atlas_ml[region]:.1f} mL" for region in cut)
    return (
        f"the grid of {raw.record['native']} cuts the mask: it holds {lost} found on the atlas; name a scan that "
        "covers the tumour with --native",
    )


def _at_home(
    estimate: Estimate | None, known: Confidence | None, volumes_ml: Mapping[Region, float], cut: tuple[Region, ...]
) -> Estimate | None:
    """What can be said of the mask on the native grid: its volumes lead to intervals of their own."""
    if estimate is None or known is None:
        return None
    intervals = {
        region: volume_interval(ml, known.residuals(estimate.subset, str(region)), known.level)
        for region, ml in volumes_ml.items()
    }
    return estimate.of_mask(volumes_ml, intervals, cut)
