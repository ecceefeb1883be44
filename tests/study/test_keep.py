"""What is kept of finished runs, and what it spares another machine."""

from dataclasses import replace

import pytest

from mindgap.errors import SettingError
from mindgap.files import read_json, write_text
from mindgap.networks.card import MODEL_CARD, WEIGHTS
from mindgap.runfiles import SCORES
from mindgap.study import grid, outputs
from mindgap.study.execute import split_runs
from mindgap.study.grid import SINGLES, Choice, runs_of
from mindgap.study.keep import CROSS, is_kept, keep_runs, widen
from mindgap.study.outputs import make_output, networks_needed
from mindgap.study.scale import Place


@pytest.fixture
def kept(study, tmp_path) -> Place:
    place = replace(study.place, keep=tmp_path / "kept")
    keep_runs(study.runs, study.scale, place)
    return place


def elsewhere(kept, tmp_path) -> Place:
    """The same study on a machine that has only what was kept."""
    out = tmp_path / "elsewhere"
    return Place(out, out / "cohort", out / "store", "cpu", kept.keep)


def test_finished_runs_are_kept_without_images_networks_or_paths(study, kept):
    names = sorted(path.name for path in (kept.keep / "runs").iterdir())
    assert names == ["teacher-mixture-s0", "teacher-none-s0"]
    files = {path.name for path in kept.kept(names[0]).iterdir()}
    assert files == {
        "scores.csv",
        "evaluation.json",
        "experiment.json",
        "validations.jsonl",
        "manifest.json",
        "study.json",
    }
    for path in kept.keep.rglob("*.*"):
        assert str(study.place.out) not in path.read_text(encoding="utf-8")
    assert read_json(kept.kept(names[0]) / "experiment.json")["data"] == "store"


def test_another_machine_repeats_no_kept_run_but_trains_a_teacher_that_a_student_needs(study, kept, tmp_path):
    place = elsewhere(kept, tmp_path)
    first, student = grid.student("pmkl", "none", "T1", 0)
    runs = [first, student, grid.teacher("mixture", 0)]
    done, missing = split_runs(runs, study.scale, place)
    assert [run.name for run in done] == ["teacher-mixture-s0"]
    assert missing == [first, student]
    assert split_runs(runs, study.scale, kept)[1] == [student]  # here the teacher's network lies beside
    second = replace(grid.teacher("mixture", 0), start=first.name)
    chain = [first, second, replace(student, teacher=second.name)]
    assert split_runs(chain, study.scale, place)[1] == chain, "what a needed network needs is run again, too"


def test_tables_rebuild_from_what_is_kept(study, kept, tmp_path):
    places = (study.place, elsewhere(kept, tmp_path), Place(kept.keep, tmp_path, tmp_path))
    texts = [make_output("table4", place, Choice(), say=lambda line: None)[0].read_text("utf-8") for place in places]
    assert texts[0] == texts[1] == texts[2]
    assert "2 runs of 3 steps on phantoms (synthetic patients); cases: 2 to train, 1 to validate, 3 to test" in texts[0]


def test_what_is_kept_stays_and_other_orders_are_refused(study, kept):
    run = grid.teacher("none", 0)
    scores = kept.kept(run.name) / "scores.csv"
    scores.write_text("mine", encoding="utf-8")
    keep_runs(study.runs, study.scale, kept)
    assert scores.read_text(encoding="utf-8") == "mine"
    with pytest.raises(SettingError, match="other orders"):
        is_kept(run, replace(study.scale, steps={"": 4}), kept)


def test_a_figure_says_that_networks_are_elsewhere_and_has_them_trained_again(study, kept, tmp_path):
    place, said = elsewhere(kept, tmp_path), []
    choice = Choice(anchors=("none", "k"))
    assert make_output("figure2", place, choice, say=said.append) == []
    assert said == [
        "figure2: there is nothing to draw (without alignment: its network is not here; P_k: not run)",
    ]
    runs = [grid.teacher("none", 0), grid.teacher("mixture", 0)]
    networks = networks_needed(["table4", "figure2"], place, choice)
    assert networks == {"teacher-none-s0", "teacher-k-s0"}
    assert split_runs(runs, study.scale, place)[1] == []
    assert split_runs(runs, study.scale, place, networks=networks)[1] == runs[:1]
    assert split_runs(runs, study.scale, kept, networks=networks)[1] == []  # here it is


