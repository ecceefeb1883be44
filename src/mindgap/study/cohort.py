"""The cohort of a study: the user's, or phantoms of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mindgap.api import Progress, prepare
from mindgap.data.prepared import Preparation
from mindgap.data.store import INDEX
from mindgap.errors import SettingError
from mindgap.files import write_text
from mindgap.processor import cpu_count
from mindgap.study.scale import Place, Scale

TRAIN, VALIDATION, TEST = 24, 6, 20
"""Phantoms of a study without data."""


def prepare_place(
    out: Path, scale: Scale, *, data: Path | None, split: str, device: str, stage: Callable[[str], Progress]
) -> Place:
    """Make what is missing of a study's cohort and store.

    Args:
        out: Folder of the study.
        scale: Its spacing.
        data: Cohort of the user; None grows phantoms, at scale "phantom" only.
        split: As ``mindgap prepare`` takes it.
        device: For the trainings.
        stage: Announces a stage and gives its progress callback.

    Raises:
        SettingError: There is no data at a scale that needs it.
    """
    if data is None and scale.name != "phantom":
        raise SettingError(f"scale {scale.name} needs a cohort: name it with --data, or use --scale phantom.")
    place = Place(out, data or out / "cohort", out / "store", device)
    if data is None:
        _grow(place.data, stage)
        split = str(place.data / "splits")
    if not (place.store / INDEX).is_file():
        preparation = Preparation(spacing_mm=scale.spacing_mm)
        prepare(place.data, place.store, preparation, split=split, workers=cpu_count(), progress=stage("preparing"))
    return place


def _grow(folder: Path, stage: Callable[[str], Progress]) -> None:
    from mindgap.data.phantom import write_cohort

    count = TRAIN + VALIDATION + TEST
    grown = stage(f"growing {count} phantoms")
    folders = write_cohort(
        folder,
        cases=count,
        seed=0,
        spacing_mm=2.0,
        workers=cpu_count(),
        progress=lambda done, total: grown(done, total, ""),
    )
    ordered = sorted(path.name for path in folders)
    parts = {"train": ordered[:TRAIN], "val": ordered[TRAIN:-TEST], "test": ordered[-TEST:]}
    for name, part in parts.items():
        write_text(folder / "splits" / f"{name}.txt", "".join(f"{case_id}\n" for case_id in part))
