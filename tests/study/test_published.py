"""The tables in docs/results are what the scores beside them say."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mindgap.data.splits import published_split
from mindgap.evaluation.scores import read_scores
from mindgap.files import read_json
from mindgap.inference.shipped import DEFAULT, shipped
from mindgap.study.grid import Choice, unimodal
from mindgap.study.outputs import make_output
from mindgap.study.results import Results
from mindgap.study.scale import Place
from mindgap.study.trial_tables import compare, subsets_markdown, trials_markdown

RESULTS = Path(__file__).parents[2] / "docs" / "results"
TABLES = sorted([*RESULTS.glob("*/tables/table*.md"), *RESULTS.glob("*/tables/anysubset.md")])
PHANTOMS = Results(RESULTS / "phantom" / "runs")


def choice_of(text: str) -> tuple[str, Choice]:
    """Preset and choice from the command a table ends with."""
    command = re.search(r"`mindgap study (.+?) --tables-only -o FOLDER`", text)
    assert command is not None
    preset, *words = shlex.split(command[1])
    flags = dict(zip(words[::2], words[1::2], strict=True))
    names = (tuple(filter(None, flags.get(f"--{kind}", "").split(","))) for kind in ("methods", "anchors", "subsets"))
    return preset, Choice(*names, int(flags.get("--seeds", "1")))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_published_tables_rebuild_from_the_published_scores(path, tmp_path):
    preset, choice = choice_of(path.read_text(encoding="utf-8"))
    place = Place(path.parents[1], tmp_path, tmp_path, keep=tmp_path)
    written = make_output(preset, place, choice, say=lambda line: None)
    for made in written:
        assert made.read_text(encoding="utf-8") == (path.parent / made.name).read_text(encoding="utf-8")


def test_there_are_published_tables():
    assert {path.stem for path in TABLES} >= {"table1", "table4", "table5"}


def test_no_published_file_is_an_image_or_names_a_folder_of_a_machine():
    for path in RESULTS.rglob("*.*"):
        assert path.suffix in {".csv", ".json", ".jsonl", ".md", ".html", ".txt"}
        assert not re.search(r'"/\w+/', path.read_text(encoding="utf-8"))


def test_the_lists_of_the_cases_at_hand_are_those_of_the_runs():
    lists = [(RESULTS / "split-at-hand" / f"{part}.txt").read_text().split() for part in ("train", "val", "test")]
    there = published_split("protokd").restrict(case for part in lists for case in part)
    assert [sorted(part) for part in lists] == [sorted(part) for part in (there.train, there.validation, there.test)]
    for path in (RESULTS / "real-mini" / "runs").glob("*/manifest.json"):
        cases = read_json(path)["cases"]
        assert [sorted(cases[part]) for part in ("train", "validation", "test")] == [sorted(part) for part in lists]
    judged = [case for path in (RESULTS / "box" / "runs").glob("box-fold*/manifest.json")
              for case in read_json(path)["cases"]["test"]]  # fmt: skip
    assert sorted(judged) == sorted(lists[0] + lists[1])


def test_unimodal_networks_rank_on_phantoms_as_the_physics_says():
    """T1ce shows the enhancing tumour and, where that encloses it, the core; FLAIR and T2 show the oedema."""
    dice: dict[str, dict[str, float]] = {}
    for sequence in ("T1", "T2", "T1ce", "FLAIR"):
        found = {region: PHANTOMS.measure([unimodal(sequence, 0)], region) for region in ("WT", "TC", "ET")}
        dice[sequence] = {region: cell.interval.mean for region, cell in found.items() if cell is not None}
        assert len(dice[sequence]) == 3
    assert max(dice, key=lambda sequence: dice[sequence]["ET"]) == "T1ce"
    assert sorted(dice, key=lambda sequence: dice[sequence]["WT"])[2:] in (["FLAIR", "T2"], ["T2", "FLAIR"])
    core = {sequence: PHANTOMS.cases([unimodal(sequence, 0)], "TC") for sequence in dice}
    enhancing = PHANTOMS.cases_with(unimodal("T1ce", 0), "ET")
    seen = {sequence: np.mean([values[case] for case in enhancing]) for sequence, values in core.items()}
    assert len(enhancing) == 16
    assert max(seen, key=lambda sequence: seen[sequence]) == "T1ce"


def test_the_tables_of_the_network_in_the_box_rebuild_from_its_scores():
    kept = RESULTS / "box"
    table = trials_markdown(compare(Place(kept, kept, kept)))
    assert (kept / "tables" / "box.md").read_text(encoding="utf-8") == table
    for name in ("test", "phantoms"):
        table = subsets_markdown(read_scores(kept / f"scores-{name}.csv"))
        assert (kept / "tables" / f"{name}.md").read_text(encoding="utf-8") == table
        assert table in shipped()[DEFAULT].text, "the card shows the same"
