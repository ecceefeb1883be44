"""What mindgap does, as functions: prepare, train, segment (one case or many), evaluate, report, cite.

Training stands in :mod:`mindgap.session`, which needs no NIfTI, so that it runs on a bare machine; it is imported when
it is first asked for, since who segments trains nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mindgap.citations import BIBTEX, bibtex
from mindgap.data.building import prepare_cohort
from mindgap.data.case import CaseFiles
from mindgap.data.codes import CodeKind
from mindgap.data.cohort import Cohort, discover, discover_labelled
from mindgap.data.history import cases_of
from mindgap.data.prepared import Preparation
from mindgap.data.raw import RawOptions
from mindgap.data.splits import find_split
from mindgap.data.store import Store
from mindgap.errors import Interrupted, SettingError
from mindgap.files import PathLike, read_json, write_text
from mindgap.inference.cohort import Outcome, segment_cases
from mindgap.inference.evaluate import evaluate, evaluation_folder
from mindgap.inference.exported import Exported
from mindgap.inference.layout import Layout, check_probability_files, mask_of, write_region_probabilities
from mindgap.inference.panel import Panel
from mindgap.inference.predictor import Coverage, Predictor, Segmentation
from mindgap.inference.raw import find_raw, read_raw
from mindgap.inference.record import check_mask_place, find_in, read_for, write_mask
from mindgap.inference.selection import answering
from mindgap.inference.shipped import model_folder
from mindgap.inference.status import CaseStatus, Shard, read_status, write_summary
from mindgap.progress import Progress, Say, mute, silent
from mindgap.regions import find_convention
from mindgap.runfiles import MANIFEST, OVERLAYS, REPORT
from mindgap.sequences import format_subset, parse_subset

if TYPE_CHECKING:
    from mindgap.report.sheet import SheetCase
    from mindgap.session import TrainingResult, train

__all__ = [
    "Interrupted",
    "Progress",
    "TrainingResult",
    "cite",
    "evaluate",
    "evaluation_folder",
    "export",
    "prepare",
    "report",
    "segment",
    "segment_cohort",
    "silent",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what training takes when it is first asked for."""
    if name in ("TrainingResult", "train"):
        return getattr(importlib.import_module("mindgap.session"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def prepare(
    data: PathLike,
    out: PathLike,
    preparation: Preparation,
    *,
    split: str = "auto",
    also: Mapping[Path, str | None] = MappingProxyType({}),
    labels: str | None = None,
    codes: CodeKind = "uint8",
    seed: int = 0,
    workers: int = 2,
    progress: Progress = silent,
) -> Store:
    """Prepare a cohort for training.

    Args:
        data: BraTS, MSD or other supported tree, or a CSV manifest.
        out: Folder of the store.
        preparation: Spacing and normalisation.
        split: "protokd", a folder with train, validation and test lists, fractions such as 0.7/0.1/0.2, or
            "auto": the lists in DATA/splits where there are any, else 0.7/0.1/0.2.
        also: Other cohorts whose cases join those that train, such as phantoms, with their label convention where their
            layout does not tell, else None; they do not choose and do not judge.
        labels: Label convention of ``data``, where the layout does not tell.
        codes: How intensities are stored.
        seed: Of a split by fractions.
        workers: Cases at the same time.
        progress: Called after each case.

    Raises:
        MindgapError: Nothing usable was found, or split and data do not fit.
    """
    data, out = Path(data), Path(out)
    cohort = discover(data, labels=labels)
    case_ids = [files.case_id for files in cohort.cases]
    if split == "auto":
        split = str(data / "splits") if (data / "splits").is_dir() else "0.7/0.1/0.2"
    chosen = find_split(split, case_ids, seed=seed)
    more = [discover(Path(folder), labels=convention) for folder, convention in also.items()]
    return prepare_cohort(cohort, out, preparation, chosen, also=more, codes=codes, workers=workers, progress=progress)


def segment(
    files: CaseFiles,
    model: Path,
    out: Path,
    *,
    convention: str = "brats2017",
    device: str = "auto",
    precision: str = "auto",
    coverage: Coverage = "auto",
    engine: str = "auto",
    tta: bool = False,
    force: bool = False,
    raw: RawOptions | None = None,
    probabilities: bool = False,
    say: Say = mute,
) -> Segmentation:
    """Segment one case and write the mask, in the case's own grid, with its sidecar and its manifest.

    Args:
        files: The case, any set of sequences that contains the model's.
        model: Run folder, or model folder of one network or several.
        out: The mask, ending in .nii.gz or .nii.
        convention: How labels are numbered in the file.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or int8.
        coverage: Half-overlapping tiles, the whole brain in one pass, or "auto": the latter where an export found it
            as good and memory suffices.
        engine: auto, torch or openvino.
        tta: Average over the eight mirror images of the brain.
        force: Accept images whose affines disagree (never ones whose shapes do), or a doubtful registration.
        raw: How raw scans are registered and stripped; None for co-registered, stripped images.
        probabilities: Also write the probabilities of WT, TC and ET beside the mask.
        say: Takes lines worth reading (which file was taken for which sequence).

    Raises:
        InputError: The case cannot be used, or lacks a sequence the model needs.
    """
    check_mask_place(out)
    labels = find_convention(convention)
    who = answering(model, files.case_id, files.sequences, say)
    predictor = Predictor.load(
        who.folder, device=device, precision=precision, coverage=coverage, engine=engine, tta=tta
    )
    used = predictor.serve(files.case_id, files.sequences)
    for sequence, source in files.images.items():
        place = files.origins[sequence].name if sequence in files.origins else source.path
        say(f"{sequence!s:>6}  {place}" + ("" if sequence in used else "  (not used by this model)"))
    if probabilities:
        check_probability_files(out)
    if raw is None:
        found = find_in(predictor, read_for(predictor, files, force=force), who.confidence)
    else:
        found = find_raw(predictor, read_raw(predictor, files, raw, force=force, say=say), who.confidence)
    record = write_mask(
        out,
        found,
        predictor,
        convention=labels,
        force=force,
        choice=who.choice,
        brain_mask=None if raw is None else raw.brain.mask,
    )
    for line in record["warnings"]:
        say(f"beware: {line}")
    if probabilities:
        say(f"wrote {write_region_probabilities(out, found.segmentation)[0]}")
    return found.segmentation


def segment_cohort(
    data: PathLike,
    model: PathLike | None,
    out: PathLike,
    *,
    convention: str = "brats2017",
    shard: str = "1/1",
    resume: bool = False,
    device: str = "auto",
    precision: str = "auto",
    coverage: Coverage = "auto",
    engine: str = "auto",
    tta: bool = False,
    force: bool = False,
    layout: Layout = "folders",
    probabilities: bool = False,
    raw: RawOptions | None = None,
    progress: Progress = silent,
    drawing: Progress = silent,
    say: Say = mute,
) -> Outcome:
    """Segment many cases, each with the network for what it has; cases that fail are listed, and the rest goes on.

    Writes ``out/CASE/CASE_seg.nii.gz`` with sidecar and manifest, a line per case to ``status.jsonl``, and, when the
    last case has ended, ``summary.csv`` and the contact sheet ``overlays.png``.

    Args:
        data: A tree of cases or a CSV manifest; labels are neither needed nor opened.
        model: Run folder or model folder, or the name of a network that comes with mindgap; None for that in the box.
        out: Folder of the masks.
        convention: How labels are numbered in the masks.
        shard: "2/4" takes the second of four shares; all may run at once, into the same folder.
        resume: Go on in a folder that holds results; only what is not done, or whose mask is damaged, is segmented.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or int8.
        coverage: As in :func:`segment`.
        engine: As in :func:`segment`.
        tta: As in :func:`segment`.
        force: Accept images whose affines disagree.
        layout: "folders", or "bids" for a BIDS derivative data set.
        probabilities: As in :func:`segment`; in BIDS a file for each region.
        raw: As in :func:`segment`; a brain mask, which is one patient's, is refused.
        progress: Called when a case has ended.
        drawing: Called when a case has been drawn.
        say: Takes lines worth reading.

    Returns:
        What was done, skipped and failed in this share.

    Raises:
        SettingError: ``out`` holds other results.
        MindgapError: No case is found, or the disk is full.
    """
    data, model, out = Path(data), model_folder(model), Path(out)
    share, labels = Shard.parse(shard), find_convention(convention)
    if raw is not None and raw.brain.mask is not None:
        raise SettingError(
            "a brain mask is one patient's: find the brains of a cohort by hd-bet, or strip them before."
        )
    if out.resolve() == data.resolve():
        raise SettingError(f"{out} is the folder of the images: choose another one for the masks, such as {out}/masks.")
    cohort = discover(data, label=False)
    load = partial(Predictor.load, device=device, precision=precision, coverage=coverage, engine=engine, tta=tta)
    given = {files.sequences for files in cohort.cases}
    outcome = segment_cases(
        Panel.open(model, given, load, coverage=coverage, tta=tta, say=say),
        cohort,
        out,
        convention=labels,
        shard=share,
        resume=resume,
        force=force,
        layout=layout,
        probabilities=probabilities,
        raw=raw,
        progress=progress,
    )
    say(f"wrote {write_summary(out)}")
    status = read_status(out)
    waiting = {files.case_id for files in cohort.cases} - set(status)
    if waiting:
        say(f"{len(waiting)} cases of other shards have not ended; the last shard to end draws {OVERLAYS}")
        return outcome
    from mindgap.report.sheet import write_sheets  # matplotlib: not for who segments one patient

    for page in write_sheets(_sheet_cases(cohort, status, out, layout), out / OVERLAYS, labels, progress=drawing):
        say(f"wrote {page}")
    return outcome


def _sheet_cases(cohort: Cohort, status: Mapping[str, CaseStatus], out: Path, layout: Layout) -> list[SheetCase]:
    """The cases that have a mask, with the images the network saw."""
    from mindgap.report.sheet import SheetCase

    sheet = []
    for files in cohort.cases:
        ended = status[files.case_id]
        if ended.status != "done":
            continue
        subset = parse_subset(ended.subset)
        shown = parse_subset(ended.native) if ended.native else subset  # of raw scans one lies on the grid of the mask
        images = {str(s): files.images[s] for s in shown if s in files.images}
        mask = mask_of(out, files.case_id, ended.grid, layout)
        sheet.append(SheetCase(files.case_id, mask, images, format_subset(subset), bool(ended.review)))
    return sheet


def export(
    model: Path,
    data: Path,
    *,
    int8: bool = True,
    labels: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    say: Say = mute,
) -> Exported:
    """Make a trained network faster where that costs nothing, measured on its validation cases.

    Writes ``exported.json`` and, if int8 passes, ``int8/`` into the model folder, for ``mindgap segment``.

    Args:
        model: Run folder; its manifest knows which cases it was trained and validated on.
        data: Cohort with labels that these cases are in.
        int8: Whether to make an int8 network, for processors without native bf16.
        labels: Label convention, where the layout does not tell.
        device: auto, cpu or cuda.
        progress: Called after each subset of each validation case.
        say: Takes lines worth reading.

    Raises:
        MindgapError: No validation case is there, or a package is missing.
    """
    from mindgap.inference.export import GateCases  # these load torch: not for who segments
    from mindgap.inference.export import export as export_network

    cohort, convention = discover_labelled(data, labels)
    parts = cases_of(model)
    train, validation = (
        [files for files in cohort.cases if files.case_id in set(parts[part])] for part in ("train", "validation")
    )
    if not validation:
        raise SettingError(
            f"none of the {len(parts['validation'])} validation cases of {model} is in {cohort.root}: name the data "
            "the run was prepared from."
        )
    return export_network(
        model, GateCases(train, validation, convention), device=device, int8=int8, progress=progress, say=say
    )


def report(runs: Sequence[PathLike], out: PathLike | None = None, *, title: str = "mindgap report") -> Path:
    """Write one self-contained HTML page about evaluated runs.

    Args:
        runs: Run folders; their scores stand side by side, and every pair that saw the same cases is compared.
        out: The page; ``report.html`` in the first run by default.
        title: Heading.

    Raises:
        MindgapError: A run was not evaluated, or there is a file of another kind where the page would be.
    """
    folders = [Path(run) for run in runs]
    page = folders[0] / REPORT if out is None else Path(out)
    if page.is_file() and "mindgap" not in page.read_text(encoding="utf-8", errors="replace"):
        raise SettingError(f"{page} exists and is no report of ours: name another file with -o, or remove it.")
    from mindgap.report.collect import collect
    from mindgap.report.page import build_page

    write_text(page, build_page(title=title, **collect(folders)))
    return page


def cite(run: PathLike | None = None) -> str:
    """BibTeX of what a run used, or of everything."""
    keys: list[str] = list(BIBTEX) if run is None else read_json(Path(run) / MANIFEST)["citations"]
    return bibtex(keys)
