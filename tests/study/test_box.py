"""The network in the box from two folds of six tiny phantoms: trained, decided, put together, calibrated."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap.api import evaluate, silent, train
from mindgap.batch import Output
from mindgap.data.cohort import case_from_folder
from mindgap.data.store import open_store
from mindgap.errors import SettingError
from mindgap.evaluation.scores import Score, read_scores
from mindgap.experiment import PRESETS
from mindgap.files import write_text
from mindgap.inference.confidence import read_confidence
from mindgap.inference.decision import highest_expected_dice
from mindgap.inference.exported import quantised_file, read_exported
from mindgap.inference.predictor import Predictor
from mindgap.inference.shipped import describe
from mindgap.methods.compact import CompactRecipe
from mindgap.networks.card import WEIGHTS
from mindgap.networks.weights import load_network
from mindgap.sequences import SUBSETS, format_subset, parse_subset
from mindgap.study.box import LOWER, build_box, lower_odds, measure_gate, prepare_folds, score_folds
from mindgap.study.card import write_card
from mindgap.study.scale import Place, commands_of
from mindgap.study.trial_tables import compare, odds_markdown, subsets_markdown, targets_markdown, trials_markdown
from mindgap.study.trials import BOX, FIRST, SECOND, THIRD, TRIALS, Trial, choose_trials, runs_of, scale_of
from mindgap.training.loop import Schedule

TINY = Trial(BOX, "two folds", steps=3, folds=(1, 2), against=None)


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    """A box from two trainings of three steps, in this process."""
    torch.set_num_threads(1)
    out, split = tmp_path_factory.mktemp("box"), str(place.data / "splits")
    study = prepare_folds(out, place.data, [TINY], split=split, device="cpu", stage=lambda name: silent, folds=2)
    for run in TINY.runs:
        settings = dataclasses.replace(
            PRESETS["box"](study.store_of(run), CompactRecipe()),
            schedule=Schedule(steps=3, batch=2, crop=16),
            width=2,
            latent_channels=2,
            device="cpu",
        )
        train(settings, study.run(run.name))
    score_folds(study, TINY, progress=silent)
    return study, build_box(study, TINY, split=split, progress=silent, int8=False)


def test_folds_judge_every_teaching_case_once_and_no_test_case(made, place):
    study, _ = made
    judged = [case for run in TINY.runs for case in open_store(study.store_of(run)).part("test")]
    lists = [(place.data / "splits" / f"{part}.txt").read_text().split() for part in ("train", "val", "test")]
    assert sorted(judged) == sorted(lists[0] + lists[1])
    assert not set(judged) & set(lists[2])


def test_folds_of_another_split_are_refused(made, place, tmp_path):
    study, _ = made
    texts = {path.name: path.read_text() for path in (place.data / "splits").glob("*.txt")}
    for name, source in (("train.txt", "train.txt"), ("val.txt", "test.txt"), ("test.txt", "val.txt")):
        write_text(tmp_path / "swapped" / name, texts[source])
    with pytest.raises(SettingError, match="was prepared with the split"):
        prepare_folds(study.out, place.data, [TINY], split=str(tmp_path / "swapped"), device="cpu",
                      stage=lambda name: silent, folds=2)  # fmt: skip
    again = prepare_folds(study.out, place.data, [TINY], split=str(place.data / "splits"), device="cpu",
                          stage=lambda name: silent, folds=2)  # fmt: skip
    assert again == study


def test_folds_whose_data_moved_go_on(place, tmp_path):
    shutil.copytree(place.data, tmp_path / "old")
    of = lambda data: prepare_folds(tmp_path / "out", data, [TINY], split=str(place.data / "splits"), device="cpu",  # noqa: E731
                                    stage=lambda name: silent, folds=2)  # fmt: skip
    before = [open_store(of(tmp_path / "old").store_of(run)) for run in TINY.runs]
    (tmp_path / "old").rename(tmp_path / "new")
    after = [open_store(of(tmp_path / "new").store_of(run)) for run in TINY.runs]
    assert {Path(store.source) for store in after} == {tmp_path / "new"}
    assert [store.fingerprint for store in after] == [store.fingerprint for store in before]


def test_phantoms_join_those_that_teach_a_fold_and_judge_nothing(place, tmp_path):
    trial = Trial("with-phantoms", "two more", folds=(2,), against=None, phantoms=2)
    split = str(place.data / "splits")
    study = prepare_folds(tmp_path, place.data, [TINY, trial], split=split, device="cpu", stage=lambda name: silent,
                          folds=2)  # fmt: skip
    plain, more = (open_store(study.store_of(one.runs[-1])) for one in (TINY, trial))
    assert (plain.folder.name, more.folder.name) == ("2", "2-phantoms2")
    assert more.part("test") == plain.part("test")
    added = set(more.part("train")) - set(plain.part("train"))
    assert len(added) == 2
    assert added == {path.name for path in (tmp_path / "phantoms2").glob("*GG/*")}
    assert not added & set(plain.cases)


def test_every_case_is_scored_once_by_every_rule(made):
    study, _ = made
    rules = ("", " (most probable class)", *(f" (log-odds of tumour -{by})" for by in ("0.5", "1", "1.5")))
    for run in TINY.runs:
        rows = read_scores(study.run(run.name) / "decided.csv")
        cases = set(open_store(study.store_of(run)).part("test"))
        assert {row.case for row in rows} == cases
        assert len(rows) == len(rules) * len(cases) * len(SUBSETS) * 3
        assert {row.model for row in rows} == {run.name + rule for rule in rules}
        volumes = [sum(row.predicted_ml for row in rows if row.model == run.name + rule) for rule in rules]
        assert volumes[0] != volumes[1]
        assert volumes[0] >= volumes[2] >= volumes[3] >= volumes[4], "lower odds, not more tumour"


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_lower_odds_are_those_of_a_network_whose_background_gained(by):
    logits = torch.randn((4, 3, 3, 3), generator=torch.Generator().manual_seed(0))
    raised = logits.clone()
    raised[0] += by
    before, after = (Output(some[None]).region_probabilities()[0].numpy() for some in (logits, raised))
    assert np.allclose(lower_odds(before, by), after, atol=1e-6)
    odds = [np.log(maps / (1 - maps)) for maps in (before[0], after[0])]
    assert np.allclose(odds[0] - odds[1], by, atol=1e-4)


def test_the_box_is_the_mean_of_its_members_in_half_the_space(made, place):
    study, box = made
    members = [study.run(run.name) for run in TINY.runs]
    assert (box / WEIGHTS).stat().st_size < 0.65 * sum((path / WEIGHTS).stat().st_size for path in members)
    case = case_from_folder(sorted(place.data.glob("HGG/*"))[0], label=False).load(parse_subset("T2+FLAIR"))
    predictor = Predictor.load(box, device="cpu", precision="fp32", coverage="whole")
    found = predictor.segment(case)
    kept = [study.out / "members" / run.name for run in TINY.runs]
    each = [Predictor.load(path, device="cpu", precision="fp32", coverage="whole").segment(case) for path in kept]
    assert np.allclose(found.maps, np.mean([one.maps for one in each], axis=0), atol=3e-3)
    trained = [Predictor.load(path, device="cpu", precision="fp32", coverage="whole").segment(case) for path in members]
    for one, raw in zip(each, trained, strict=True):
        assert np.allclose(one.maps, lower_odds(raw.maps, LOWER), atol=3e-3), "odds lowered, nothing else"
    assert predictor.decision == "expected_dice"
    expected = highest_expected_dice(found.probabilities)
    assert (found.target == expected).all()


def test_what_is_said_of_it_comes_from_cases_its_members_had_not_seen(made):
    _, box = made
    sha256 = load_network(box).sha256
    known = read_confidence(box, sha256)
    assert known.part == "cross-validation"
    exported = read_exported(box, sha256)
    assert exported.int8 is None
    gate = exported.whole
    assert gate.cases == 3
    assert set(gate.dice) == {"whole", "tiles"}
    assert known.coverage == "whole"
    assert Predictor.load(box, device="cpu", precision="fp32", coverage="auto").planned_coverage == "whole"
    assert len({row.case for row in known.observed}) == 3
    assert len(known.observed) == 3 * len(SUBSETS) * 3


def test_int8_is_measured_on_members_and_made_of_the_whole_box(made, tmp_path):
    study, _ = made
    one = dataclasses.replace(TINY, folds=(1,))
    copy = dataclasses.replace(study, out=tmp_path / "copy")
    shutil.copytree(study.out, copy.out)
    measure_gate(copy, one, int8=True, progress=silent)
    box = copy.out / BOX
    exported = read_exported(box, load_network(box).sha256)
    assert exported.int8.cases == len(open_store(study.store_of(one.runs[0])).part("test"))
    assert exported.int8.dice["fp32"] == exported.whole.dice["whole"], "in one pass, as its card asks"
    member = copy.out / "members" / one.runs[0].name
    assert quantised_file(member).is_file()
    assert load_network(member).card.coverage == load_network(box).card.coverage == "whole"
    assert load_network(member).card.decision == load_network(box).card.decision == "expected_dice"
    assert quantised_file(box).is_file() == exported.int8.passed


def test_its_test_cases_can_be_scored_like_those_of_a_run(made, place):
    _, box = made
    rows, failed = evaluate(box, place.data, subsets=[parse_subset("FLAIR")], device="cpu", coverage="whole")
    assert not failed
    assert {row.model for row in rows} == {BOX, "threshold"}
    assert {row.case for row in rows} == set((place.data / "splits" / "test.txt").read_text().split())
    table = subsets_markdown(rows).splitlines()
    assert len(table) == 3, "one subset, and no mean of fifteen"
    assert table[2].startswith("| FLAIR | 3 | ")
    assert "not run" not in table[2]


def test_what_was_asked_for_is_held_against_what_was_found():
    values = {"T1": 0.3, "T2": 0.6, "T1ce": 0.4, "FLAIR": 0.8}
    rows = []
    for subset in SUBSETS:
        for region in ("WT", "TC", "ET"):
            dice = max(values[str(sequence)] for sequence in subset) + 0.05 * (len(subset) == 4)
            for model, found in (("box", dice), ("threshold", 0.35)):
                rows.append(Score(model, "a", format_subset(subset), region, found, math.nan, 1.0, 1.0))
    lines = targets_markdown(rows).splitlines()
    assert "| all four sequences, WT / TC / ET | 82 / 65 / 62 | 85.0 / 85.0 / 85.0 | reached |" in lines
    assert "| FLAIR alone, WT | 75 | 80.0 | reached |" in lines
    assert "| T1ce alone, ET | 55 | 40.0 | **missed: ET** |" in lines
    assert lines[-1].endswith("| **missed: T1 WT, T1 TC, T1 ET** |")


def test_its_card_names_it(made):
    study, box = made
    text = write_card(describe(box), study.out).read_text()
    assert load_network(box).sha256 in text
    assert "2 networks of" in text
    assert "3 cases of" in text
    assert read_exported(box, load_network(box).sha256).whole.reason in text


def test_the_table_of_what_was_tried_is_made_from_what_was_kept(made, monkeypatch):
    study, _ = made
    other = dataclasses.replace(TINY, name="other", against=BOX)
    for run, copy in zip(TINY.runs, other.runs, strict=True):
        text = (study.run(run.name) / "decided.csv").read_text().replace(run.name, copy.name)
        folder = study.run(copy.name)
        folder.mkdir(exist_ok=True)
        (folder / "decided.csv").write_text(text)
    monkeypatch.setattr("mindgap.study.trial_tables.TRIALS", {BOX: TINY, "other": other})
    rows = compare(study)
    assert [row.trial.name for row in rows] == [BOX, "other"]
    assert rows[0].difference == {}
    assert rows[1].difference["mean"].mean == pytest.approx(0.0)
    assert rows[1].cases == 3
    text = trials_markdown(rows)
    assert "| other | two folds | 3 | 3 |" in text
    assert "+0.0 [+0.0, +0.0]" in text
    monkeypatch.setattr(
        "mindgap.study.trial_tables.TRIALS",
        {
            BOX: TINY,
            "other": dataclasses.replace(TINY, name="other", against="third"),
            "third": dataclasses.replace(TINY, name="third"),
        },
    )
    assert "| third, not run |" in trials_markdown(compare(study))
    odds = odds_markdown(study, TINY).splitlines()
    assert len(odds) == 2 + 4
    assert odds[2].startswith("| 0 | 3 | ")
    assert odds[2].endswith("|  |  |")
    assert odds[-1].startswith("| 1.5 | 3 | ")
    assert odds_markdown(study, dataclasses.replace(TINY, name="never")) == ""


def test_a_trial_that_goes_on_from_another_needs_its_networks_first(tmp_path):
    settled = TRIALS["settled"]
    (run,) = settled.runs
    assert [one.name for one in runs_of([settled])] == ["first-fold1", "settled-fold1"]
    assert len(runs_of([TRIALS[FIRST], settled])) == len(TRIALS[FIRST].runs) + 1
    assert run.after == "first-fold1"
    assert run.seed not in {one.seed for one in TRIALS[FIRST].runs}
    place = Place(tmp_path, tmp_path, tmp_path / "folds")
    train, _ = commands_of(run, scale_of([settled]), place)
    assert train[train.index("--start") + 1] == str(tmp_path / "runs" / "first-fold1")
    _, score = commands_of(TRIALS["dynunet"].runs[0], scale_of([TRIALS["dynunet"]]), place)
    assert score[-2:] == ("--coverage", "tiles")


def test_the_box_needs_every_training_before_it_and_meets_other_draws_in_each():
    runs = [run for run in runs_of([TRIALS[BOX]]) if run.fold == 2]
    assert [(run.name, run.after) for run in runs] == [
        ("first-fold2", None),
        ("second-fold2", "first-fold2"),
        ("third-fold2", "second-fold2"),
        ("box-fold2", "third-fold2"),
    ]
    seeds = [run.seed for trial in (FIRST, SECOND, THIRD, BOX) for run in TRIALS[trial].runs]
    assert len(set(seeds)) == len(seeds)


def test_trials_are_known_by_name_and_short_ones_differ_in_what_they_say_only():
    assert [trial.name for trial in choose_trials(())] == [BOX, THIRD, SECOND, FIRST, "dynunet"]
    with pytest.raises(SettingError, match="there is no trial 'nothing'"):
        choose_trials(["nothing"])
    assert len({run.name for trial in TRIALS.values() for run in trial.runs}) == sum(
        len(trial.folds) for trial in TRIALS.values()
    )
    for trial in TRIALS.values():
        assert trial.against is None or trial.against in TRIALS
        if trial.against is not None:
            assert set(trial.folds) & set(TRIALS[trial.against].folds)
    scale = scale_of(list(TRIALS.values()))
    assert scale_of([TRIALS["settled"]]).steps_of(TRIALS[FIRST].runs[0]) == 5000
    assert scale.steps_of(TRIALS["base"].runs[0]) == 800
    assert Path(scale.flags[1]).name == "box"
