"""The method of docs/add-a-method.md, as it stands there, gets flags, is refused, trained and used."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mindgap.cli import main
from mindgap.methods import METHODS
from mindgap.runfiles import TERMS, read_lines

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Follow the page: write its file, import it and add its line."""
    file, lines = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path_factory.mktemp("methods") / "logits.py"
    path.write_text(file, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mindgap.methods.logits", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    exec(lines, {"METHODS": METHODS})
    yield
    del METHODS["logits"], sys.modules[spec.name]


def test_its_flags_are_explained(registered, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "logits", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--logit-weight" in said
    assert "weight of the squared difference" in said


def test_it_refuses_what_does_not_go_together(registered, fails, journey, tmp_path):
    words = ["train", "logits", "--data", str(journey.store), "--out", str(tmp_path / "run"), "--subset", "T1ce"]
    assert "name its run folder with --teacher" in fails(words)
    assert "--logit-weight is -1: it has to be at least 0" in fails(
        [*words, "--teacher", str(journey.teacher), "--logit-weight", "-1"]
    )


def test_it_trains_and_segments(registered, journey, tmp_path):
    run = tmp_path / "run"
    words = ["train", "logits", "--data", str(journey.store), "--out", str(run), "--teacher", str(journey.teacher)]
    tiny = ["--subset", "T1ce", "--steps", "3", "--width", "2", "--crop", "16", "--batch", "2"]
    assert main([*words, *tiny]) == 0
    terms = read_lines(run / TERMS)
    assert len(terms) == 3
    assert all(line["logit_distance"] > 0 for line in terms)
    case = next(path for path in sorted(journey.cohort.rglob("*t1ce*.nii.gz")))
    assert main(["segment", "--t1ce", str(case), "--model", str(run), "-o", str(tmp_path / "seg.nii.gz")]) == 0
    assert (tmp_path / "seg.nii.gz").is_file()
