"""mindgap segment: a mask from the sequences at hand, of one patient or of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mindgap.cli.dicom_input import DicomCase, DicomFlags, open_dicom, refuse_flags, write_dicom_seg
from mindgap.cli.raw_input import RawFlags
from mindgap.cli.terminal import parse, say


@dataclass(frozen=True)
class Segment:
    """Segment a patient or a cohort: skull-stripped, co-registered images in, a mask in the same grid out.

    Give a folder, whose files are recognised by name (t1, t1n, t1ce, t1c, t1gd, t2, t2w, flair, t2f, ...), or name the
    files. A folder of DICOM series, or a .zip of one, is taken apart by its headers, shown, and converted. Files of
    sequences the model does not use are not opened. The mask has the shape, affine and orientation of the input; a
    sidecar .json says what its numbers mean, a .manifest.json from which files and by which network it was made.

    A folder without images of its own, or a CSV table (case,t1,t2,t1ce,flair), is a cohort: its masks go into
    OUT/CASE/CASE_seg.nii.gz, with status.jsonl, summary.csv and overlays.png. Cases that fail are listed, the rest goes
    on.

    Attributes:
        case: Folder of the patient (NIfTI files, or DICOM series; a .zip too), or of a cohort, or a CSV table of one.
        model: Run folder, model folder, or a network that comes with mindgap (`mindgap models`); by default the one in
            the box, which takes any of the four sequences.
        out: The mask, .nii.gz or .nii; of a cohort, the folder of the masks.
        t1: T1 image.
        t1ce: Contrast-enhanced T1 image.
        t2: T2 image.
        flair: FLAIR image.
        labels: Label convention of the mask: brats2017 (1 NCR, 2 ED, 4 ET), brats2023 (1 NCR, 2 ED, 3 ET), msd, nnunet,
            brats-ped, brats2024-postop.
        coverage: Half-overlapping tiles as in the paper's base, or the whole brain in one pass (faster); auto takes the
            latter where the model is meant for it or `mindgap export` found it as good, and memory suffices.
        engine: What computes: torch, or openvino (faster on a CPU); auto takes what `mindgap doctor` shows.
        tta: Average over the eight mirror images of the brain (eight times the work).
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16, or int8 (openvino, after `mindgap export`).
        force: Accept images whose affines disagree, or a registration that is not plausible.
        resume: Go on with a cohort: only what is not done, or whose mask is damaged, is segmented.
        shard: Share of a cohort, such as 2/4; all four may run at once, into the same folder.
        entropy: Where to write a map of how unsure the network is, in bits per voxel (0 to 2), of one patient.
        probabilities: Also write the probabilities of WT, TC and ET (float32): beside seg.nii.gz, a 4-D
            seg_probabilities.nii.gz whose .json names the channels; in BIDS a label-ET_probseg for each region.
        picture: Where to draw the mask of one patient (.png): three planes through the tumour, on the images it was
            found in. A cohort has its contact sheet without being asked.
        layout: folders: OUT/CASE/CASE_seg.nii.gz. bids: OUT is a BIDS derivative data set, of a cohort or of one case.
        dicom: What only DICOM input takes.
        raw: What only raw scans take.
    """

    case: Annotated[Path | None, tyro.conf.Positional] = None
    model: Path | None = None
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("seg.nii.gz")
    t1: Path | None = None
    t1ce: Path | None = None
    t2: Path | None = None
    flair: Path | None = None
    labels: str = "brats2017"
    coverage: Literal["auto", "tiles", "whole"] = "auto"
    engine: Literal["auto", "torch", "openvino"] = "auto"
    tta: bool = False
    device: str = "auto"
    precision: str = "auto"
    force: bool = False
    resume: bool = False
    shard: str | None = None
    entropy: Path | None = None
    probabilities: bool = False
    picture: Path | None = None
    layout: Literal["folders", "bids"] = "folders"
    dicom: Annotated[DicomFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=DicomFlags)
    raw: Annotated[RawFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=RawFlags)


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Segment, words, verb="segment")
    from mindgap.errors import SettingError
    from mindgap.processor import keep_freed_memory

    settings = dataclasses.replace(settings, model=_model_of(settings))
    raw = settings.raw.options()
    keep_freed_memory()
    from mindgap.cli.confidence import check_entropy_path, print_found, write_entropy
    from mindgap.cli.picture import check_picture_path, write_picture
    from mindgap.cli.segment_cohort import is_for_cohort, run_cohort
    from mindgap.data.dicom import holds_dicom

    dicom = settings.case is not None and holds_dicom(settings.case)
    if settings.layout == "bids" and (dicom or settings.case is None):
        raise SettingError("--layout bids takes a folder of NIfTI files or a table: it names masks by their case.")
    if not dicom and is_for_cohort(settings):
        refuse_flags(settings.dicom)
        return run_cohort(settings, raw)
    from mindgap.api import segment

    assert settings.model is not None
    check_entropy_path(settings.entropy, settings.out, probabilities=settings.probabilities)
    check_picture_path(settings.picture)
    with _open_case(settings, dicom=dicom) as case:
        found = segment(
            case.files,
            settings.model,
            settings.out,
            convention=settings.labels,
            device=settings.device,
            precision=settings.precision,
            coverage=settings.coverage,
            engine=settings.engine,
            tta=settings.tta,
            force=settings.force,
            raw=raw,
            probabilities=settings.probabilities,
            say=say,
        )
        print_found(found)
        if settings.entropy is not None:
            write_entropy(settings.entropy, found)
        if settings.picture is not None:
            write_picture(settings.picture, found, case.files, settings.model.resolve().name)
        say(f"wrote {settings.out} (labels {settings.labels}; research use only)")
        if settings.dicom.dicom_seg is not None:  # last: where it cannot be written, the mask is there all the same
            write_dicom_seg(settings.dicom.dicom_seg, found, case)
    return 0


def _model_of(settings: Segment) -> Path:
    """The folder of the model, said where the user named none."""
    from mindgap.inference.shipped import model_folder, shipped

    folder = model_folder(settings.model)
    if settings.model is None:
        network = shipped()[folder.name]
        say(
            f"model  {folder.name}, the network in the box (sha256 {network.sha256[:12]}; mindgap models {folder.name})"
        )
    return folder


def _open_case(settings: Segment, *, dicom: bool) -> AbstractContextManager[DicomCase]:
    """The patient: a folder of files or of DICOM series, or files by name.

    Raises:
        SettingError: Both are given, or neither.
    """
    from mindgap.cli.named_files import check_one_way, find_case, named_files

    named = named_files(t1=settings.t1, t1ce=settings.t1ce, t2=settings.t2, flair=settings.flair)
    check_one_way(settings.case, named)
    if settings.case is not None and dicom:
        assert settings.model is not None
        return open_dicom(settings.case, settings.dicom, settings.model, raw=settings.raw.raw)
    refuse_flags(settings.dicom)
    return nullcontext(DicomCase(find_case(settings.case, named), {}))
