"""mindgap study: what it says before anything is run, and tables from nothing."""

from mindgap.cli import main


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
    assert sorted(path.suffix for path in (tmp_path / "tables").iterdir()) == [".csv", ".html", ".md"]


def test_bad_orders_are_one_clear_line(fails, tmp_path):
    out = ["-o", str(tmp_path)]
    assert "there is no study 'table9'" in fails(["study", "table9", *out])
    assert "method 'nnunet' is unknown" in fails(["study", "table1", *out, "--methods", "nnunet"])
    assert "needs a cohort: name it with --data" in fails(["study", "table4", *out, "--scale", "mini"])
    assert list(tmp_path.iterdir()) == []
