"""Tables from scores written by hand."""

import csv
import io
import json

import pytest

from mindgap.evaluation.scores import Score, write_scores
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset
from mindgap.study import grid, layouts
from mindgap.study.grid import SINGLES, Choice, Run
from mindgap.study.keep import CROSS
from mindgap.study.layouts import build_table
from mindgap.study.matrix import table5
from mindgap.study.results import Results, by_seed
from mindgap.study.tables import METHOD_NAMES, NOT_RUN, paper

CASES = tuple(f"P{n:02d}" for n in range(1, 13))


def write(folder, run, values, subset=None):
    """Scores of a run: the same Dice in all regions, one per case."""
    name = subset or ("T1+T2+T1ce+FLAIR" if run.subset == "all" else run.subset)
    rows = [
        Score(run.name, case, name, region, value, 1.0, 1.0, 1.0)
        for case, value in zip(CASES, values, strict=True)
        for region in ("WT", "TC", "ET", "ETpp")
    ]
    write_scores(folder / run.name / "scores.csv", rows)


def column(table, name, **where):
    """Cells of a column in the rows that match."""
    index = [table.header.index(key) for key in where]
    wanted = list(where.values())
    found = [row for row in table.rows if [row[i] for i in index] == wanted]
    return [row[table.header.index(name)] for row in found]


def test_the_mean_of_a_cell_averages_seeds_per_case_first(tmp_path):
    runs = by_seed(grid.teacher("mixture", 0), 2)
    write(tmp_path, runs[0], [0.2] * 6 + [0.6] * 6)
    write(tmp_path, runs[1], [0.4] * 6 + [0.8] * 6)
    found = Results(tmp_path).measure(runs, "Avg")
    assert found.interval.mean == pytest.approx(50)
    assert found.interval.n == 12  # cases, not cases times seeds
    assert found.spread == pytest.approx(14.142, abs=0.01)
    assert Results(tmp_path).measure(by_seed(grid.teacher("k", 0), 3), "Avg") is None


def test_a_missing_seed_is_said_and_the_others_count(tmp_path):
    one, _, three = by_seed(grid.teacher("mixture", 0), 3)
    write(tmp_path, one, [0.2] * 12)
    write(tmp_path, three, [0.4] * 12)
    write(tmp_path, grid.teacher("none", 0), [0.1] * 12)
    table = build_table("table4", Results(tmp_path), Choice(seeds=3))
    assert column(table, "Avg", anchor="P_*") == ["30.00 [30.00, 30.00]"]
    assert column(table, "between seeds", anchor="P_*") == ["14.14; 2 of 3 seeds"]
    # only seed 0 has both
    assert column(table, "minus without alignment", anchor="P_*") == ["+10.00 [+10.00, +10.00]"]


