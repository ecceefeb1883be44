"""Folders of images whose channels have numbers in place of names: MSD (4-D files) and nnU-Net (CASE_0000.nii.gz)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from mindgap.data.case import CaseFiles, Source
from mindgap.data.folders import lost_links, nifti_files, reason_of, refuse_lost
from mindgap.data.nifti import stem_of
from mindgap.errors import InputError
from mindgap.files import read_json
from mindgap.sequences import Sequence, sequence_from_alias

MSD_CHANNELS = (Sequence.FLAIR, Sequence.T1, Sequence.T1CE, Sequence.T2)


def channel_folder(root: Path) -> Path | None:
    """Where images lie whose channels are numbered (nnU-Net, MSD): imagesTs, or the folder itself."""
    if (root / "imagesTs").is_dir():
        return root / "imagesTs"
    try:
        files = [*nifti_files(root), *lost_links(root)]
    except PermissionError:
        files = []
    numbered = bool(files) and all(re.fullmatch(r".+_\d{4}", stem_of(path)) for path in files)
    return root if numbered or root.name in ("imagesTs", "imagesTr") else None


def read_channels(
    root: Path, folder: Path, *, label: bool
) -> tuple[Literal["msd", "nnunet"], dict[str, CaseFiles], dict[str, str]]:
    """The cases of such a folder.

    Args:
        root: The data set, with labelsTr and dataset.json.
        folder: That of the images, as :func:`channel_folder` finds it.
        label: Whether labels are wanted.

    Returns:
        The layout, the cases by name, and name -> reason of those that cannot be used.

    Raises:
        InputError: Nothing says which channel is which sequence.
    """
    lost = [*lost_links(folder), *(lost_links(root / "labelsTr") if label else ())]
    images = sorted((*nifti_files(folder), *lost_links(folder)))
    references = {stem_of(path): path for path in nifti_files(root / "labelsTr")}
    names = _channel_names(folder.parent) or _channel_names(folder)
    split = [re.fullmatch(r"(.+)_(\d{4})", stem_of(path)) for path in images]
    if not any(split):
        channels = names or MSD_CHANNELS
        cases = {
            stem_of(path): CaseFiles(
                stem_of(path),
                {sequence: Source(path, channel) for channel, sequence in enumerate(channels)},
                _source(references.get(stem_of(path))),
            )
            for path in images
        }
        rejected = _reject_lost(cases, lost)
        return "msd", cases, rejected
    if names is None or not all(split):
        raise InputError(
            case=str(root),
            expected="CASE_0000.nii.gz, ... throughout, and channel_names in dataset.json",
            found="neither or only one of these; the order of the channels differs between data sets",
            mend="add dataset.json, or list the files in a manifest: case,t1,t2,t1ce,flair,label",
        )
    found: dict[str, dict[Sequence, Source]] = {}
    rejected = {}
    for match, path in zip(split, images, strict=True):
        if match is None:
            continue
        if int(match[2]) < len(names):
            found.setdefault(match[1], {})[names[int(match[2])]] = Source(path)
        else:
            rejected[match[1]] = f"{path.name} is a channel that dataset.json does not name"
    cases = {
        case: CaseFiles(case, sources, _source(references.get(case)))
        for case, sources in found.items()
        if case not in rejected
    }
    rejected |= _reject_lost(cases, lost)
    return "nnunet", cases, rejected


def _reject_lost(cases: dict[str, CaseFiles], links: list[Path]) -> dict[str, str]:
    """Take the cases out that have links to nothing, CASE.nii.gz or CASE_0000.nii.gz; gives the reasons."""
    rejected = {}
    for path in links:
        stem = stem_of(path)
        case_id = stem if stem in cases else stem.rpartition("_")[0]
        try:
            refuse_lost(case_id, [path])
        except InputError as error:
            if cases.pop(case_id, None) is not None:
                rejected[case_id] = reason_of(error)
    return rejected


def _channel_names(root: Path) -> tuple[Sequence, ...] | None:
    """The order of the channels by dataset.json ("modality" in MSD, "channel_names" in nnU-Net)."""
    if not (root / "dataset.json").is_file():
        return None
    settings = read_json(root / "dataset.json")
    names = settings.get("channel_names", settings.get("modality")) if isinstance(settings, dict) else None
    if not isinstance(names, dict):
        return None
    ordered = [str(names.get(str(index), "")) for index in range(len(names))]
    sequences = [sequence_from_alias(name) for name in ordered]
    known = [sequence for sequence in sequences if sequence is not None]
    if len(known) != len(names) or len(set(known)) != len(known):
        raise InputError(
            case=str(root / "dataset.json"),
            expected="channels named T1, T1ce, T2, FLAIR (any alias, once each)",
            found=", ".join(ordered),
            mend="correct dataset.json, or list the files in a manifest",
        )
    return tuple(known)


def _source(path: Path | None) -> Source | None:
    return None if path is None else Source(path)
