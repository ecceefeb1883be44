"""Finished runs kept as a few small files without images: tables rebuild from them, and no machine repeats them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindgap.data.store import INDEX
from mindgap.errors import SettingError
from mindgap.files import read_json, write_aside, write_json
from mindgap.networks.card import MODEL_CARD, WEIGHTS
from mindgap.runfiles import EVALUATION, MANIFEST, SCORES, SETTINGS, VALIDATIONS
from mindgap.study.grid import OFFERED, PRESETS, Choice, Run
from mindgap.study.scale import Place, Scale

ORDERS = "study.json"
"""What a run was told, in its folder."""
DECIDED = "decided.csv"
"""Dice of the cases a fold judges by several rules of decision, on the network's grid, in its run folder."""
CROSS = "cross.csv"
"""Scores of a unimodal network on every sequence, in its run folder; the column subset is what it was shown."""
_FACTS = (
    "versions",
    "processor",
    "precision",
    "processes",
    "subset",
    "split",
    "cases",
    "teacher",
    "best",
    "seconds",
    "seconds_of_last_call",
)
"""Of a manifest; the rest are paths and command lines of a machine."""


def orders_of(run: Run, scale: Scale) -> dict[str, object]:
    """What makes a run what it is, but for data and folders."""
    return {"method": run.method, "flags": [*scale.flags, "--steps", str(scale.steps_of(run)), *run.flags]}


def is_whole(folder: Path, run: Run, scale: Scale) -> bool:
    """Whether a folder holds a run of the same orders, trained to its end and scored on all test cases it could see.

    Raises:
        SettingError: It holds a run of other orders.
    """
    if (folder / ORDERS).is_file():
        known, wanted = read_json(folder / ORDERS), orders_of(run, scale)
        if known != wanted:
            raise SettingError(
                f"{folder} was made with other orders ({known}) than this study's ({wanted}): name another folder."
            )
    if not all((folder / name).is_file() for name in (SCORES, MANIFEST, EVALUATION)):
        return False
    return read_json(folder / MANIFEST).get("finished") is True and not read_json(folder / EVALUATION)["failed"]


def has_network(folder: Path) -> bool:
    """Whether the network of a run lies in its folder, and not only what is kept of it."""
    return all((folder / name).is_file() for name in (MODEL_CARD, WEIGHTS))


def is_trained(folder: Path) -> bool:
    """Whether the network of a run lies in its folder, trained to its end, whatever became of its scores."""
    return (
        has_network(folder) and (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("finished") is True
    )


def refuse_other_cohort(folder: Path, store: Path) -> None:
    """Refuse scores that were measured on other cases than those of the study's store.

    Raises:
        SettingError: The split of the run is another.
    """
    if not (store / INDEX).is_file() or not (folder / MANIFEST).is_file():
        return
    known, wanted = (read_json(path)["split"] for path in (folder / MANIFEST, store / INDEX))
    if known["sha256"] != wanted["sha256"]:
        raise SettingError(
            f"{folder} was trained and scored on another cohort or split ({known['name']}) than that of this study "
            f"({wanted['name']}): name another folder."
        )


def is_kept(run: Run, scale: Scale, place: Place) -> bool:
    """Whether the scores of a run stand in the folder that keeps them.

    Raises:
        SettingError: Those of a run with other orders do.
    """
    kept = place.keep is not None and is_whole(place.kept(run.name), run, scale)
    if kept:
        refuse_other_cohort(place.kept(run.name), place.store_of(run))
    return kept


def keep_runs(runs: Sequence[Run], scale: Scale, place: Place) -> None:
    """Keep scores, settings, validations and facts of finished runs; what is kept already stays as it is.

    Paths are written relative to the study, and nothing of a machine is kept but its class.

    Raises:
        SettingError: A folder holds a run of other orders.
    """
    if place.keep is None:
        return
    for run in runs:
        source, target = place.run(run.name), place.kept(run.name)
        if not is_whole(source, run, scale):
            continue
        names = [CROSS, DECIDED] if is_kept(run, scale, place) else [SCORES, VALIDATIONS, CROSS, DECIDED]
        for name in names:
            # what a fold decided is computed anew by every call
            if (source / name).is_file() and (name == DECIDED or not (target / name).is_file()):
                with write_aside(target / name) as aside:
                    shutil.copyfile(source / name, aside)
        if (target / MANIFEST).is_file():
            continue
        write_json(target / ORDERS, orders_of(run, scale))
        write_json(target / EVALUATION, {**read_json(source / EVALUATION), "data": None})
        write_json(target / SETTINGS, _relative(read_json(source / SETTINGS), place))
        manifest = read_json(source / MANIFEST)
        write_json(target / MANIFEST, {"finished": True, **{key: manifest[key] for key in _FACTS if key in manifest}})


def widen(preset: str, choice: Choice, is_there: Callable[[Run], bool]) -> Choice:
    """A choice with everything of a preset that is there, so that a narrower call takes nothing from a table.

    Runs that only teach, or stand beside the methods of a table, widen nothing.

    Args:
        preset: Name.
        choice: What was asked for; a kind of which everything is asked for stays as it is.
        is_there: Whether a run is.
    """
    offered, there, seeds = OFFERED[preset], list[Run](), 0
    for seed in itertools.count():
        runs = PRESETS[preset](Choice(seeds=seed + 1))
        known = [r for r in runs if r.seed == seed and r.row in offered.get("methods", (r.row,)) and is_there(r)]
        if not known:
            break
        there, seeds = there + known, seed + 1
    kinds = {"methods": "row", "anchors": "anchor", "subsets": "subset"}
    found = {kind: {getattr(run, field) for run in there} for kind, field in kinds.items()}
    asked = {kind: getattr(choice, kind) for kind in offered if getattr(choice, kind)}
    more = {
        kind: tuple(n for n in offered[kind] if n in found[kind] and n not in names) for kind, names in asked.items()
    }
    wider = {kind: (*names, *more[kind]) for kind, names in asked.items()}
    return replace(choice, seeds=max(choice.seeds, seeds), **wider)


def _relative(value: Any, place: Place) -> Any:
    """Settings with paths below the study's folder written relative to it."""
    if isinstance(value, dict):
        return {key: _relative(item, place) for key, item in value.items()}
    for folder in (place.out, place.out.resolve()):
        if isinstance(value, str) and value.startswith(f"{folder}/"):
            return value.removeprefix(f"{folder}/")
    return value
