"""Figures and Table V from networks that were really trained, if only for a few steps."""

from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest

from mindgap.api import evaluate, train
from mindgap.errors import MindgapError, SettingError
from mindgap.evaluation.scores import read_scores, write_scores
from mindgap.experiment import Experiment
from mindgap.inference.predictor import Predictor
from mindgap.methods import METHODS
from mindgap.runfiles import SCORES
from mindgap.sequences import SEQUENCES, parse_subset
from mindgap.study import grid
from mindgap.study.cohort import open_test_cases, prepare_place
from mindgap.study.figures import _best_median_worst, _colours, draw
from mindgap.study.grid import SINGLES, Choice
from mindgap.study.keep import CROSS
from mindgap.study.matrix import score_across
from mindgap.study.outputs import make_output
from mindgap.study.scale import find_scale
from mindgap.training.loop import Schedule


@pytest.fixture(scope="module")
def unimodals(place):
    for name in SINGLES:
        run = grid.unimodal(name, 0)
        experiment = Experiment(
            place.store,
            METHODS["unimodal"](),
            subset=name,
            width=2,
            schedule=Schedule(steps=2, batch=2, crop=16),
            device="cpu",
        )
        train(experiment, place.run(run.name))
        evaluate(place.run(run.name), place.data, name=run.name, device="cpu")
    return place


@pytest.mark.parametrize("preset", ["figure1", "figure2", "figure3"])
def test_every_figure_is_a_picture_of_the_teachers_there_are(study, preset):
    written = make_output(preset, study.place, Choice(), say=lambda line: None)
    picture = matplotlib.image.imread(written[0])
    assert written[0].name == f"{preset}.png"
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.05
    said = [text.get_text() for axes in draw(preset, study.place, Choice()).figure.axes for text in axes.texts]
    assert said.count("not run") >= 2  # P_N and P_k


def test_captions_tell_the_dice_of_the_network_that_drew_the_mask(study, tmp_path):
    """Kept scores may be those of another training of the same orders."""
    run = grid.teacher("none", 0)
    here = {score.dice for score in read_scores(study.place.run(run.name) / SCORES)}
    assert 0.123 not in here
    rows = [replace(score, dice=0.123) for score in read_scores(study.place.run(run.name) / SCORES)]
    write_scores(tmp_path / "kept" / "runs" / run.name / SCORES, rows)
    drawing = draw("figure2", replace(study.place, keep=tmp_path / "kept"), Choice(anchors=("none",)))
    said = [text.get_text() for axes in drawing.figure.axes for text in (*axes.texts, axes.title)]
    assert any("mean Dice" in text for text in said)
    assert not any("0.123" in text for text in said)


def test_figure_one_measures_the_gap_of_each_anchor(study):
    table = draw("figure1", study.place, Choice()).table
    assert [row[0] for row in table.rows] == ["without alignment", "P_N", "P_k", "P_*"]
    assert table.rows[1][1] == "not run"
    for row in (table.rows[0], table.rows[3]):
        assert row[1] == "3"
        assert all(np.isfinite(float(cell)) for cell in row[2:])


def test_no_teacher_no_figure_and_it_is_said(study, tmp_path):
    said = []
    assert make_output("figure1", study.place, Choice(anchors=("k",)), say=said.append) == []
    assert "nothing to draw" in said[0]


def test_equal_latents_have_equal_colours_and_shifted_ones_do_not():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, 5, 5, 5)).astype(np.float32)
    brain = rng.random((5, 5, 5)) > 0.3
    same = _colours(np.stack([one] * 4), brain)
    assert all(np.array_equal(same["T1"], colours) for colours in same.values())
    apart = _colours(np.stack([one, one, one, one + 9]), brain)
    assert not np.allclose(apart["T1"], apart["FLAIR"])
    assert np.all(apart["T1"][~brain] == 1)


def test_best_median_and_worst_are_over_the_cases_all_have():
    runs = [{"a": 0.9, "b": 0.5, "c": 0.1, "d": 1.0}, {"a": 0.7, "b": 0.5, "c": 0.3}]
    assert _best_median_worst(runs) == {"best of 3": "a", "median of 3": "b", "worst of 3": "c"}
    assert _best_median_worst([{"a": 0.5}]) == {"best of 1": "a"}
    assert _best_median_worst([{"a": 0.5, "b": 0.6}]) == {"best of 2": "b", "worst of 2": "a"}


def test_latents_are_the_networks_own_on_the_crop(study):
    run = grid.teacher("mixture", 0)
    predictor = Predictor.load(study.place.run(run.name), device="cpu", precision="fp32")
    opened = open_test_cases(study.place, run, predictor.preparation)[0]
    prepared = opened.prepared(SEQUENCES)
    latents, brain = predictor.latents(prepared)
    assert latents.shape == (4, 2, *prepared.image.shape[1:])
    assert np.array_equal(brain, (prepared.image > -1).all(0))
    for j in range(4):
        outside = ~(prepared.image[j] > -1)
        assert not latents[j][:, outside].any()


def test_a_network_without_latents_says_so(unimodals):
    run = grid.unimodal("T1", 0)
    predictor = Predictor.load(unimodals.run(run.name), device="cpu")
    opened = open_test_cases(unimodals, run, predictor.preparation)[0]
    with pytest.raises(SettingError, match="has no latents"):
        predictor.latents(opened.prepared(parse_subset("T1")))


def test_table_five_shows_every_network_every_sequence_and_chooses_k(unimodals):
    written = make_output("table5", unimodals, Choice(), say=lambda line: None)
    text = written[0].read_text(encoding="utf-8")
    assert text.count("| ours |") == 4
    assert "not run" not in text
    assert "Our largest row mean is that of" in text
    scores = read_scores(unimodals.run("unimodal-T1-s0") / CROSS)
    assert {score.subset for score in scores} == set(SINGLES)
    assert len(scores) == 4 * 3 * 4  # shown, cases, regions with ETpp


def test_table_five_is_about_single_sequences(study):
    with pytest.raises(MindgapError, match="more than one sequence"):
        score_across(study.place, grid.teacher("none", 0), progress=lambda done, total, case: None)


def test_a_scale_that_needs_data_asks_for_it(tmp_path):
    with pytest.raises(SettingError, match="--data"):
        prepare_place(tmp_path, find_scale("mini"), data=None, split="auto", device="cpu", stage=lambda name: None)
