"""Settings of a training run, frozen, and the functions that turn them into living objects; nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mindgap.data.augmentation import Augmentation, paper_augmentation, strong_augmentation, wide_augmentation
from mindgap.data.history import History, history_of, together
from mindgap.data.patients import of_same_patients
from mindgap.data.resident import Residence
from mindgap.data.store import Store
from mindgap.errors import SettingError
from mindgap.files import read_json
from mindgap.methods import METHODS
from mindgap.methods.base import AbstractMethod, AbstractRecipe, Parts
from mindgap.methods.compact import CompactRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.networks.card import TrainedNetwork, read_card
from mindgap.networks.ensemble import Ensemble
from mindgap.networks.weights import load_network
from mindgap.runfiles import MANIFEST
from mindgap.sequences import format_subset, parse_subset
from mindgap.training.loop import Schedule
from mindgap.training.optimisation import Optimisation


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what a training run does.

    Attributes:
        data: Folder of a prepared cohort (`mindgap prepare`).
        method: What is trained, with its own numbers.
        subset: Sequences the network sees, such as T1ce or T1+FLAIR; "all" is every sequence the data has.
        start: Run or model folder, or the name of a network that comes with the package, whose weights this one starts
            from: to go on with other settings, or to adapt a network to other cases.
        start_member: Which network of it, where it is an ensemble, counted from 1.
        start_share: Share of the weights it started from in those that are kept, 0 to below 1: a half keeps much of
            what the start could do beside what was learnt since.
        width: Channels of the backbone at full resolution.
        latent_channels: Channels of each sequence's latent.
        schedule: How long and how large.
        optimisation: How weights move.
        augmentation: How crops vary.
        validate_every: Steps between validations on the validation cases; the best network is kept.
        save_every: Steps between checkpoints.
        seed: Of the weights and of every draw.
        device: auto, cpu or cuda.
        precision: auto, fp32 or bf16; auto takes bf16 where the processor has it natively.
        residence: Where the prepared cases lie while training: device, host (memory), disk (mapped, read ahead), or
            auto, the first of these with room.
        compiled: Let torch.compile make kernels for the networks. It takes minutes first and was slower on two CPU
            cores (docs/performance.md).
    """

    data: Path
    method: AbstractRecipe = field(default_factory=TeacherRecipe)
    subset: str = "all"
    start: Path | None = None
    start_member: int = 1
    start_share: float = 0.0
    width: int = 16
    latent_channels: int = 4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=2500, batch=2, crop=64, foreground=0.33))
    optimisation: Optimisation = field(default_factory=lambda: cpu_optimisation())
    augmentation: Augmentation = field(default_factory=strong_augmentation)
    validate_every: int = 250
    save_every: int = 250
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    residence: Residence = "auto"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.latent_channels < 1:
            raise SettingError("width and latent_channels have to be at least 1.")
        if self.validate_every < 1 or self.save_every < 1:
            raise SettingError("validate_every and save_every have to be at least 1.")


def cpu_optimisation() -> Optimisation:
    """What trains well in few steps: AdamW, one cycle, clipped gradients, averages."""
    return Optimisation(
        optimiser="adamw", learning_rate=2e-3, weight_decay=1e-2, schedule="onecycle", clip=5.0, average=0.995
    )


def paper(data: Path, method: AbstractRecipe | None = None) -> Experiment:
    """The paper's settings as docs/methods.md reads them: 50,000 steps of four 80^3 crops at 1 mm, Adam, poly 0.9.

    We differ from ProtoKD's public code, whose optimiser, schedule and length these are: it validates every epoch of 50
    steps from epoch 250 on, ours every 1,000 steps from the start, so that the best of fewer states is kept.
    """
    return Experiment(
        data=data,
        method=method or TeacherRecipe(),
        schedule=Schedule(steps=50_000, batch=4, crop=80, log_every=10),
        optimisation=Optimisation(),
        augmentation=paper_augmentation(),
        validate_every=1000,
        save_every=500,
    )


def small(data: Path, method: AbstractRecipe | None = None) -> Experiment:
    """For data at 2 mm on a laptop: 2,500 steps of two 64^3 crops, about 20 minutes on two cores."""
    return Experiment(data=data, method=method or TeacherRecipe())


def quick(data: Path, method: AbstractRecipe | None = None) -> Experiment:
    """For a first look, and the demo: width 8, 400 steps of two 48^3 crops, minutes on two cores."""
    return Experiment(
        data=data,
        method=method or TeacherRecipe(),
        width=8,
        schedule=Schedule(steps=400, batch=2, crop=48, foreground=0.5),
        optimisation=dataclasses.replace(cpu_optimisation(), learning_rate=4e-3, average=0.98),
        augmentation=paper_augmentation(),
        validate_every=100,
        save_every=200,
    )