def test_the_weights_of_the_anchor_are_those_of_the_kept_network(tmp_path):
    for run, weight in zip(by_seed(grid.teacher("mixture", 0), 2), (0.8, 1.2), strict=True):
        write(tmp_path, run, [0.5] * 12)
        lines = [{"step": step, **{f"anchor_weight/{s}": value for s in SEQUENCES}} for step, value in
                 ((200, 9.0), (400, weight), (600, 9.0))]  # fmt: skip
        (tmp_path / run.name / "validations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / run.name / "manifest.json").write_text(json.dumps({"best": {"step": 400, "score": 0.5}}))
    table = build_table("table4", Results(tmp_path), Choice(seeds=2))
    (note,) = [note for note in table.notes if note.startswith("Weights of P_*")]
    assert "T1 1.00 (0.80 to 1.20), T2 1.00 (0.80 to 1.20)" in note
    assert "2 seeds" in note
    assert "T1ce 2.2055" in note


@pytest.mark.parametrize("worded", [False, True])
def test_a_method_the_paper_does_not_know_has_a_row_without_its_numbers(tmp_path, monkeypatch, worded):
    monkeypatch.setattr(layouts, "STUDENTS", (*grid.STUDENTS, "logits"))
    if worded:
        monkeypatch.setitem(METHOD_NAMES, "logits", "Logits")
    name = "Logits" if worded else "logits"
    for anchor, value in (("none", 0.5), ("mixture", 0.6)):
        write(tmp_path, grid.student("logits", anchor, "T1", 0)[-1], [value + 0.01 * n for n in range(12)])
    for preset in ("table1", "table2"):
        table = build_table(preset, Results(tmp_path), Choice())
        assert column(table, "Avg printed", sequence="T1", method=name)[0] == ""
        assert all(len(row) == len(table.header) for row in table.rows)
    table = build_table("table1", Results(tmp_path), Choice())
    assert column(table, "minus without alignment", method=name, anchor="P_*", sequence="T1")[0].startswith("+10")


def test_the_gain_of_an_anchor_over_the_cells_that_were_run_stands_beside_the_papers(tmp_path):
    for anchor, value in (("none", 0.5), ("mixture", 0.6)):
        for sequence in ("T1", "T1ce"):
            write(tmp_path, grid.student("pmkl", anchor, sequence, 0)[-1], [value + 0.01 * n for n in range(12)])
    table = build_table("table1", Results(tmp_path), Choice())
    (gain,) = [note for note in table.notes if note.startswith("P_* minus")]
    assert "over the 2 cells that were run: ours +10.00 [+10.00, +10.00] (2 up)" in gain
    cells = [[sum(paper()["table1"][s]["PMKL"][key][:3]) / 3 for key in "*WO"] for s in ("T1", "T1ce")]
    assert f"recomputed, {sum(a - w for a, w, _ in cells) / 2:+.2f}" in gain
    assert f"{sum(a - o for a, _, o in cells) / 2:+.2f} over the quoted" in gain


_NONE_AND_MIXTURE = [grid.student("pmkl", anchor, "T1", 0)[-1] for anchor in ("none", "mixture")]
_K = [grid.student("pmkl", "k", "T1", 0, k=k)[-1] for k in ("T1ce", "T2")]
_TEACHERS = [grid.teacher(anchor, 0) for anchor in ("none", "mixture")]
_ANY = [Run(f"{method}-s0", method, "all", 0) for method in ("dropout", "anysubset")]


@pytest.mark.parametrize(
    ("preset", "runs", "said"),
    [
        ("table1", _NONE_AND_MIXTURE, "The same over {}: -10.00 [-10.00, -10.00] (0 up)."),
        ("table2", _K, "Over {}: T2 minus T1ce, mean of 1 -10.00 [-10.00, -10.00]."),
        ("table4", _TEACHERS, "Over {}: P_* minus without alignment -10.00 [-10.00, -10.00]."),
        ("anysubset", _ANY, "Over {}: anysubset minus dropout -10.00 [-10.00, -10.00]."),
    ],
)
def test_a_gain_is_told_again_without_the_cases_that_reward_empty_masks(tmp_path, preset, runs, said):
    for run, (rewarded, else_) in zip(runs, ((0.0, 0.5), (1.0, 0.4)), strict=True):
        rows = []
        for subset in map(format_subset, SUBSETS) if preset == "anysubset" else [run.subset]:
            subset = format_subset(SEQUENCES) if subset == "all" else subset
            for number, case in enumerate(CASES):
                for region in ("WT", "TC", "ET", "ETpp"):
                    empty = number < 4 and region == "ET"
                    value = rewarded if empty else else_
                    rows.append(Score(run.name, case, subset, region, value, 1.0, 0.0 if empty else 1.0, 1.0))
        write_scores(tmp_path / run.name / "scores.csv", rows)
    table = build_table(preset, Results(tmp_path), Choice())
    those = (
        f"the {len(CASES) - 4} cases that have enhancing tumour (in the others a network that draws none gets Dice 1)"
    )
    assert said.format(those) in table.notes


def test_the_threshold_stands_in_every_table(tmp_path):
    rows = []
    for region in ("WT", "TC", "ET", "ETpp"):
        for model, value in (("unimodal-T1-s0", 0.5), ("threshold", 0.3)):
            rows += [Score(model, case, "T1", region, value, 1.0, 1.0, 1.0) for case in CASES]
    write_scores(tmp_path / "unimodal-T1-s0" / "scores.csv", rows)
    for name in ("table1", "table2"):
        table = build_table(name, Results(tmp_path), Choice())
        assert column(table, "Avg", method="best single threshold") == ["30.00 [30.00, 30.00]"]
    assert column(table5(Results(tmp_path), Choice()), "T1", source="best single threshold") == ["30.00 [30.00, 30.00]"]


def test_table_four_compares_with_the_run_without_alignment(tmp_path):
    write(tmp_path, grid.teacher("none", 0), [0.5 + 0.01 * k for k in range(12)])
    write(tmp_path, grid.teacher("mixture", 0), [0.6 + 0.01 * k for k in range(12)])
    table = build_table("table4", Results(tmp_path), Choice())
    assert column(table, "minus without alignment", anchor="P_*")[0].startswith("+10.00")
    assert column(table, "WT", anchor="P_N") == [NOT_RUN]
    assert column(table, "p (Holm)", anchor="P_*") == ["<0.001"]
    assert column(table, "Avg printed", anchor="P_N") == ["79.13"]
    assert column(table, "Avg recomputed", anchor="P_N") == ["78.80"]  # the paper's own cells
    assert any("12 cases" in note for note in table.notes)


def test_few_cases_cannot_be_significant_and_the_table_says_so(tmp_path):
    for anchor, value in (("none", 0.5), ("normal", 0.6), ("k", 0.7), ("mixture", 0.8)):
        run = grid.teacher(anchor, 0)
        rows = [
            Score(run.name, case, "T1+T2+T1ce+FLAIR", region, value + 0.01 * n, 1.0, 1.0, 1.0)
            for n, case in enumerate(CASES[:5])
            for region in ("WT", "TC", "ET", "ETpp")
        ]
        write_scores(tmp_path / run.name / "scores.csv", rows)
    table = build_table("table4", Results(tmp_path), Choice())
    assert any("can be significant here" in note for note in table.notes)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "anysubset"])
