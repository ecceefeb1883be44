"""mindgap study: what it says before anything is run, and tables from nothing."""

import re

import pytest

from mindgap.cli import main
from mindgap.cli.study_tables import print_box, print_runs, show_table
from mindgap.cli.terminal import duration
from mindgap.evaluation.statistics import Interval
from mindgap.files import write_json, write_text
from mindgap.study import grid
from mindgap.study.keep import orders_of
from mindgap.study.scale import WITHOUT_BF16, find_scale
from mindgap.study.tables import Table
from mindgap.study.trial_tables import TrialRow
from mindgap.study.trials import TRIALS


def test_a_dry_run_lists_every_run_with_its_cost_and_its_teacher(capsys, tmp_path):
    words = ["study", "table1", "table4", "-o", str(tmp_path / "study"), "--dry-run", "--methods", "pmkl"]
    assert main([*words, "--anchors", "none,mixture", "--subsets", "T1,T1ce", "--seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert "pmkl-mixture-T1ce-s1" in said
    assert "teacher-mixture-s1" in said
    assert "16 runs" in said  # 2 seeds of 2 unimodal, 2 teachers, 4 students
    assert not (tmp_path / "study").exists()


def test_tables_are_made_from_what_is_there(capsys, tmp_path):
    assert main(["study", "table4", "figure2", "-o", str(tmp_path), "--tables-only"]) == 0
    said = capsys.readouterr().out
    assert "not run" in said
    assert "nothing to draw" in said
    assert f"wrote {tmp_path / 'tables' / 'table4.md'}" in said
    assert "| network |" not in said, "no raw Markdown"
    assert max(len(line) for line in said.splitlines() if not line.startswith("wrote")) <= 160
    assert sorted(path.suffix for path in (tmp_path / "tables").iterdir()) == [".csv", ".html", ".md"]


def test_a_terminal_gets_names_averages_differences_and_what_was_gained(capsys):
    table = Table(
        "t",
        "A table",
        ["network", "anchor", "WT", "Avg", "between seeds", "minus without alignment", "p (Holm)", "paper WT"],
        [["a", "P_*", "11", "22", "33", "+4 [+1, +7]", "0.01", "55"], ["quoted", "", "", "", "", "", "", "66"]],
        ["p: how it was tested.", "Ours: means.", "P_* minus without: ours +4.00 [+1.00, +7.00]."],
    )
    show_table(table)
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert lines[:3] == [
        "A table",
        "network anchor Avg minus without alignment p (Holm)",
        "a P_* 22 +4 [+1, +7] 0.01",
    ]
    assert lines[3:5] == ["- p: how it was tested.", "- P_* minus without: ours +4.00 [+1.00, +7.00]."]
    whole = Table("f", "Numbers of a figure", ["anchor", "paired gap"], [["P_*", "0.5"]], [])
    show_table(whole)
    assert "P_* 0.5" in " ".join(capsys.readouterr().out.split())


def test_what_was_tried_for_the_box_fits_a_line(capsys):
    means = {name: Interval(0.5, 0.4, 0.6, 7, 7) for name in ("WT", "TC", "ET")}
    gain = {"mean": Interval(0.02, 0.01, 0.03, 7, 7)}
    print_box([TrialRow(TRIALS["third"], 7, means, means, means, gain, gain)])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert " ".join(line.split()) == "third 7 3,000 50.0 / 50.0 / 50.0 second +2.0 [+1.0, +3.0]"


@pytest.mark.parametrize(("native", "factor", "word"), [(True, 1.0, "with"), (False, WITHOUT_BF16, "without")])
def test_the_time_of_a_run_is_that_of_this_kind_of_machine(native, factor, word, capsys):
    scale, run = find_scale("phantom"), grid.teacher("none", 0)
    print_runs([run], scale, at_once=1, native_bf16=native)
    said = capsys.readouterr().out
    assert duration(factor * scale.seconds_of(run)) in said.splitlines()[1]
    total = f"about {duration(scale.seconds_of(run))} on two cores with native bf16, "
    assert f"{total}{duration(WITHOUT_BF16 * scale.seconds_of(run))} without" in said
    assert f"are those {word} it" in said


def test_bad_orders_are_one_clear_line(fails, tmp_path):
    out = ["-o", str(tmp_path)]
    assert "there is no study 'table9'" in fails(["study", "table9", *out])
    assert "method 'nnunet' is unknown" in fails(["study", "table1", *out, "--methods", "nnunet"])
    assert "needs a cohort: name it with --data" in fails(["study", "table4", *out, "--scale", "mini"])
    assert "--jobs -1 would start nothing" in fails(["study", "table4", *out, "--jobs", "-1"])
    assert "anchor 'p' is unknown" in fails(["study", "table4", *out, "--anchors", "p"])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_anchor_of_a_teacher_is_refused_with_those_there_are(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["train", "teacher", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--anchor", "nonsense"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "invalid choice 'nonsense'" in said
    assert all(f"'{anchor}'" in said for anchor in grid.ANCHORS)
    assert not (tmp_path / "run").exists()


def test_the_papers_tables_at_its_scale_are_exactly_114_runs_of_50000_steps(capsys, tmp_path):
    tables = [f"table{number}" for number in range(1, 6)]
    data = ["--scale", "paper", "--data", str(tmp_path / "brats")]
    assert main(["study", *tables, *data, "-o", str(tmp_path / "study"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    names = re.findall(r"^(\S+-s0) .* 50,000 ", said, flags=re.MULTILINE)
    assert len(names) == len(set(names)) == 114
    kinds = ("teacher", "unimodal", *grid.STUDENTS)
    counts = {kind: sum(name.startswith(f"{kind}-") for name in names) for kind in kinds}
    assert counts == {"teacher": 10, "unimodal": 4, "kdnet": 20, "pmkl": 40, "protokd": 20, "smunet": 20}
    assert "114 runs" in said
    assert "split: protokd" in said
    assert "brats does not exist: correct --data before the study is run" in said


def test_a_dry_run_says_what_is_finished_and_does_not_count_it(capsys, tmp_path):
    words = ["study", "table4", "-o", str(tmp_path / "study"), "--keep", str(tmp_path / "kept"), "--dry-run"]
    about = lambda text: re.search(r"^about (.+) on two cores", text, flags=re.MULTILINE)[1]  # noqa: E731
    assert main(words) == 0
    before = capsys.readouterr().out
    run, scale = grid.teacher("none", 0), find_scale("phantom")
    folder = tmp_path / "kept" / "runs" / run.name
    write_json(folder / "study.json", orders_of(run, scale))
    write_json(folder / "manifest.json", {"finished": True})
    write_json(folder / "evaluation.json", {"failed": {}})
    write_text(folder / "scores.csv", "")
    assert main(words) == 0
    after = capsys.readouterr().out
    assert re.search(rf"^{run.name} .* finished", after, flags=re.MULTILINE)
    assert "4 runs" in after
    assert "1 of them finished" in after
    assert about(before) != about(after)