def test_table_five_asks_for_the_networks_it_lacks_and_shows_nothing_to_those_that_are_elsewhere(tmp_path, monkeypatch):
    shown, choice = [], Choice()
    monkeypatch.setattr(outputs, "score_across", lambda place, run, progress: shown.append(run.name))
    place = Place(tmp_path, tmp_path, tmp_path)
    runs = [grid.unimodal(name, 0) for name in SINGLES]
    for run in runs[:3]:
        write_text(place.run(run.name) / SCORES, "model,case,subset,region,dice,hd95_mm,reference_ml,predicted_ml\n")
    write_text(place.run(runs[0].name) / CROSS, "")
    for name in (MODEL_CARD, WEIGHTS):
        write_text(place.run(runs[1].name) / name, "")
    assert networks_needed(["table5"], place, choice) == {run.name for run in runs[1:]}
    outputs._show_every_sequence(place, choice)
    assert shown == [runs[1].name]  # not the third, whose network is elsewhere


def test_tables_only_shows_no_network_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_show_every_sequence", lambda place, choice: pytest.fail("a network was loaded"))
    written = make_output("table5", Place(tmp_path, tmp_path, tmp_path), Choice(), say=lambda _: None, scoring=False)
    assert "not run" in written[0].read_text(encoding="utf-8")


def test_a_choice_is_widened_by_what_is_there_and_never_narrowed():
    asked = Choice(("pmkl",), ("mixture",), ("T1",))
    there = {run.name for run in runs_of(["table1"], Choice(("pmkl", "kdnet"), ("mixture",), ("T1", "T1ce"), 2))}
    there |= {"smunet-none-T2-s0", "teacher-k-s0", "unimodal-FLAIR-s0"}
    wider = widen("table1", asked, lambda run: run.name in there)
    # a teacher and a unimodal network alone make no row of another anchor or sequence
    assert wider == Choice(("pmkl", "kdnet", "smunet"), ("mixture", "none"), ("T1", "T2", "T1ce"), 2)
    assert widen("table1", Choice(seeds=3), lambda run: run.name in there) == Choice(seeds=3)
    assert widen("table1", asked, lambda run: False) == asked
    assert widen("table4", Choice(anchors=("none",)), lambda run: run.anchor == "k" and run.seed == 0) == Choice(
        anchors=("none", "k")
    )


def test_a_narrower_call_takes_nothing_from_a_kept_table(study, kept):
    narrow = Choice(anchors=("none",))
    asked, kept_one = (
        next(path for path in make_output("table4", kept, narrow, say=lambda _: None) if path.parents[1] == folder)
        for folder in (kept.out, kept.keep)
    )
    assert asked.suffix == kept_one.suffix == ".md"
    assert "| P_* |" not in asked.read_text(encoding="utf-8")
    assert "| P_* |" in kept_one.read_text(encoding="utf-8")
    assert "--anchors none,mixture --tables-only" in kept_one.read_text(encoding="utf-8")
    asked.unlink()


def test_numbers_of_a_figure_do_not_replace_those_of_more_networks(kept):
    table = outputs.Table("figure1", "gap", ["anchor", "cases", "gap"], [["P_*", "3", "0.1"], ["P_N", "not run", ""]])
    more = replace(table, rows=[["P_*", "3", "0.1"], ["P_N", "3", "0.2"]])
    said = []
    for one, folder in ((table, kept.keep), (more, kept.keep), (table, kept.out)):
        found = outputs._folder_of_numbers(one, kept, say=said.append)
        assert found == folder / "tables"
        if found.parent == kept.keep:
            write_text(found / "figure1.csv", one.csv())
    assert len(said) == 1
    assert "stays as it is" in said[0]