def test_nothing_run_is_said_in_every_cell_and_all_forms_hold_the_same(tmp_path, name):
    table = build_table(name, Results(tmp_path), Choice())
    assert any(NOT_RUN in row for row in table.rows)
    assert all(len(row) == len(table.header) for row in table.rows)
    assert list(csv.reader(io.StringIO(table.csv()))) == [table.header, *table.rows]
    assert table.markdown().count("\n| ") == len(table.rows) + 1
    assert table.html().count("<tr>") == len(table.rows) + 1


def test_table_one_quotes_the_paper_and_its_averages(tmp_path):
    table = build_table("table1", Results(tmp_path), Choice())
    printed = column(table, "Avg printed", sequence="T1ce", method="PMKL", anchor="without alignment")
    recomputed = column(table, "Avg recomputed", sequence="T1ce", method="PMKL", anchor="without alignment")
    assert (printed, recomputed) == (["77.31"], ["75.12"])  # the paper's cells do not give its average
    assert len(table.rows) == 4 * (1 + 4 * 5)
    quoted = paper()["table1"]["T1"]["KD-Net"]["O"]
    assert column(table, "paper WT", sequence="T1", method="KD-Net", anchor="original (quoted)") == [f"{quoted[0]:.2f}"]


def test_the_any_subset_table_has_fifteen_rows_and_their_mean(tmp_path):
    choice = Choice(methods=("dropout",))
    table = build_table("anysubset", Results(tmp_path), choice)
    assert len(table.rows) == 15 * 2 + 2  # the threshold beside every row, and their means
    assert [row[:2] for row in table.rows[-2:]] == [["mean of 15", "dropout"], ["mean of 15", "best single threshold"]]
    rows = []
    for subset in map(format_subset, SUBSETS):
        for region in ("WT", "TC", "ET", "ETpp"):
            for model, value in (("dropout-s0", 0.3), ("threshold", 0.4)):
                rows += [Score(model, case, subset, region, value, 1.0, 1.0, 1.0) for case in CASES]
    write_scores(tmp_path / "dropout-s0" / "scores.csv", rows)
    table = build_table("anysubset", Results(tmp_path), choice)
    assert column(table, "Avg", sees="mean of 15") == ["30.00 [30.00, 30.00]", "40.00 [40.00, 40.00]"]
    assert column(table, "minus threshold", sees="mean of 15") == ["-10.00 [-10.00, -10.00]", ""]


