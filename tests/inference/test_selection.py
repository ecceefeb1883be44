"""Which network answers, and what advice the same scores give; networks are cards, scores are constructed."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mindgap.data.cohort import Cohort, discover
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.evaluation.calibration import Temperature
from mindgap.files import read_json
from mindgap.inference.advice import advise
from mindgap.inference.cohort import segment_cases
from mindgap.inference.confidence import POOLED, Confidence, Observed, write_confidence
from mindgap.inference.panel import Panel
from mindgap.inference.predictor import Predictor
from mindgap.inference.selection import (
    Answering,
    Member,
    answering,
    bundle,
    choose,
    joint_card,
    read_members,
)
from mindgap.networks.card import ModelCard, read_card
from mindgap.regions import REGIONS, find_convention
from mindgap.sequences import SEQUENCES, SUBSETS, Sequence, format_subset, parse_subset

T1, T2, T1CE, FLAIR = SEQUENCES


def _known(dice: dict[str, list[float]], sha256: str = "") -> Confidence:
    rows = tuple(
        Observed(f"K{n}", subset, str(region), value, value, 10.0, 10.0)
        for subset, values in dice.items()
        for n, value in enumerate(values)
        for region in REGIONS
    )
    return Confidence(sha256, "tiles", "all", 0.9, 0.7, rows, {POOLED: Temperature(1.0, 1.0, 1.0, 3)}, {POOLED: {}}, {})


def _member(name: str, takes: str, dice: dict[str, float] | None, *, any_subset: bool = False) -> Member:
    card = ModelCard("vnet", {}, parse_subset(takes), {}, 16, "test", any_subset)
    values = None if dice is None else _known({s: [d - 0.1, d, d + 0.1] for s, d in dice.items()})
    return Member(Path(name), card, values)


ANY = _member("any", "all", {format_subset(s): 0.2 * len(s) for s in SUBSETS}, any_subset=True)
ONLY_FLAIR = _member("flair", "FLAIR", {"FLAIR": 0.6})
ONLY_T1 = _member("t1", "T1", {"T1": 0.3})
PAIR = _member("pair", "T1ce+FLAIR", {"T1ce+FLAIR": 0.35})


def test_the_network_for_exactly_these_comes_before_better_ones_for_less():
    choice = choose([ONLY_T1, ONLY_FLAIR, PAIR], "X", (T1CE, FLAIR))
    assert (choice.member, choice.subset, choice.is_exact) == (PAIR, (T1CE, FLAIR), True)
    assert choice.passed_over == ("flair",)


def test_of_two_exact_ones_the_better():
    assert choose([ANY, ONLY_FLAIR], "X", (FLAIR,)).member is ONLY_FLAIR
    answer = choose([ANY, PAIR], "X", (T1CE, FLAIR))
    assert answer.member is ANY
    assert "any answers from T1ce+FLAIR (for any subset): mean Dice 0.40" in answer.describe((T1CE, FLAIR))


def test_without_an_exact_one_the_best_contained_subset():
    choice = choose([ONLY_T1, ONLY_FLAIR], "X", (T1, FLAIR))
    assert (choice.member, choice.subset, choice.is_exact) == (ONLY_FLAIR, (FLAIR,), False)
    assert (choice.expected.mean, choice.expected.n) == (pytest.approx(0.6), 3)
    said = choice.describe((T1, FLAIR))
    assert "flair answers from FLAIR" in said
    assert "mean Dice 0.60 [" in said
    assert "on 3 cases" in said


def test_a_measured_network_is_preferred_to_one_nobody_measured():
    unknown = _member("unknown", "FLAIR", None)
    assert choose([unknown, ONLY_FLAIR], "X", (FLAIR,)).member is ONLY_FLAIR
    alone = choose([unknown], "X", (FLAIR,))
    assert alone.expected.n == 0
    assert "Dice" not in alone.describe((FLAIR,))


def test_where_none_fits_the_refusal_lists_what_would():
    with pytest.raises(InputError, match=r"pair needs T1ce\+FLAIR; t1 needs T1.*found T2"):
        choose([PAIR, ONLY_T1], "X", (T2,))


def test_advice_has_the_sign_and_the_order_of_constructed_differences():
    known = {
        "FLAIR": [0.5, 0.6, 0.7],
        "T1+FLAIR": [0.4, 0.55, 0.6],  # worse in every case
        "T1ce+FLAIR": [0.7, 0.8, 0.9],
        "T2+FLAIR": [0.5, 0.6, 0.73],
    }
    member = replace(ANY, confidence=_known(known))
    now, found = advise([member], "X", (FLAIR,))
    assert now.subset == (FLAIR,)
    assert [advice.sequence for advice in found] == [T1CE, T2, T1]
    by = {advice.sequence: advice.change for advice in found}
    for region in ("WT", "TC", "ET", "mean"):
        interval = by[T1CE][region]
        assert (interval.mean, interval.low, interval.high, interval.n) == (*[pytest.approx(0.2)] * 3, 3)
    assert by[T1]["mean"].mean == pytest.approx(np.mean([-0.1, -0.05, -0.1]))
    assert by[T1]["mean"].high < 0


def test_advice_is_by_the_networks_that_would_answer():
    now, found = advise([ONLY_FLAIR, ONLY_T1, PAIR], "X", (FLAIR,))
    assert now.member is ONLY_FLAIR
    assert {a.sequence: (a.network, round(a.change["mean"].mean, 6)) for a in found} == {
        T1: ("flair", 0.0),
        T1CE: ("pair", -0.25),
    }, "T2 no network can use"


def test_advice_needs_a_measured_network():
    with pytest.raises(SettingError, match="mindgap calibrate"):
        advise([_member("unknown", "all", None, any_subset=True)], "X", (T1,))


@pytest.fixture
def pair_of_runs(study, tmp_path) -> tuple[Path, Path]:
    """Two run folders with real weights, measured on the same invented cases."""
    runs = []
    for name, dice in (("any", {"T1": 0.3, "T1+T2": 0.4}), ("fixed", {format_subset(SEQUENCES): 0.6})):
        run = tmp_path / "runs" / name
        shutil.copytree(study.any_subset if name == "any" else study.fixed, run)
        write_confidence(run, _known({s: [d, d, d] for s, d in dice.items()}, read_card(run)[1]))
        runs.append(run)
    return runs[0], runs[1]


def test_a_set_answers_with_its_members(pair_of_runs, tmp_path):
    out = tmp_path / "set"
    assert [member.folder.name for member in bundle(pair_of_runs, out)] == ["any", "fixed"]
    lines: list[str] = []
    who = answering(out, "X", SEQUENCES, lines.append)
    assert who.folder == out / "members" / "fixed", "measured; the other was not, on all four"
    assert who.confidence is not None
    assert who.choice.is_exact
    assert "fixed answers from T1+T2+T1ce+FLAIR" in lines[0]
    assert answering(out, "X", (T1,)).folder == out / "members" / "any"
    assert joint_card(out).sequences == SEQUENCES
    assert joint_card(out).any_subset


def _cohort(has: dict[str, tuple[Sequence, ...]], study, folder: Path) -> Cohort:
    """The same patient under several names, of whom less and less was scanned."""
    for name, sequences in has.items():
        for sequence in sequences:
            target = folder / name / f"{name}_{sequence}.nii"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(study.cases[0].images[sequence].path, target)
    return discover(folder, label=False)


def test_every_case_of_a_cohort_is_answered_by_the_member_for_what_it_has(pair_of_runs, study, tmp_path):
    """Each is loaded once; a case that none fits is listed, and the set is what results are resumed by."""
    bundle(pair_of_runs, tmp_path / "set")
    has = {"A": SEQUENCES, "B": (T1,), "C": (T1, T2), "D": SEQUENCES}
    cohort, loads, lines = _cohort(has, study, tmp_path / "cohort"), [], []

    def load(folder: Path) -> Predictor:
        loads.append(folder.name)
        return Predictor.load(folder, device="cpu", precision="fp32")

    def once(out: Path, **options):
        panel = Panel.open(tmp_path / "set", set(has.values()), load, coverage="auto", tta=False, say=lines.append)
        return segment_cases(panel, cohort, out, convention=find_convention("brats2017"), **options)

    out = tmp_path / "masks"
    assert once(out).done == list("ABCD")
    assert loads == ["fixed", "any"]
    assert [line.split(" from ")[0] for line in lines] == [
        "T1+T2+T1ce+FLAIR: fixed answers",
        "T1+T2: any answers",
        "T1: any answers",
    ]
    by = {case: read_json(out / case / f"{case}_seg.manifest.json") for case in has}
    assert {case: record["model"]["folder"] for case, record in by.items()} == {
        "A": "fixed",
        "B": "any",
        "C": "any",
        "D": "fixed",
    }
    assert {case: record["subset"] for case, record in by.items()} == {c: format_subset(s) for c, s in has.items()}
    assert all(record["confidence"]["expected_dice"] for record in by.values())
    measured = {case: record["chosen"]["mean_dice"] for case, record in by.items()}
    assert {case: (e["mean"], e["n"]) for case, e in measured.items()} == {
        "A": (0.6, 3),
        "B": (0.3, 3),
        "C": (0.4, 3),
        "D": (0.6, 3),
    }
    assert by["A"]["chosen"]["trained_for_exactly_these"] is True
    assert by["A"]["chosen"]["passed_over"] == ["any"]
    assert once(out, resume=True).skipped == list("ABCD")
    bundle(pair_of_runs[:1], tmp_path / "less")
    with pytest.raises(SettingError, match="model_sha256"):
        segment_cases(
            Panel.open(tmp_path / "less", set(has.values()), load, coverage="auto", tta=False),
            cohort,
            out,
            convention=find_convention("brats2017"),
            resume=True,
        )


def test_a_case_that_no_member_fits_is_listed(pair_of_runs, study, tmp_path):
    fixed = tmp_path / "runs" / "again"
    shutil.copytree(pair_of_runs[1], fixed)
    bundle([pair_of_runs[1], fixed], tmp_path / "set")
    cohort = _cohort({"A": SEQUENCES, "B": (T1,)}, study, tmp_path / "cohort")
    load = partial(Predictor.load, device="cpu", precision="fp32")
    panel = Panel.open(tmp_path / "set", {SEQUENCES, (T1,)}, load, coverage="auto", tta=False)
    outcome = segment_cases(panel, cohort, tmp_path / "masks", convention=find_convention("brats2017"))
    assert outcome.done == ["A"]
    assert "again needs T1+T2+T1ce+FLAIR" in outcome.failed["B"]


def test_an_engine_that_is_not_there_is_said_before_any_case(pair_of_runs, study, tmp_path):
    bundle(pair_of_runs, tmp_path / "set")

    def load(folder: Path) -> Predictor:
        raise SettingError("no such engine")

    with pytest.raises(SettingError, match="no such engine"):
        Panel.open(tmp_path / "set", {SEQUENCES}, load, coverage="auto", tta=False)
    panel = Panel.open(tmp_path / "set", set(), load, coverage="auto", tta=False)
    cohort = _cohort({"A": SEQUENCES}, study, tmp_path / "cohort")
    with pytest.raises(SettingError, match="no such engine"):
        segment_cases(panel, cohort, tmp_path / "masks", convention=find_convention("brats2017"))


def test_a_network_alone_answers_and_says_that_nothing_is_known(study):
    lines: list[str] = []
    assert answering(study.fixed, "X", SEQUENCES, lines.append) == Answering(study.fixed)
    assert len(lines) == 1
    assert "no estimate of reliability" in lines[0]
    assert answering(study.fixed, "X", (Sequence.T1,)) == Answering(study.fixed), "refused by the predictor, by name"


def test_sets_that_could_not_choose_are_refused(pair_of_runs, study, tmp_path):
    with pytest.raises(SettingError, match="was not calibrated"):
        bundle([pair_of_runs[0], study.fixed], tmp_path / "a")
    other = _known({"T1": [0.1, 0.2]}, read_card(pair_of_runs[0])[1])
    write_confidence(pair_of_runs[0], other)
    with pytest.raises(SettingError, match="different cases"):
        bundle(pair_of_runs, tmp_path / "a")
    with pytest.raises(SettingError, match="same name"):
        bundle([pair_of_runs[0], pair_of_runs[0]], tmp_path / "a")
    with pytest.raises(SettingError, match="not empty"):
        bundle(pair_of_runs[:1], tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_member_that_was_exchanged_is_refused(pair_of_runs, tmp_path):
    out = tmp_path / "set"
    bundle(pair_of_runs, out)
    index = json.loads((out / "models.json").read_text())
    index["members"]["any"] = "0" * 64
    (out / "models.json").write_text(json.dumps(index))
    with pytest.raises(MindgapError, match="bundle"):
        read_members(out)