def box(data: Path, method: AbstractRecipe | None = None) -> Experiment:
    """For a small network that meets what it has not seen, from few cases at 2 mm: wide augmentation, averages."""
    return Experiment(
        data=data,
        method=method or CompactRecipe(),
        width=8,
        latent_channels=4,
        schedule=Schedule(steps=5000, batch=2, crop=48, foreground=0.6),
        optimisation=dataclasses.replace(cpu_optimisation(), learning_rate=4e-3, average=0.998),
        augmentation=wide_augmentation(),
        validate_every=1_000_000,
        save_every=250,
    )


PRESETS = {"small": small, "quick": quick, "paper": paper, "box": box}


def build_method(experiment: Experiment, store: Store) -> AbstractMethod:
    """Make the living method; every mismatch is refused here, before anything is trained.

    Raises:
        SettingError: Subset, method, teacher and data do not go together.
    """
    available = store.sequences
    subset = available if experiment.subset == "all" else parse_subset(experiment.subset)
    missing = [sequence for sequence in subset if sequence not in available]
    if missing:
        raise SettingError(
            f"the subset {format_subset(subset)} asks for {format_subset(missing)}, but the data in {store.folder} has "
            f"only {format_subset(available)}: choose a subset of these."
        )
    path = experiment.method.teacher_path()
    teacher = load_network(path) if path is not None else None
    if teacher is not None:
        _refuse_other_preparation("the teacher", teacher, store)
        _refuse_leak("teacher", teacher.folder, store)
    method = experiment.method.build(
        Parts(
            store_sequences=available,
            subset=subset,
            width=experiment.width,
            latent_channels=experiment.latent_channels,
            teacher=teacher,
        )
    )
    folder = start_folder(experiment)
    if not 0 <= experiment.start_share < 1 or (experiment.start_share and folder is None):
        raise SettingError(
            f"start_share is {experiment.start_share}: it is a share, 0 to below 1, of the weights that --start names."
        )
    if folder is not None:
        _start_from(load_network(folder), experiment.start_member, method, store)
    return method


def start_folder(experiment: Experiment) -> Path | None:
    """Where the network lies that a run starts from; None for random weights.

    Raises:
        SettingError: There is none of that name.
    """
    if experiment.start is None or experiment.start.is_dir():
        return experiment.start
    from mindgap.inference.shipped import model_folder  # brings imaging, which a training machine may lack

    return model_folder(experiment.start)


def _start_from(known: TrainedNetwork, member: int, method: AbstractMethod, store: Store) -> None:
    """Give the segmenter the weights of a trained network.

    Raises:
        SettingError: They do not fit, or learnt from the store's test cases.
    """
    _refuse_other_preparation("the network to start from", known, store)
    _refuse_leak("network", known.folder, store)
    if known.card.sequences != method.subset:
        raise SettingError(
            f"the network in {known.folder} sees {format_subset(known.card.sequences)}, this one is to see "
            f"{format_subset(method.subset)}: start from a network of the same sequences."
        )
    network, architecture = known.network, known.card.architecture
    if isinstance(network, Ensemble):
        if not 1 <= member <= len(network.members):
            raise SettingError(f"{known.folder} holds {len(network.members)} networks: there is no number {member}.")
        network, architecture = network.members[member - 1], known.card.arguments["architecture"]
    reason = f"it is {architecture}, not {method.architecture}."
    if architecture == method.architecture:
        try:
            method.networks["segmenter"].load_state_dict(network.state_dict())
            return
        except RuntimeError as error:
            reason = str(error)
    raise SettingError(
        f"the weights in {known.folder} do not fit the network that is to be trained: {reason} Use the method and the "
        "numbers they were trained with (experiment.json of their run)."
    )


def _refuse_other_preparation(what: str, known: TrainedNetwork, store: Store) -> None:
    """Refuse a network that was trained on another grid or scale of intensities than those of the store."""
    here = json.loads(json.dumps(dataclasses.asdict(store.preparation)))
    if known.card.preparation != here:
        raise SettingError(
            f"{what} in {known.folder} was trained on data prepared with {known.card.preparation}, but {store.folder} "
            f"was prepared with {here}: use the same preparation for both."
        )


