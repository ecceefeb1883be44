"""A study of a few steps on tiny phantoms, run as studies are: children of this process."""

from dataclasses import dataclass

import pytest

from mindgap.api import prepare
from mindgap.data.phantom import write_cohort
from mindgap.data.prepared import Preparation
from mindgap.files import write_text
from mindgap.study import grid
from mindgap.study.execute import Outcome, run_here
from mindgap.study.grid import Run
from mindgap.study.scale import Place, Scale

FLAGS = "--width 2 --latent-channels 2 --crop 16 --batch 2 --validate-every 3 --save-every 2"
TINY = Scale("tiny", 4.0, tuple(FLAGS.split()), {"": 3}, {"": 0.1})
BROKEN = Run("pmkl-broken-T1-s0", "pmkl", "T1", 0)  # a student without a teacher
LOST = Run("pmkl-lost-T1-s0", "pmkl", "T1", 0, teacher=BROKEN.name)


@dataclass
class TinyStudy:
    """What was run, and what was said about it."""

    place: Place
    scale: Scale
    runs: list[Run]
    outcome: Outcome
    said: list[str]
    steps: list[tuple[int, int]]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    out = tmp_path_factory.mktemp("study")
    place = Place(out, out / "cohort", out / "store", "cpu")
    names = sorted(path.name for path in write_cohort(place.data, cases=6, seed=0, spacing_mm=4.0))
    for part, chosen in {"train": names[:2], "val": names[2:3], "test": names[3:]}.items():
        write_text(place.data / "splits" / f"{part}.txt", "".join(f"{name}\n" for name in chosen))
    prepare(place.data, place.store, Preparation(spacing_mm=4.0), split=str(place.data / "splits"), workers=1)
    return place


@pytest.fixture(scope="session")
def study(place) -> TinyStudy:
    """Two teachers, a run that fails, and one that would need it."""
    runs = [grid.teacher("none", 0), BROKEN, grid.teacher("mixture", 0), LOST]
    said, steps = [], []
    progress = lambda done, total, what: steps.append((done, total))  # noqa: E731
    outcome = run_here(runs, TINY, place, at_once=2, progress=progress, say=said.append)
    return TinyStudy(place, TINY, runs, outcome, said, steps)
