"""A study as data: which networks a table or figure needs. The paper's tables are presets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mindgap.errors import SettingError
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset, parse_subset

STUDENTS = ("kdnet", "pmkl", "protokd", "smunet")
"""Methods of the paper's Table I, in its order."""
ANCHORS = ("none", "normal", "k", "mixture")
"""Without alignment, P_N, P_k and P_*, in the order of the paper's columns."""
ANY_SUBSET = ("dropout", "anysubset", "unaligned", "dynunet")
"""One network for all fifteen subsets: our comparison beyond the paper. "unaligned" is "anysubset" without its loss of
alignment: what is left of the gain then is that of the network."""
SINGLES = tuple(format_subset((sequence,)) for sequence in SEQUENCES)
_K = "T1ce"
_UNALIGNED = ("anysubset", ("--alignment-weight", "0"))


@dataclass(frozen=True)
class Run:
    """One training and its scores.

    Attributes:
        name: Unique; also the folder.
        method: Name in ``METHODS``.
        subset: Sequences the network sees; "all" for teachers and any-subset networks.
        seed: Of weights and draws.
        anchor: Of the teacher, or of the teacher the student learns from; None where there is none.
        k: Anchor sequence, where the anchor is k.
        backbone: Of a teacher.
        teacher: Name of the run it learns from, which has to be done first.
        start: Name of the run whose weights it starts from, which has to be done first; None starts from random ones.
        fold: Of a cross-validation, counted from 1; None where the split of the study is used.
        phantoms: How many synthetic patients join the training cases of a fold.
        extra: More words of the training's command line.
        score_extra: More words of the scoring's command line.
    """

    name: str
    method: str
    subset: str
    seed: int
    anchor: str | None = None
    k: str | None = None
    backbone: str | None = None
    teacher: str | None = None
    fold: int | None = None
    phantoms: int = 0
    extra: tuple[str, ...] = ()
    score_extra: tuple[str, ...] = ()
    start: str | None = None

    @property
    def after(self) -> str | None:
        """Name of the run that has to be done first."""
        return self.teacher or self.start

    @property
    def flags(self) -> tuple[str, ...]:
        """Words of the command line that make this run what it is, but for data, folders and scale."""
        words = [("--subset", self.subset), ("--seed", str(self.seed))]
        if self.method == "teacher":
            words += [("--anchor", str(self.anchor)), ("--backbone", str(self.backbone))]
            words += [("--k", self.k)] if self.k else []
        return (*(word for pair in words for word in pair), *self.extra)

    @property
    def scored_subsets(self) -> int:
        """On how many subsets it is scored: on fifteen, where it takes any of them."""
        return len(SUBSETS) if self.subset == "all" and self.method != "teacher" else 1

    @property
    def row(self) -> str:
        """Its name among the methods of a study: "unaligned" is the method "anysubset" with another setting."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class Choice:
    """What of a study is wanted; empty tuples stand for everything the preset has.

    Attributes:
        methods: Student methods.
        anchors: Anchors of the teachers.
        subsets: Sequences of the students.
        seeds: How many seeds, counted from 0.
    """

    methods: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    seeds: int = 1

    def __post_init__(self) -> None:
        known = {"methods": (*STUDENTS, *ANY_SUBSET), "anchors": ANCHORS, "subsets": tuple(map(format_subset, SUBSETS))}
        for kind, names in known.items():
            if kind == "subsets":
                object.__setattr__(self, kind, tuple(map(_canonical, self.subsets)))
            strange = [name for name in getattr(self, kind) if name not in names]
            if strange:
                raise SettingError(f"{kind[:-1]} {strange[0]!r} is unknown here: choose among {', '.join(names)}.")
        if self.seeds < 1:
            raise SettingError("a study needs at least one seed.")

    @property
    def flags(self) -> str:
        """Words of the command line that say the same; empty for one seed of everything."""
        given = {kind: getattr(self, kind) for kind in ("methods", "anchors", "subsets") if getattr(self, kind)}
        words = [f"--{kind} {','.join(names)}" for kind, names in given.items()]
        return " ".join([*words, *([f"--seeds {self.seeds}"] if self.seeds > 1 else [])])

    def pick(self, kind: str, offered: Sequence[str]) -> tuple[str, ...]:
        """Those of a preset's names that are wanted, in the preset's order."""
        wanted = getattr(self, kind)
        return tuple(name for name in offered if not wanted or name in wanted)

    def compared_anchors(self, offered: Sequence[str]) -> tuple[str, ...]:
        """The anchors that are wanted, and "none" with them: every other one is compared with it."""
        picked = self.pick("anchors", offered)
        return tuple(name for name in offered if name in picked or (picked and name == "none"))


def _canonical(subset: str) -> str:
    """A subset as it is written here, from any order and alias ("flair+t2"); what is none stays as it is."""
    try:
        return format_subset(parse_subset(subset))
    except SettingError:
        return subset


def teacher(anchor: str, seed: int, *, backbone: str = "vnet", k: str | None = None) -> Run:
    """An aligned teacher, or one without alignment."""
    k = (k or _K) if anchor == "k" else None
    parts = ["teacher", anchor if k in (None, _K) else f"k.{k}", *([] if backbone == "vnet" else [backbone])]
    return Run("-".join([*parts, f"s{seed}"]), "teacher", "all", seed, anchor, k, backbone)


def student(method: str, anchor: str, subset: str, seed: int, *, k: str | None = None) -> list[Run]:
    """A student and, before it, its teacher."""
    first = teacher(anchor, seed, backbone="smunet" if method == "smunet" else "vnet", k=k)
    middle = first.name.split("-")[1]
    name = f"{method}-{middle}-{subset}-s{seed}"
    return [first, Run(name, method, subset, seed, anchor, first.k, None, first.name)]


def unimodal(subset: str, seed: int) -> Run:
    """The baseline on some sequences."""
    return Run(f"unimodal-{subset}-s{seed}", "unimodal", subset, seed)


def for_any_subset(row: str, seed: int) -> Run:
    """One network for every subset, by its name in ``ANY_SUBSET``."""
    method, extra = _UNALIGNED if row == "unaligned" else (row, ())
    return Run(f"{row}-s{seed}", method, "all", seed, extra=extra)


def table1(choice: Choice) -> list[Run]:
    """Every student method with every anchor on every single sequence, beside the unimodal networks."""
    runs = []
    for seed in range(choice.seeds):
        subsets = choice.pick("subsets", SINGLES)
        runs += [unimodal(subset, seed) for subset in subsets]
        for method in choice.pick("methods", STUDENTS):
            for anchor in choice.compared_anchors(ANCHORS):
                for subset in subsets:
                    runs += student(method, anchor, subset, seed)
    return unique(runs)


def table2(choice: Choice) -> list[Run]:
    """P_k with k = T2 beside k = T1ce: what an unsuitable anchor does."""
    runs = []
    for seed in range(choice.seeds):
        subsets = choice.pick("subsets", SINGLES)
        runs += [unimodal(subset, seed) for subset in subsets]
        for method in choice.pick("methods", STUDENTS):
            for k in (_K, "T2"):
                for subset in subsets:
                    runs += student(method, "k", subset, seed, k=k)
    return unique(runs)


def table3(choice: Choice) -> list[Run]:
    """PMKL on every subset, without alignment and with P_*; the full set is the teacher."""
    runs = []
    offered = [format_subset(subset) for subset in SUBSETS if len(subset) < len(SEQUENCES)]
    for seed in range(choice.seeds):
        for anchor in choice.compared_anchors(("none", "mixture")):
            runs.append(teacher(anchor, seed))
            for subset in choice.pick("subsets", offered):
                runs += student("pmkl", anchor, subset, seed)
    return unique(runs)


def table4(choice: Choice) -> list[Run]:
    """The teachers themselves."""
    return [teacher(anchor, seed) for seed in range(choice.seeds) for anchor in choice.compared_anchors(ANCHORS)]


def table5(choice: Choice) -> list[Run]:
    """Unimodal networks, each looked at with every sequence: which one chooses k."""
    return [unimodal(subset, seed) for seed in range(choice.seeds) for subset in choice.pick("subsets", SINGLES)]


def anysubset(choice: Choice) -> list[Run]:
    """Networks for all fifteen subsets."""
    rows = choice.pick("methods", ANY_SUBSET)
    return [for_any_subset(row, seed) for seed in range(choice.seeds) for row in rows]


def figure(choice: Choice) -> list[Run]:
    """The teachers that a figure draws: those of seed 0, of the anchors that are wanted and no other."""
    return [teacher(anchor, 0) for anchor in choice.pick("anchors", ANCHORS)]


PRESETS: dict[str, Callable[[Choice], list[Run]]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "table5": table5,
    "figure1": figure,
    "figure2": figure,
    "figure3": figure,
    "anysubset": anysubset,
}

_TEACHERS: dict[str, tuple[str, ...]] = {"anchors": ANCHORS}
OFFERED: dict[str, dict[str, tuple[str, ...]]] = {
    "table1": {"methods": STUDENTS, "anchors": ANCHORS, "subsets": SINGLES},
    "table2": {"methods": STUDENTS, "anchors": ("k",), "subsets": SINGLES},
    "table3": {
        "methods": ("pmkl",),
        "anchors": ("none", "mixture"),
        "subsets": tuple(format_subset(subset) for subset in SUBSETS if len(subset) < len(SEQUENCES)),
    },
    "table4": _TEACHERS,
    "table5": {"subsets": SINGLES},
    "figure1": _TEACHERS,
    "figure2": _TEACHERS,
    "figure3": _TEACHERS,
    "anysubset": {"methods": ANY_SUBSET},
}
"""What can be chosen of each preset."""


def unused(preset: str, choice: Choice) -> dict[str, tuple[str, ...]]:
    """Names of a choice that say nothing to a preset, by kind ("methods", "anchors", "subsets")."""
    offered = OFFERED[preset]
    kinds = ("methods", "anchors", "subsets")
    strange = {kind: tuple(n for n in getattr(choice, kind) if n not in offered.get(kind, ())) for kind in kinds}
    return {kind: names for kind, names in strange.items() if names}


def runs_of(presets: Iterable[str], choice: Choice) -> list[Run]:
    """The runs of several presets, each once; teachers stand before their students.

    Raises:
        SettingError: None is named, one is unknown, a chosen name says nothing to any of them, or the choice leaves
            nothing of one.
    """
    runs: list[Run] = []
    presets = tuple(presets)
    if not presets:
        raise SettingError(f"no study is named: choose among {', '.join(PRESETS)}, or box.")
    for preset in presets:
        if preset not in PRESETS:
            raise SettingError(f"there is no study {preset!r}: choose among {', '.join(PRESETS)}.")
    for kind in ("methods", "anchors", "subsets"):
        nowhere = [n for n in getattr(choice, kind) if all(n in unused(p, choice).get(kind, ()) for p in presets)]
        if nowhere:
            offered = ", ".join(dict.fromkeys(name for p in presets for name in OFFERED[p].get(kind, ()))) or "nothing"
            raise SettingError(
                f"--{kind} {','.join(nowhere)} says nothing to {' and '.join(presets)}, where it can be {offered}."
            )
    if choice.seeds > 1 and all(preset.startswith("figure") for preset in presets):
        raise SettingError(
            f"--seeds {choice.seeds} says nothing to {' and '.join(presets)}: figures show the networks of seed 0."
        )
    for preset in presets:
        found = PRESETS[preset](choice)
        if not found:
            raise SettingError(f"nothing of {preset} is left with these methods, anchors and subsets.")
        runs += found
    return unique(runs)


def unique(runs: Iterable[Any]) -> list[Any]:
    """Each once, in order of first appearance."""
    return list(dict.fromkeys(runs))