def test_table_three_does_not_call_quoted_originals_the_comparator(tmp_path):
    table = build_table("table3", Results(tmp_path), Choice())
    assert column(table, "anchor", region="WT", source="paper") == ["PMKL as printed", "P_*"]
    assert any("originals that Table I quotes" in note for note in table.notes)
    quoted = paper()["table1"]["T1"]["PMKL"]
    assert float(column(table, "T1", region="WT", source="paper")[0]) == quoted["O"][0] != quoted["W"][0]


def write_rows(folder, run, values):
    """Scores of a run on several subsets or by several models: (model, subset) -> Dice, the same for all cases."""
    rows = [
        Score(model or run.name, case, subset, region, value, 1.0, 1.0, 1.0)
        for (model, subset), value in values.items()
        for case in CASES
        for region in ("WT", "TC", "ET", "ETpp")
    ]
    write_scores(folder / run.name / "scores.csv", rows)


def test_table_three_compares_the_seeds_both_have_and_says_how_many_there_are(tmp_path):
    singles = [format_subset(subset) for subset in SUBSETS if len(subset) < 4]
    for subset in singles:
        none, mixture = (by_seed(grid.student("pmkl", anchor, subset, 0)[-1], 2) for anchor in ("none", "mixture"))
        write(tmp_path, none[0], [0.5] * 12)
        write(tmp_path, none[1], [0.9] * 12)  # P_* has no second seed: this one must not be compared with its first
        write(tmp_path, mixture[0], [0.6] * 12)
    table = build_table("table3", Results(tmp_path), Choice(seeds=2))
    ours, gain = {"region": "WT", "source": "ours"}, ["+10.00 [+10.00, +10.00]"]
    assert column(table, "mean of 14", **ours) == ["70.00 [70.00, 70.00]", "60.00 [60.00, 60.00]", ""]
    assert column(table, "between seeds", **ours) == ["28.28", "1 of 2 seeds", ""]
    assert column(table, "gain, mean of 14", **ours) == ["", "", *gain]
    assert column(table, "T1", **ours) == ["70.00 [70.00, 70.00]", "60.00 [60.00, 60.00]; 1 of 2 seeds", *gain]
    assert any(note.startswith("Differences use the seeds both have") for note in table.notes)


def test_a_mean_of_subsets_is_over_the_seeds_that_all_of_them_have(tmp_path):
    singles = [format_subset(subset) for subset in SUBSETS if len(subset) < 4]
    for subset in singles:
        first, second = by_seed(grid.student("pmkl", "none", subset, 0)[-1], 2)
        write(tmp_path, first, [0.5] * 12)
        if subset != "T1":
            write(tmp_path, second, [0.9] * 12)
    table = build_table("table3", Results(tmp_path), Choice(seeds=2))
    where = {"region": "TC", "source": "ours", "anchor": "without alignment"}
    assert column(table, "mean of 14", **where) == ["50.00 [50.00, 50.00]"]
    assert column(table, "between seeds", **where) == ["1 of 2 seeds"]


def test_table_three_tells_the_gain_of_the_subsets_that_were_run_with_both_anchors(tmp_path):
    for subset, gain in (("T1", 0.1), ("T1+T2", 0.3)):
        for anchor, value in (("none", 0.4), ("mixture", 0.4 + gain)):
            write(tmp_path, grid.student("pmkl", anchor, subset, 0)[-1], [value] * 12)
    write(tmp_path, grid.student("pmkl", "none", "T2", 0)[-1], [0.9] * 12)
    table = build_table("table3", Results(tmp_path), Choice())
    gains = {"anchor": "P_* minus without alignment"}
    assert column(table, "T1", **gains) == ["+10.00 [+10.00, +10.00]"] * 5  # WT, TC, ET, ETpp and their mean
    assert column(table, "T2", **gains) == [NOT_RUN] * 5
    assert column(table, "gain, mean of 2", **gains) == ["+20.00 [+20.00, +20.00]"] * 5
    assert [bool(p) for p in column(table, "p (Holm)", **gains)] == [True, True, True, False, False]
    assert column(table, "mean of 15 printed / recomputed", region="ET", source="paper", anchor="P_*") == [
        "60.60 / 60.60"
    ]


