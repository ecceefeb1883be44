import pytest

from mindgap.errors import SettingError
from mindgap.study.grid import OFFERED, PRESETS, Choice, runs_of, student, teacher, unused
from mindgap.study.results import by_seed
from mindgap.study.scale import Place, commands_of, find_scale

PAPER_TABLES = ("table1", "table2", "table3", "table4", "table5")


def test_the_papers_tables_are_114_trainings():
    runs = runs_of(PAPER_TABLES, Choice())
    assert len(runs) == 114
    assert len({run.name for run in runs}) == 114
    assert sum(run.method == "teacher" for run in runs) == 8 + 2
    assert sum(run.method == "unimodal" for run in runs) == 4
    assert len(runs_of(["table1"], Choice())) == 76
    assert len(runs_of(PAPER_TABLES, Choice(seeds=3))) == 3 * 114


@pytest.mark.parametrize("preset", PRESETS)
def test_teachers_stand_before_their_students_and_names_are_unique(preset):
    runs = runs_of([preset], Choice(seeds=1 if preset.startswith("figure") else 2))
    seen = set()
    for run in runs:
        assert run.name not in seen
        assert run.teacher is None or run.teacher in seen
        seen.add(run.name)


def test_tables_share_teachers():
    one, two = (runs_of([name], Choice()) for name in ("table1", "table4"))
    assert set(two) <= set(one)
    assert len(runs_of(["table1", "table4"], Choice())) == len(one)


def test_a_choice_leaves_what_it_names_and_what_that_needs():
    runs = runs_of(["table1"], Choice(("kdnet", "smunet"), ("none", "mixture"), ("T1", "T1ce"), 1))
    assert [run.name for run in runs if run.method == "teacher"] == [
        "teacher-none-s0",
        "teacher-mixture-s0",
        "teacher-none-smunet-s0",
        "teacher-mixture-smunet-s0",
    ]
    assert len(runs) == 2 + 4 + 2 * 2 * 2


@pytest.mark.parametrize("wrong", [{"methods": ("nnunet",)}, {"anchors": ("p",)}, {"subsets": ("T3",)}, {"seeds": 0}])
def test_what_is_unknown_is_refused(wrong):
    with pytest.raises(SettingError):
        Choice(**wrong)


def test_what_leaves_nothing_is_refused():
    with pytest.raises(SettingError, match="nothing of anysubset is left"):
        runs_of(["table1", "anysubset"], Choice(methods=("kdnet",)))
    with pytest.raises(SettingError, match="there is no study 'table9'"):
        runs_of(["table9"], Choice())


@pytest.mark.parametrize(
    ("presets", "choice", "said"),
    [
        (["anysubset"], Choice(methods=("kdnet",)), "--methods kdnet says nothing to anysubset"),
        (["table1"], Choice(methods=("pmkl", "dynunet")), "--methods dynunet says nothing to table1"),
        (["table3"], Choice(anchors=("mixture", "normal")), "--anchors normal says nothing to table3"),
        (["table1", "table5"], Choice(subsets=("T1+T2",)), r"--subsets T1\+T2 says nothing to table1 and table5"),
        (["table4"], Choice(methods=("pmkl",)), "can be nothing"),
    ],
)
def test_a_name_that_says_nothing_to_any_preset_is_refused(presets, choice, said):
    with pytest.raises(SettingError, match=said):
        runs_of(presets, choice)


def test_a_name_that_says_nothing_to_one_preset_is_told():
    choice = Choice(methods=("pmkl",), anchors=("mixture",))
    assert runs_of(["table1", "table4"], choice)
    assert unused("table1", choice) == {}
    assert unused("table4", choice) == {"methods": ("pmkl",)}


def test_what_is_offered_is_what_the_presets_are_made_of():
    assert set(OFFERED) == set(PRESETS)
    for preset, offered in OFFERED.items():
        everything = Choice(**offered)
        assert runs_of([preset], everything) == runs_of([preset], Choice())


@pytest.mark.parametrize("preset", ["table1", "table3", "table4"])
def test_an_anchor_is_run_with_what_it_is_compared_with(preset):
    anchors = {run.anchor for run in runs_of([preset], Choice(anchors=("mixture",)))}
    assert anchors - {None} == {"none", "mixture"}


def test_another_k_has_a_teacher_and_students_of_its_own():
    first, second = student("pmkl", "k", "T1", 0, k="T2")
    assert first == teacher("k", 0, k="T2")
    assert first.name != teacher("k", 0).name
    assert second.name != student("pmkl", "k", "T1", 0)[-1].name
    assert first.flags[-2:] == ("--k", "T2")


def test_seeds_of_a_run_keep_their_own_teacher():
    run = student("smunet", "mixture", "T1", 0)[-1]
    assert by_seed(run, 3)[2] == student("smunet", "mixture", "T1", 2)[-1]


def test_commands_are_the_papers_settings_at_the_papers_scale(tmp_path):
    place = Place(tmp_path, tmp_path / "brats", tmp_path / "store")
    run = student("kdnet", "k", "T1ce", 1)[-1]
    train, score = commands_of(run, find_scale("paper"), place)
    text = " ".join(train)
    assert text.startswith("train kdnet --preset paper --steps 50000 --subset T1ce --seed 1")
    assert f"--teacher {tmp_path / 'runs' / 'teacher-k-s1'}" in text
    assert score[:4] == ("evaluate", str(tmp_path / "brats"), "--model", str(tmp_path / "runs" / run.name))


def test_a_figure_takes_the_teachers_it_draws_and_no_further_seed():
    assert [run.name for run in runs_of(["figure1"], Choice(anchors=("mixture",)))] == ["teacher-mixture-s0"]
    both = runs_of(["table4", "figure2"], Choice(seeds=2))
    assert both == runs_of(["table4"], Choice(seeds=2))
    with pytest.raises(SettingError, match="seed 0"):
        runs_of(["figure1", "figure3"], Choice(seeds=2))


def test_our_network_for_any_subset_is_run_without_its_alignment_too():
    ours, unaligned = (run for run in runs_of(["anysubset"], Choice(("anysubset", "unaligned"))))
    assert ours.method == unaligned.method == "anysubset"
    assert unaligned.flags == (*ours.flags, "--alignment-weight", "0")
    assert (ours.row, unaligned.row) == ("anysubset", "unaligned")


def test_sequences_are_taken_by_any_of_their_names():
    assert Choice(subsets=("flair", "T1c+t2", "T1ce")).subsets == ("FLAIR", "T2+T1ce", "T1ce")
    for strange in ("flare", "T1-T2", ""):
        with pytest.raises(SettingError, match="is unknown here"):
            Choice(subsets=(strange,))


def test_a_study_of_nothing_is_refused():
    with pytest.raises(SettingError, match="no study is named: choose among table1"):
        runs_of([], Choice())
