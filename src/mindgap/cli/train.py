"""mindgap train: train a teacher, a baseline or a student."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindgap.cli.terminal import ProgressLine, parse, say

_METHODS_TEXT = """usage: mindgap train METHOD --data STORE --out RUN [--preset small|quick|paper|box] [options]

methods
  teacher    encoders per sequence, latents drawn to an anchor (--anchor mixture|k|normal|none), a VNet on all of them
  unimodal   a VNet on --subset alone, no teacher: the baseline
  pmkl, kdnet, protokd
             a VNet on --subset that learns from the labels and, each in its way, from a frozen --teacher RUN
  smunet     two paths co-trained, one on everything, one on --subset (--teacher: trained with --backbone smunet)
  anysubset  one network for all fifteen subsets, from aligned latents
  dropout    one VNet for all fifteen subsets, trained on random ones; dynunet the same with MONAI's DynUNet
  compact    one small U-Net for all fifteen subsets, from fused latents: the network in the box

presets (every number can be overridden by a flag)
  small      width 16, 2,500 steps of two 64^3 crops, for data at 2 mm: about 20 minutes on two cores
  quick      width 8, 400 steps of two 48^3 crops: minutes on two cores
  paper      50,000 steps of four 80^3 crops, Adam, poly 0.9, for data at 1 mm
  box        5,000 steps of two 48^3 crops, wide augmentation, for data at 2 mm (docs/model.md)

mindgap train METHOD --help   lists all flags          --dry-run   checks and prints the settings, and stops
--resume   goes on from the newest whole checkpoint    SIGTERM     saves, then stops
--slurm    queues the training as a job (--gpus 1 --time-minutes 240 ...; docs/cluster.md)

several processes on one machine: torchrun --nproc-per-node 2 -m mindgap train ...
"""


@dataclass(frozen=True)
class Run:
    """Where a run is written.

    Attributes:
        out: Run folder: settings, terms of every step, checkpoints, the network.
        resume: Go on from the newest whole checkpoint in --out (starts anew where there is none).
        dry_run: Print the resolved settings and stop.
        slurm: Queue the training on a SLURM cluster instead of running it here.
    """

    out: Path
    resume: bool = False
    dry_run: bool = False
    slurm: bool = False


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    if not words or words[0] in ("-h", "--help"):
        say(_METHODS_TEXT.rstrip())
        return 0
    from mindgap.processor import keep_freed_memory

    keep_freed_memory()
    experiment, place, resources = parse_experiment(list(words))
    from mindgap.api import silent, train
    from mindgap.experiment import to_plain

    speaks = os.environ.get("RANK", "0") == "0"  # torchrun numbers its processes
    check_places(experiment, place.out, resume=place.resume or place.slurm)
    if speaks:
        print_settings(to_plain(experiment))
    if place.dry_run or place.slurm:  # the machine that queues may have no GPU
        check(experiment, place.out, resume=place.resume or place.slurm, elsewhere=place.slurm)
        if place.slurm and not place.dry_run:
            queue(words, place.out, resources)
        return 0
    progress = ProgressLine(f"training {words[0]}") if speaks else silent
    result = train(experiment, place.out, resume=place.resume, progress=progress, say=say)
    if speaks:
        say(f"{result.folder}: {result.parameters:,} parameters")
    return 0


def parse_experiment(words: list[str]) -> tuple[Any, Run, Any]:
    """From words to settings: the method first, a preset as default, flags on top; and what a job may ask for.

    Raises:
        SettingError: The method or the preset is unknown.
    """
    import tyro

    from mindgap.errors import SettingError
    from mindgap.experiment import PRESETS
    from mindgap.launch import Resources
    from mindgap.methods import METHODS

    name = words[0]
    if name not in METHODS:
        raise SettingError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}.")
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", default="small")
    found, rest = finder.parse_known_args(words[1:])
    if found.preset not in PRESETS:
        raise SettingError(f"there is no preset {found.preset!r}: choose one of {', '.join(PRESETS)}.")
    default = PRESETS[found.preset](Path("STORE"), METHODS[name]())
    recipe = METHODS[name]
    fields: list[Any] = [("data", Path)]
    hints = typing.get_type_hints(type(default))
    for field in dataclasses.fields(default):
        if field.name not in ("data", "method"):
            value = getattr(default, field.name)
            fields.append((field.name, hints[field.name], dataclasses.field(default=value)))
    fields.insert(1, ("run", tyro.conf.OmitArgPrefixes[Run]))
    fields.append(("method", recipe, dataclasses.field(default=default.method)))
    fields.append(("resources", Resources, dataclasses.field(default=Resources())))
    flags = dataclasses.make_dataclass("Train", fields, frozen=True)
    described = (type(default).__doc__ or "").partition("Attributes:")[2]
    presets = f"Defaults are those of --preset {found.preset}; the presets are {', '.join(PRESETS)}."
    flags.__doc__ = f"{(recipe.__doc__ or '').splitlines()[0]}\n\n{presets}\n\nAttributes:{described}"
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.EnumChoicesFromValues)
    parsed = parse(flags, rest, verb=f"train {name}", config=config)
    chosen: dict[str, Any] = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(default)}
    return type(default)(**chosen), parsed.run, parsed.resources


def check_places(experiment: Any, out: Path, *, resume: bool) -> None:
    """Refuse what a glance at the disk tells, before settings are printed: no store, no such network, a run in the way.

    Raises:
        MindgapError: It is one of these.
    """
    from mindgap.data.store import open_store
    from mindgap.experiment import start_folder
    from mindgap.networks.card import read_card
    from mindgap.training.checkpoint import refuse_existing

    if not resume:
        refuse_existing(out)
    open_store(experiment.data)
    for network in (experiment.method.teacher_path(), start_folder(experiment)):
        if network is not None:
            read_card(network)


def queue(words: Sequence[str], out: Path, resources: Any) -> None:
    """Queue this very command line as a job that goes on from its checkpoints, and say how to watch it."""
    from mindgap.launch import Job, launch

    command = ("train", *words, "--no-slurm", "--resume")
    (job,) = launch([Job(out.name, (command,))], out / "jobs", resources)
    say(f"job {job.job_id} is queued: {resources.time_minutes} minutes at a time, from checkpoint to checkpoint")
    say(f"watch   squeue --job {job.job_id}    tail -f {job.stderr}")
    say(f"cancel  scancel {job.job_id}")


def check(experiment: Any, out: Path, *, resume: bool, elsewhere: bool) -> None:
    """Build everything the training would build, so that it refuses what cannot work; train nothing."""
    from mindgap.sequences import format_subset
    from mindgap.session import open_session

    session = open_session(experiment, out, resume=resume, elsewhere=elsewhere, say=say)
    count = sum(p.numel() for p in session.training.segmenter.parameters())
    seen = format_subset(session.method.subset)
    say(f"device {session.processor.device}, precision {session.precision}, sequences {seen}")
    say(f"the settings are sound: {count:,} parameters. Nothing was trained here.")


def print_settings(value: dict[str, Any], indent: str = "") -> None:
    """Print the resolved tree of settings."""
    for name, item in value.items():
        if isinstance(item, dict):
            say(f"{indent}{name}")
            print_settings(item, indent + "  ")
        else:
            say(f"{indent}{name:<28} {item}")