def test_trainings_in_different_arithmetic_are_marked_and_told_apart(tmp_path):
    for sequence, precision in (("T1", "fp32"), ("T2", "bf16")):
        for anchor, value, own in (("none", 0.5, "bf16"), ("mixture", 0.6, precision)):
            run = grid.student("pmkl", anchor, sequence, 0)[-1]
            write(tmp_path, run, [value] * 12)
            facts = {"precision": own, "processor": {"device": "cpu", "vector": "AVX512"}}
            (tmp_path / run.name / "manifest.json").write_text(json.dumps(facts))
    results = Results(tmp_path)
    cells = {s: [grid.student("pmkl", a, s, 0)[-1] for a in ("mixture", "none")] for s in ("T1", "T2")}
    found = {s: results.compare([one], [other], "Avg") for s, (one, other) in cells.items()}
    assert {s: compared.across for s, compared in found.items()} == {"T1": True, "T2": False}
    notes = layouts.gains_over_cells(results, Choice(anchors=("mixture",)))
    assert notes[-1] == (
        "1 of the 2 cells of P_* compare trainings in different arithmetic (\u2020); the gain over the other 1: "
        "+10.00 [+10.00, +10.00] (1 up)."
    )


def test_networks_for_any_subset_are_compared_by_the_seeds_both_have(tmp_path):
    subsets = [format_subset(subset) for subset in SUBSETS]
    dropout, ours = (by_seed(Run(f"{method}-s0", method, "all", 0), 2) for method in ("dropout", "anysubset"))
    write_rows(tmp_path, dropout[0], {("", s): 0.3 for s in subsets})
    write_rows(tmp_path, ours[0], {**{("", s): 0.5 for s in subsets}, **{("threshold", s): 0.4 for s in subsets}})
    write_rows(tmp_path, ours[1], {**{("", s): 0.9 for s in subsets}, **{("threshold", s): 0.4 for s in subsets}})
    table = build_table("anysubset", Results(tmp_path), Choice(("dropout", "anysubset"), seeds=2))
    mean = {"sees": "mean of 15"}
    assert column(table, "Avg", **mean) == ["30.00 [30.00, 30.00]", "70.00 [70.00, 70.00]", "40.00 [40.00, 40.00]"]
    assert column(table, "between seeds", **mean) == ["1 of 2 seeds", "28.28", ""]
    assert column(table, "minus dropout", **mean) == ["", "+20.00 [+20.00, +20.00]", ""]
    assert column(table, "minus threshold", **mean)[:2] == ["-10.00 [-10.00, -10.00]", "+30.00 [+30.00, +30.00]"]
    # the threshold stands beside the second method alone
    assert column(table, "Avg", sees="T1", network="best single threshold") == ["40.00 [40.00, 40.00]"]


def test_table_five_has_intervals_and_goes_on_without_a_seed(tmp_path):
    for number, name in enumerate(SINGLES):
        one, other = by_seed(grid.unimodal(name, 0), 2)
        for run, values in ((one, [0.1 * number + 0.1] * 12), (other, [0.1 * number + 0.3] * 12)):
            if name == "T2" and run is other:
                continue
            rows = [
                Score(run.name, case, shown, region, value, 1.0, 1.0, 1.0)
                for shown in SINGLES
                for case, value in zip(CASES, values, strict=True)
                for region in ("WT", "TC", "ET", "ETpp")
            ]
            write_scores(tmp_path / run.name / CROSS, rows)
    table = table5(Results(tmp_path), Choice(seeds=2))
    ours = {"source": "ours"}
    assert column(table, "T1", **ours)[:2] == ["20.00 [20.00, 20.00]", "20.00 [20.00, 20.00]; 1 of 2 seeds"]
    assert column(table, "row mean", **ours)[3] == "50.00 [50.00, 50.00]"
    assert column(table, "between seeds", **ours) == ["14.14", "1 of 2 seeds", "14.14", "14.14"]
    assert any("row mean is that of FLAIR" in note for note in table.notes)


