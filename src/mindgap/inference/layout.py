"""Where the files of a segmented case lie, and what accompanies a mask: a folder per case, or a BIDS derivative.

BIDS: ``sub-01/ses-1/anat/sub-01_ses-1_space-T1w_desc-tumour_dseg.nii.gz`` with .json and .tsv, and
``label-ET_probseg`` for probabilities; the space is the sequence whose grid it has.

Reference:
    Brain Imaging Data Structure 1.9, Derivatives: imaging data types (segmentations).
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindgap.data.masks import is_own_probabilities, write_probabilities
from mindgap.data.nifti import stem_of
from mindgap.errors import SettingError
from mindgap.files import read_json, write_json, write_text
from mindgap.inference.predictor import Segmentation
from mindgap.regions import REGIONS, LabelConvention
from mindgap.sequences import Sequence

Layout = Literal["folders", "bids"]

_BIDS_VERSION = "1.9.0"
_ABOUT = "dataset_description.json"
_SPACES = {Sequence.T1: "T1w", Sequence.T2: "T2w", Sequence.T1CE: "T1ce", Sequence.FLAIR: "FLAIR"}
_BIDSIGNORE = "cohort.json\nstatus*.jsonl\nsummary.csv\noverlays*.png\n**/*.manifest.json\n**/*.stale\n"
_BIDS_CASE = re.compile(r"sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?")


def mask_of(out: Path, case_id: str, grid: Sequence, layout: Layout = "folders") -> Path:
    """Where the mask of a case lies in the folder of a cohort.

    Args:
        out: The folder.
        case_id: Name of the case.
        grid: The sequence whose grid the mask has (BIDS names it).
        layout: "folders" or "bids".
    """
    if layout == "folders":
        return out / case_id / f"{case_id}_seg.nii.gz"
    name = bids_case(case_id)
    return out.joinpath(*name.split("_"), "anat") / f"{name}_space-{_SPACES[grid]}_desc-tumour_dseg.nii.gz"


def bids_case(case_id: str) -> str:
    """The name of a case in BIDS, whose labels are letters and digits: "sub-01_ses-1" stays, "Brats18_X" is renamed.

    Example:
        >>> bids_case("Brats18_A-1")
        'sub-Brats18A1'
    """
    return case_id if _BIDS_CASE.fullmatch(case_id) else "sub-" + re.sub(r"[^A-Za-z0-9]", "", case_id)


def check_bids(out: Path, case_ids: Iterable[str]) -> None:
    """Refuse a folder that cannot become a BIDS derivative data set of these cases, before anything is written.

    Raises:
        SettingError: Two cases would have one name, or the folder is a data set of somebody else.
    """
    if (out / _ABOUT).exists() and "mindgap" not in _makers(read_json(out / _ABOUT)):
        raise SettingError(
            f"{out} is a BIDS data set that mindgap did not make: choose another folder, such as its "
            "derivatives/mindgap."
        )
    named: dict[str, str] = {}
    for case_id in sorted(case_ids):
        if bids_case(case_id) in named:
            raise SettingError(
                f"{named[bids_case(case_id)]} and {case_id} would both be {bids_case(case_id)} in BIDS, whose labels "
                "are letters and digits: rename one."
            )
        named[bids_case(case_id)] = case_id


def open_bids(out: Path) -> None:
    """Make a folder a BIDS derivative data set, before any work."""
    version = importlib.metadata.version("mindgap")
    made = {"Name": "mindgap", "Version": version, "Description": "brain-tumour segmentation; research use only"}
    description = {
        "Name": "Brain-tumour segmentations",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made],
    }
    if not (out / _ABOUT).exists():  # whoever added authors, or files to be ignored, keeps them
        write_json(out / _ABOUT, description)
    if not (out / ".bidsignore").exists():
        write_text(out / ".bidsignore", _BIDSIGNORE)


def describe_bids(mask: Path, record: Mapping[str, Any], convention: LabelConvention) -> None:
    """Add to a mask's sidecar what BIDS asks for, and write the table of its labels.

    Args:
        mask: The mask, which is written.
        record: Its manifest.
        convention: How its labels are numbered.
    """
    sidecar = mask.with_name(f"{stem_of(mask)}.json")
    write_json(sidecar, {**_origin(record), **read_json(sidecar)})
    rows = [f"{value}\t{tissue.split(' (')[0]}\t{_short(tissue)}" for value, tissue in convention.tissues.items()]
    write_text(mask.with_name(f"{stem_of(mask)}.tsv"), "\n".join(["index\tname\tabbreviation", *rows]) + "\n")


def probability_files(mask: Path, layout: Layout = "folders") -> tuple[Path, ...]:
    """Where the probabilities beside a mask lie: one 4-D file, or one for each region in BIDS."""
    stem, suffix = stem_of(mask), mask.name.removeprefix(stem_of(mask))
    if layout == "folders":
        return (mask.with_name(f"{stem}_probabilities{suffix}"),)
    space = stem.removesuffix("_desc-tumour_dseg")
    return tuple(mask.with_name(f"{space}_label-{region}_probseg{suffix}") for region in REGIONS)


def check_probability_files(mask: Path, layout: Layout = "folders") -> None:
    """Refuse to write over what is not ours.

    Raises:
        SettingError: There is such a file.
    """
    for path in probability_files(mask, layout):
        about = path.with_name(f"{stem_of(path)}.json")
        if path.exists() and not is_own_probabilities(path):
            raise SettingError(f"{path} exists and was not written by --probabilities: move it, or choose another -o.")
        if about.exists() and not path.exists() and '"Values"' not in about.read_text("utf-8", errors="replace"):
            raise SettingError(
                f"{about} exists, and --probabilities would write over it: move it, or choose another -o."
            )


def write_region_probabilities(
    mask: Path, found: Segmentation, layout: Layout = "folders", record: Mapping[str, Any] | None = None
) -> tuple[Path, ...]:
    """Write the probabilities of WT, TC and ET in the grid of the mask.

    Args:
        mask: The mask they stand beside.
        found: What was found.
        layout: One 4-D file with the regions as channels, or a 3-D file for each.
        record: Manifest of the mask, for BIDS.
    """
    paths = probability_files(mask, layout)
    meaning = "probability that a voxel belongs to the region; ET within TC within WT"
    if layout == "folders":
        channels = {str(channel): str(region) for channel, region in enumerate(REGIONS)}
        sidecar = {"Channels": channels, "Values": meaning}
        write_probabilities(paths[0], np.moveaxis(found.probabilities, 0, -1), like=found.like, sidecar=sidecar)
        return paths
    for path, region, probabilities in zip(paths, REGIONS, found.probabilities, strict=True):
        about = {**_origin(record or {}), "Label": str(region), "Values": meaning}
        write_probabilities(path, probabilities, like=found.like, sidecar=about)
    return paths


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """The image whose grid a file has, and all it was made from, as addresses."""
    places = {sequence: Path(taken["file"]).as_uri() for sequence, taken in record["inputs"].items()}
    grid = record["raw"]["native"] if "raw" in record else next(iter(places))
    return {"SpatialReference": places[grid], "Sources": [*places.values()], "Manual": False}


def _makers(description: Mapping[str, Any]) -> list[str]:
    """Names of the programs that made a BIDS data set."""
    return [str(made.get("Name")) for made in description.get("GeneratedBy", ())]


def _short(tissue: str) -> str:
    match = re.search(r"\((\w+)\)$", tissue)
    return match[1] if match else "n/a"
