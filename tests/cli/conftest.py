from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mindgap.cli import main

TINY = ["--width", "2", "--latent-channels", "2", "--crop", "16", "--batch", "2", "--seed", "1"]


@dataclass(frozen=True)
class Journey:
    """A cohort of phantoms, its store, and three networks trained for a few steps, all made by the command line."""

    cohort: Path
    store: Path
    teacher: Path
    flair: Path
    t1ce: Path


@pytest.fixture(scope="session")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    root = tmp_path_factory.mktemp("journey with spaces é")
    made = Journey(root / "cohort", root / "store", root / "teacher", root / "flair", root / "t1ce")
    assert main(["phantom", str(made.cohort), "--cases", "7", "--spacing-mm", "4", "--workers", "1"]) == 0
    assert (
        main(["prepare", str(made.cohort), "-o", str(made.store), "--spacing-mm", "4", "--split", "0.5/0.2/0.3"]) == 0
    )
    data = ["--data", str(made.store), *TINY]
    slow = ["--steps", "3", "--validate-every", "3"]
    assert main(["train", "teacher", "--out", str(made.teacher), *data, *slow]) == 0
    few = ["--steps", "40", "--validate-every", "40", "--learning-rate", "0.01", "--foreground", "1"]
    assert main(["train", "unimodal", "--out", str(made.flair), "--subset", "FLAIR", *data, *few]) == 0
    distil = ["--subset", "T1ce", "--teacher", str(made.teacher)]
    assert main(["train", "pmkl", "--out", str(made.t1ce), *distil, *data, *few]) == 0
    return made


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that has to end with exit code 2 and one clear line; gives the line."""

    def run(words: list[str]) -> str:
        capsys.readouterr()
        assert main(words) == 2
        captured = capsys.readouterr().err
        assert "Traceback" not in captured
        return captured[captured.index(f"mindgap {words[0]}: ") :]  # before it, progress may stand

    return run