def test_differences_by_fewer_seeds_than_their_cells_are_said_to_be(tmp_path):
    none, mixture = (by_seed(grid.student("pmkl", anchor, "T1", 0)[-1], 2) for anchor in ("none", "mixture"))
    write(tmp_path, none[0], [0.5] * 12)
    write(tmp_path, mixture[0], [0.6] * 12)
    said = "Differences use the seeds both have"
    assert not any(said in note for note in build_table("table1", Results(tmp_path), Choice(seeds=2)).notes)
    write(tmp_path, none[1], [0.1] * 12)
    table = build_table("table1", Results(tmp_path), Choice(seeds=2))
    assert any(said in note for note in table.notes)
    found = column(table, "minus without alignment", sequence="T1", method="PMKL", anchor="P_*")
    assert found == ["+10.00 [+10.00, +10.00]"]


def test_the_papers_improvements_stand_beside_what_its_cells_say(tmp_path):
    table = build_table("table1", Results(tmp_path), Choice())
    name = "Imp. printed / recomputed"
    assert column(table, name, sequence="T1", method="PMKL", anchor="P_*") == ["+3.97 / +3.05"]
    assert column(table, name, sequence="T1ce", method="SMU-Net", anchor="P_*") == ["+0.09 / +0.19"]
    assert sum(bool(row[-1]) for row in table.rows) == 16
    printed = [float(row[-1].split(" / ")[0]) for row in table.rows if row[-1]]
    assert sum(printed) / 16 == pytest.approx(1.756, abs=0.001)  # the paper says 1.75


def test_table_two_tells_what_another_k_costs_beside_the_papers_number(tmp_path):
    for sequence in ("T1", "T1ce"):
        for k, value in (("T1ce", 0.5), ("T2", 0.4)):
            write(tmp_path, grid.student("pmkl", "k", sequence, 0, k=k)[-1], [value] * 12)  # every case enhances
    table = build_table("table2", Results(tmp_path), Choice())
    (note,) = [note for note in table.notes if note.startswith("T2 minus T1ce over the 2 cells")]
    assert "ours -10.00 [-10.00, -10.00] (0 up)" in note
    rows = [paper()["table2"][sequence][2] for sequence in ("T1", "T1ce")]
    assert f"{sum(row[3] - row[4] for row in rows) / 2:+.2f} over the same cells" in note
    assert "-0.88 over all 16 (-1.91 with those of T2 recomputed from cells)" in note


def test_our_network_stands_beside_the_outside_one_region_by_region(tmp_path):
    subsets = [format_subset(subset) for subset in SUBSETS]
    for name, value in (("anysubset", 0.5), ("unaligned", 0.4), ("dynunet", 0.3)):
        write_rows(tmp_path, grid.for_any_subset(name, 0), {("", s): value for s in subsets})
    table = build_table("anysubset", Results(tmp_path), Choice())
    assert column(table, "TC", network="anysubset minus dynunet") == ["+20.00 [+20.00, +20.00]"]
    assert column(table, "Avg", network="anysubset minus unaligned") == ["+10.00 [+10.00, +10.00]"]
    assert any("Holm over 6" in note and "anysubset minus dynunet WT 0.003" in note for note in table.notes)


def test_the_smallest_p_of_a_table_is_that_of_the_test_with_most_cases(tmp_path):
    """A test over few cases does not make the others of its family unable to come out."""
    none, mixture, normal = (grid.teacher(anchor, 0) for anchor in ("none", "mixture", "normal"))
    write(tmp_path, none, [0.3] * 12)
    write(tmp_path, mixture, [0.5 + 0.01 * n for n in range(12)])
    rows = [Score(normal.name, case, format_subset(SEQUENCES), region, 0.6, 1.0, 1.0, 1.0)
            for case in CASES[:4] for region in ("WT", "TC", "ET", "ETpp")]  # fmt: skip
    write_scores(tmp_path / normal.name / "scores.csv", rows)
    table = build_table("table4", Results(tmp_path), Choice())
    assert column(table, "p (Holm)", anchor="P_*") == ["<0.001"]
    assert any("With 12 cases the smallest" in note for note in table.notes)