def _refuse_leak(what: str, folder: Path, store: Store) -> None:
    """Refuse a network that learnt from what is to judge, or to choose, here; itself or through another."""
    history = history_of(folder)
    for part, learnt, lost in (
        ("test", history.known, "be scored on them"),
        ("validation", history.learnt, "be chosen by them"),
    ):
        leaked = of_same_patients(store.part(part), learnt)
        if leaked:
            raise SettingError(
                f"the {what} in {folder} learnt from {len(leaked)} {part} cases of {store.folder} "
                f"({', '.join(leaked[:3])}, ...): what learns from it could not {lost}. Train the {what} on the same "
                "split."
            )


def history_before(experiment: Experiment) -> History:
    """What the networks that a run learns from have learnt: its teacher, and the network it starts from."""
    return together(_folders_before(experiment))


def citations_before(experiment: Experiment) -> list[str]:
    """Sources of the networks that a run learns from, as their manifests name them: an alignment reaches a student so.

    A model folder without a manifest names none.
    """
    manifests = [folder / MANIFEST for folder in _folders_before(experiment)]
    return [key for path in manifests if path.is_file() for key in read_json(path).get("citations", [])]


def describe_teacher(folder: Path) -> dict[str, Any]:
    """Which network a student learns from, and on what it was trained; None where its folder does not tell."""
    path = folder / MANIFEST
    manifest = read_json(path) if path.is_file() else {}
    return {
        "weights_sha256": read_card(folder)[1],
        "processor": manifest.get("processor", {}).get("kind"),
        "precision": manifest.get("precision"),
    }


def _folders_before(experiment: Experiment) -> list[Path]:
    """The teacher of a run, and the network it starts from."""
    return [path for path in (experiment.method.teacher_path(), start_folder(experiment)) if path is not None]


def method_name(recipe: AbstractRecipe) -> str:
    """The name of a recipe in ``METHODS``."""
    return next(name for name, kind in METHODS.items() if type(recipe) is kind)


def to_plain(experiment: Experiment) -> dict[str, Any]:
    """Settings as JSON-able values, resolved; :func:`from_plain` undoes it."""
    value = _plain(experiment)
    assert isinstance(value, dict)
    value["method"] = {"name": method_name(experiment.method), **value["method"]}
    return value


def from_plain(value: dict[str, Any]) -> Experiment:
    """Settings from ``experiment.json``.

    Raises:
        SettingError: The file names a method or a setting this version does not know.
    """
    value = dict(value)
    try:
        method = dict(value.pop("method"))
        name = method.pop("name")
        if name not in METHODS:
            raise SettingError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}.")
        start = value.pop("start", None)
        return Experiment(
            method=_build(METHODS[name], method),
            start=None if start is None else Path(start),
            schedule=_build(Schedule, value.pop("schedule")),
            optimisation=_build(Optimisation, value.pop("optimisation")),
            augmentation=_build(Augmentation, value.pop("augmentation")),
            data=Path(value.pop("data")),
            **value,
        )
    except KeyError as error:
        raise SettingError(f"the settings are not those of this version of mindgap: {error} is missing.") from error
    except (TypeError, ValueError) as error:
        raise SettingError(f"the settings are not those of this version of mindgap: {error}.") from error


def course_hash(experiment: Experiment, *, data: str, teacher: str | None = None, start: str | None = None) -> str:
    """Hash of all that decides the course of a run: settings, data, teacher; not paths, memory or how often it saves.

    Args:
        experiment: Settings.
        data: ``Store.fingerprint``.
        teacher: SHA-256 of the teacher's weights, where there is a teacher.
        start: SHA-256 of the weights it starts from, where they are not random.
    """
    value = to_plain(experiment)
    for name in ("data", "save_every", "device", "residence"):
        value.pop(name)
    for name in ("accumulate", "recompute"):  # with another number of processes a run goes on with other micro-batches
        value["schedule"].pop(name)
    value["method"].pop("teacher", None)
    value |= {"data_fingerprint": data, "teacher_sha256": teacher}
    value["start"] = start
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def _build(kind: type[Any], value: dict[str, Any]) -> Any:
    """A flat settings dataclass from JSON, with paths and enumerations restored."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    strange = set(value) - known
    if strange:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(strange))}")
    return kind(**{name: _restore(hints[name], item) for name, item in value.items()})


def _restore(hint: Any, item: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal and item not in typing.get_args(hint):
        raise ValueError(f"{item!r} is none of {', '.join(map(str, typing.get_args(hint)))}")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if item is None:
        return None
    for option in options:
        if option is Path or (isinstance(option, type) and issubclass(option, Enum)):
            return option(item)
    return item
