"""mindgap study: many trainings, and the paper's tables from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mindgap.cli.study_tables import print_box, print_runs, show_table
from mindgap.cli.terminal import ProgressLine, parse, say
from mindgap.launch import Resources

if TYPE_CHECKING:
    from mindgap.study.grid import Choice, Run
    from mindgap.study.scale import Place, Scale


_PROGRESS = "study, estimated seconds of work"


@dataclass(frozen=True)
class Study:
    """Train what a table or figure of the paper needs, and make it beside the paper's printed numbers.

    Runs share teachers, go on after a kill, are not repeated once finished, and one that fails is listed while the rest
    goes on. Tables lie in OUT/tables as Markdown, CSV and HTML; cells without a run say "not run".

    - table1     students by method, anchor and sequence
    - table2     P_k with another k
    - table3     PMKL on every subset
    - table4     teachers by anchor
    - table5     unimodal networks shown every sequence
    - anysubset  one network for all
    - figure1    latents by anchor (t-SNE)
    - figure2    masks by anchor
    - figure3    latent maps by anchor and sequence
    - box        alone: the network that comes with mindgap (see below)

    The box is cross-validated over the training and validation cases of --data beside MONAI's DynUNet, put together in
    OUT/box and calibrated; --methods names what else was tried (docs/model.md).

    Attributes:
        presets: Which, such as table1 table4.
        out: Folder of the study.
        data: Cohort to use; at scale phantom one is made where none is named.
        scale: paper: 50,000 steps of four 80^3 crops at 1 mm, width 16. mini: your data at 2 mm, 48^3 crops, width 8,
            1,200 steps. phantom: synthetic patients at 2 mm, crops and width of mini, otherwise the quick preset, 400
            steps (teachers 600).
        methods: Students wanted (kdnet,pmkl,protokd,smunet, or dropout,anysubset,dynunet); all by default. For the box:
            trials (box,third,second,first,dynunet by default).
        anchors: Anchors wanted (none,normal,k,mixture); all by default. Where they are compared, none is always run.
        subsets: Sequences wanted, such as T1,T1ce; all by default.
        seeds: How many seeds.
        jobs: Trainings at the same time here; with --slurm, runs of one array (of the teachers, and of each teacher's
            students) at the same time. 0 here: one for each processor where networks are small and there is no GPU
            (two with a thread each get a fifth more done than one with two), else one.
        split: As `mindgap prepare` takes it; at scale paper and for the box, auto is protokd. A store that was made
            with another one is refused.
        device: auto, cpu or cuda.
        keep: Folder that keeps scores and settings of finished runs, without images, and the tables of all that is kept
            (of less, a table lies in OUT/tables). A run that stands there is not run again, on whichever machine,
            unless a student, a figure or table5 needs its network.
        dry_run: Print the runs, which of them are finished, and an estimate of what the others cost, and stop.
        tables_only: Make the tables from what is there, and figures with the networks that are here; run nothing.
        slurm: Queue the runs on a SLURM cluster (call again for the tables).
        resources: What each job asks of the cluster.
    """

    presets: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    data: Path | None = None
    scale: Literal["paper", "mini", "phantom"] = "phantom"
    methods: str = ""
    anchors: str = ""
    subsets: str = ""
    seeds: int = 1
    jobs: int = 0
    split: str = "auto"
    device: str = "auto"
    keep: Path | None = None
    dry_run: bool = False
    tables_only: bool = False
    slurm: bool = False
    resources: Annotated[Resources, tyro.conf.OmitArgPrefixes] = field(default_factory=Resources)


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Study, words, verb="study", config=(tyro.conf.OmitArgPrefixes,))
    from mindgap.errors import SettingError
    from mindgap.study.cohort import split_of
    from mindgap.study.execute import split_runs
    from mindgap.study.grid import Choice, runs_of, unused
    from mindgap.study.outputs import networks_needed
    from mindgap.study.scale import Place, find_scale, jobs_at_once

    if settings.jobs < 0:
        raise SettingError(f"--jobs {settings.jobs} would start nothing: name how many, or 0 to let mindgap choose.")
    if "box" in settings.presets:
        return run_box(settings)
    wanted = [tuple(filter(None, text.split(","))) for text in (settings.methods, settings.anchors, settings.subsets)]
    choice = Choice(wanted[0], wanted[1], wanted[2], settings.seeds)
    runs, scale = runs_of(settings.presets, choice), find_scale(settings.scale)
    for preset in dict.fromkeys(settings.presets):
        for kind, names in unused(preset, choice).items():
            say(f"--{kind} {','.join(names)} says nothing to {preset}")
    cohort, store = settings.data or settings.out / "cohort", settings.out / "store"
    place = Place(settings.out, cohort, store, settings.device, settings.keep)
    if settings.dry_run:
        if settings.data is not None and not settings.data.exists():
            say(f"{settings.data} does not exist: correct --data before the study is run")
        networks = networks_needed(settings.presets, place, choice)
        at_once = settings.jobs or jobs_at_once(scale, len(runs), device=settings.device)
        finished = split_runs(runs, scale, place, networks=networks)[0]
        print_runs(runs, scale, at_once=at_once, native_bf16=is_native(settings.device), finished=finished)
        say(f"split: {split_of(settings.split, scale, data=settings.data)}")
        return 0
    if settings.tables_only:
        write_tables(settings.presets, place, choice, scoring=False)
        return 0
    return run_study(settings, runs, scale, choice)


def run_study(settings: Study, runs: Sequence[Run], scale: Scale, choice: Choice) -> int:
    """Make the cohort, run or queue what is missing, and make the tables of what is there."""
    from mindgap.study.cohort import prepare_place
    from mindgap.study.execute import queue, run_here
    from mindgap.study.keep import keep_runs
    from mindgap.study.outputs import networks_needed
    from mindgap.study.scale import jobs_at_once

    place = prepare_place(
        settings.out, scale, data=settings.data, split=settings.split, device=settings.device, stage=ProgressLine
    )
    place = replace(place, keep=settings.keep)
    say_split(place)
    networks = networks_needed(settings.presets, place, choice)
    if settings.slurm:
        at_once = settings.jobs or len(runs)
        outcome = queue(runs, scale, place, settings.resources, at_once=at_once, networks=networks)
        if len(outcome.done) < len(runs):
            say(f"{len(outcome.done)} finished, {len(outcome.queued)} queued or running; call again for the tables")
            return 0
    else:
        progress = ProgressLine(_PROGRESS)
        at_once = settings.jobs or jobs_at_once(scale, len(runs), device=settings.device)
        outcome = run_here(runs, scale, place, at_once=at_once, progress=progress, say=say, networks=networks)
    write_tables(settings.presets, place, choice)
    keep_runs(runs, scale, place)  # with what the tables added
    for name, reason in outcome.failed.items():
        say(f"failed: {name}: {reason} (log: {place.run(name) / 'study.log'})")
    for name in outcome.skipped:
        say(f"not run, because the run it needs failed: {name}")
    return 1 if outcome.failed else 0


def run_box(settings: Study) -> int:
    """Cross-validate what --methods names, put the network in the box together, and print the table.

    Raises:
        SettingError: Another preset, no data, or a setting that says nothing to the box is named.
    """
    from mindgap.errors import SettingError
    from mindgap.study.box import build_box, is_here, prepare_folds, score_folds
    from mindgap.study.execute import run_here, split_runs
    from mindgap.study.keep import keep_runs
    from mindgap.study.scale import Place, jobs_at_once
    from mindgap.study.trials import BOX, choose_trials, runs_of, scale_of

    if settings.presets != ("box",) or settings.anchors or settings.subsets or settings.slurm or settings.seeds != 1:
        raise SettingError("the study box stands alone, and takes no --anchors, --subsets, --seeds or --slurm.")
    if settings.tables_only:
        write_box_tables(Place(settings.out, settings.out, settings.out / "folds", keep=settings.keep))
        return 0
    if settings.data is None:
        raise SettingError("the study box needs a cohort with labels: name it with --data.")
    trials = choose_trials(tuple(filter(None, settings.methods.split(","))))
    runs, scale = runs_of(trials), scale_of(trials)
    at_once = settings.jobs or jobs_at_once(scale, len(runs), device=settings.device)
    if settings.dry_run:
        place = Place(settings.out, settings.data, settings.out / "folds", keep=settings.keep)
        finished = split_runs(runs, scale, place)[0]
        print_runs(runs, scale, at_once=at_once, native_bf16=is_native(settings.device), finished=finished)
        return 0
    split = "protokd" if settings.split == "auto" else settings.split
    place = prepare_folds(settings.out, settings.data, trials, split=split, device=settings.device, stage=ProgressLine)
    place = replace(place, keep=settings.keep)
    failed = run_here(runs, scale, place, at_once=at_once, progress=ProgressLine(_PROGRESS), say=say).failed
    for trial in trials:
        if any(run.name in failed for run in trial.runs):
            continue
        score_folds(place, trial, progress=ProgressLine(f"scoring {trial.name}"))
        if trial.name == BOX and all(is_here(place, run) for run in trial.runs):
            say(f"wrote {build_box(place, trial, split=split, progress=ProgressLine('calibrating'))}")
    keep_runs(runs, scale, place)
    write_box_tables(place)
    for name, reason in failed.items():
        say(f"failed: {name}: {reason} (log: {place.run(name) / 'study.log'})")
    return 1 if failed else 0


def write_box_tables(place: Place) -> None:
    """Write what was tried, one table for every ``scores-NAME.csv`` that `mindgap evaluate -o` wrote, and the card."""
    from mindgap.evaluation.scores import read_scores
    from mindgap.files import write_text
    from mindgap.inference.shipped import describe
    from mindgap.networks.card import WEIGHTS
    from mindgap.study.card import write_card
    from mindgap.study.trial_tables import compare, odds_markdown, subsets_markdown, trials_markdown
    from mindgap.study.trials import BOX, TRIALS

    kept = place.keep or place.out
    rows = compare(place)
    print_box(rows)
    texts = {"box": trials_markdown(rows), "odds": odds_markdown(place, TRIALS[BOX])}
    for path in sorted(kept.glob("scores-*.csv")):
        texts[path.stem.removeprefix("scores-")] = subsets_markdown(read_scores(path))
    for name, text in texts.items():
        if text:
            write_text(kept / "tables" / f"{name}.md", text)
            say(f"wrote {kept / 'tables' / name}.md")
    if (place.out / BOX / WEIGHTS).is_file():
        say(f"wrote {write_card(describe(place.out / BOX), kept)}")


def write_tables(presets: Sequence[str], place: Place, choice: Choice, *, scoring: bool = True) -> None:
    """Write and print the tables of some presets."""
    from mindgap.study.outputs import make_output

    for preset in dict.fromkeys(presets):
        for path in make_output(preset, place, choice, say=say, show=show_table, scoring=scoring):
            say(f"wrote {path}")


def say_split(place: Place) -> None:
    """Say which cases train, choose and judge."""
    from mindgap.data.store import open_store

    store = open_store(place.store)
    counts = ", ".join(f"{len(store.part(name))} {name}" for name in ("train", "validation", "test"))
    say(f"split {store.split['name']}: {counts} cases")


def is_native(device: str) -> bool:
    """Whether this machine, or its GPU, computes in bf16."""
    from mindgap.processor import detect_processor

    return detect_processor(device).native_bf16
