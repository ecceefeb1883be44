import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mindgap.data.case
import mindgap.inference.opened
from mindgap.data.case import Case, CaseFiles, Source
from mindgap.data.preparation import prepare_case, put_back, target_on_grid
from mindgap.data.prepared import paste
from mindgap.data.volume import Volume
from mindgap.errors import InputError, MemoryShort, SettingError
from mindgap.evaluation.metrics import dice
from mindgap.evaluation.presets import PRESETS
from mindgap.evaluation.rules import Rules
from mindgap.evaluation.threshold import Threshold
from mindgap.inference.decision import classes_from_regions
from mindgap.inference.opened import BRATS_SHAPE, OpenedCase, protokd_crop
from mindgap.inference.predictor import Predictor
from mindgap.inference.scoring import score_cohort
from mindgap.regions import REGIONS, find_convention, region_mask
from mindgap.sequences import SEQUENCES, SUBSETS, format_subset
from mindgap.shapes import BACKGROUND

T1, T2, T1CE, FLAIR = SEQUENCES
LABELS = find_convention("brats2017")
THRESHOLDS = {
    region: {s: Threshold(100 + 20 * n, n % 2 == 0, 0.1 * (n + 1)) for n, s in enumerate(SEQUENCES)}
    for region in REGIONS
}
QUICK = PRESETS["hd95"]
STRICT = Rules(QUICK)


def _score(predictor, cases, *, rules=STRICT, **options):
    return score_cohort(predictor, cases, LABELS, model="m", rules=rules, **options)


def _same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert vars(one) == pytest.approx(vars(other), nan_ok=True)


def _copy(files, folder, without=()):
    """The case in a folder of its own, some files turned to garbage."""
    moved = {}
    for sequence, source in files.images.items():
        moved[sequence] = Source(folder / source.path.name)
        shutil.copy(source.path, moved[sequence].path)
        if sequence in without:
            moved[sequence].path.write_bytes(b"garbage")
    return CaseFiles(files.case_id, moved, files.label)


def test_every_subset_has_its_rows_and_they_are_those_of_the_subset_alone(study, anything):
    everything = _score(anything, study.cases, thresholds=THRESHOLDS)
    assert not everything.failed
    assert len(everything.scores) == 2 * 15 * 2 * 4  # cases, subsets, models, regions
    assert {row.subset for row in everything.scores} == {format_subset(subset) for subset in SUBSETS}
    assert everything.spacings_mm == {(1.0, 1.0, 1.5)}
    for subset in (SUBSETS[0], SUBSETS[5], SUBSETS[-1]):
        alone = _score(anything, study.cases, subsets=[subset], thresholds=THRESHOLDS)
        _same([row for row in everything.scores if row.subset == format_subset(subset)], alone.scores)
    rows = [row for row in everything.scores if (row.model, row.case) == ("m", "P01")]
    answers = {tuple(row.dice for row in rows if row.subset == format_subset(subset)) for subset in SUBSETS}
    assert len(answers) > 10, "the network does not look at what it is shown"


@pytest.mark.parametrize("subset", [(T1,), (T2, FLAIR), (T1, T2, FLAIR)], ids=format_subset)
def test_what_is_not_in_a_subset_might_never_have_existed(study, anything, tmp_path, subset):
    (tmp_path / "garbage").mkdir()
    absent = set(SEQUENCES) - set(subset)
    garbage = _copy(study.cases[0], tmp_path / "garbage", without=absent)
    gone = replace(study.cases[0], images={s: study.cases[0].images[s] for s in subset})
    options = {"subsets": [subset], "thresholds": THRESHOLDS}
    whole = _score(anything, study.cases[:1], **options)
    for files in (garbage, gone):
        _same(_score(anything, [files], **options).scores, whole.scores)


def test_each_file_is_opened_once_for_fifteen_subsets(study, anything, monkeypatch):
    opened = []

    def spy(path, **options):
        opened.append(path.name)
        return read(path, **options)

    read = mindgap.data.case.read_volume
    monkeypatch.setattr(mindgap.data.case, "read_volume", spy)
    _score(anything, study.cases[:1])
    images = [name for name in opened if not name.endswith("_seg.nii")]
    assert sorted(images) == sorted(source.path.name for source in study.cases[0].images.values())
    opened.clear()
    _score(anything, study.cases[:1], subsets=[(T1,), (T1, FLAIR)])
    assert {name for name in opened if not name.endswith("_seg.nii")} == {"P01_T1.nii", "P01_FLAIR.nii"}


def test_a_file_that_cannot_be_read_costs_only_the_subsets_it_is_in(study, anything, tmp_path):
    files = _copy(study.cases[0], tmp_path, without=(T1,))
    found = _score(anything, [files, study.cases[1]])
    assert {row.subset for row in found.scores if row.case == "P01"} == {
        format_subset(s) for s in SUBSETS if T1 not in s
    }
    assert len({row.subset for row in found.scores if row.case == "P02"}) == 15
    assert set(found.failed) == {"P01"}
    assert "P01_T1.nii" in found.failed["P01"]
    assert "(for T1, T1+T2, " in found.failed["P01"]


def test_a_case_is_scored_on_the_subsets_it_has(study, anything):
    files = replace(study.cases[0], images={s: study.cases[0].images[s] for s in (T2, FLAIR)})
    found = _score(anything, [files], subsets=[(T2,), (FLAIR,), (T1, T2)])
    assert {row.subset for row in found.scores} == {"T2", "FLAIR"}
    assert found.lacking == {"P01": ["T1+T2"]}
    assert found.failed == {}, "what a patient does not have is no failure"


def test_a_case_without_a_reference_is_listed_once(study, anything):
    found = _score(anything, [replace(study.cases[0], label=None)])
    assert not found.scores
    assert found.failed["P01"].count("a reference segmentation") == 1


def test_a_network_is_asked_for_what_it_takes(study, anything, fixed):
    assert fixed.subsets == (SEQUENCES,)
    assert anything.subsets == SUBSETS
    _same(
        _score(fixed, study.cases[:1]).scores,
        _score(anything, study.cases[:1], subsets=[SEQUENCES]).scores,
    )
    for subset in ((T1,), (T1, T2, FLAIR)):
        words = f"takes T1+T2+T1ce+FLAIR and no other subset, not {format_subset(subset)}: leave"
        with pytest.raises(SettingError, match=re.escape(words)):
            _score(fixed, study.cases, subsets=[subset])
        with pytest.raises(SettingError, match="no other subset"):
            fixed.segment(study.cases[0].load(), subset)


def test_absent_sequences_are_background_and_said_to_be_absent(study, anything):
    prepared = prepare_case(study.cases[0].load((T2, FLAIR)), anything.preparation)
    given = []
    hook = anything.network.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    anything.probabilities(prepared)
    hook.remove()
    for image, present in given:
        assert present.tolist() == [[False, True, False, True]] * len(image)
        assert bool((image[:, [0, 2]] == BACKGROUND).all())
        assert bool((image[:, [1, 3]] > BACKGROUND).any())


def test_segment_takes_as_much_of_a_case_as_it_can_or_what_it_is_told(study, anything):
    case = study.cases[0].load((T2, T1CE, FLAIR))
    found = anything.segment(case)
    assert found.subset == (T2, T1CE, FLAIR)
    assert anything.segment(case, (FLAIR, T2)).subset == (T2, FLAIR)
    told = anything.segment(case, (FLAIR,))
    assert told.subset == (FLAIR,)
    alone = anything.segment(study.cases[0].load((FLAIR,)))
    np.testing.assert_array_equal(told.probabilities, alone.probabilities)
    assert not np.array_equal(found.probabilities, alone.probabilities)
    with pytest.raises(InputError, match=r"P01: expected T1\+T2.*found T2\+T1ce\+FLAIR.*add T1,"):
        anything.segment(case, (T1, T2))


def test_scores_in_the_native_grid_are_those_of_the_mask_that_segment_writes(study, anything, tmp_path):
    found = _score(anything, study.cases[:1], subsets=[(T1, FLAIR)], predictions=tmp_path)
    target = anything.segment(study.cases[0].load((T1, FLAIR))).target
    reference = study.cases[0].load((T1,), convention=LABELS).target
    for row, region in zip(found.scores, REGIONS, strict=False):
        assert row.dice == dice(region_mask(target, region), region_mask(reference, region))
    mask = np.asarray(nib.load(tmp_path / "T1+FLAIR" / "P01.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, target > 0)


def test_scores_on_the_networks_grid(study, anything, tmp_path):
    rules = Rules(QUICK, grid="model")
    found = _score(
        anything, study.cases[:1], rules=rules, subsets=[(FLAIR,)], thresholds=THRESHOLDS, predictions=tmp_path
    )
    case = study.cases[0].load((FLAIR,), convention=LABELS)
    prepared = prepare_case(case, anything.preparation)
    predicted = classes_from_regions(paste(anything.probabilities(prepared), prepared.placement))
    reference = target_on_grid(case.target, prepared.placement)
    assert predicted.shape == reference.shape == prepared.placement.working_shape != case.target.shape
    for row, region in zip(found.scores, REGIONS, strict=False):
        masks = region_mask(predicted, region), region_mask(reference, region)
        assert row.dice == dice(*masks)
        assert row.reference_ml == pytest.approx(masks[1].sum() * math.prod(prepared.spacing_mm) / 1000)
    assert found.spacings_mm == {prepared.spacing_mm}
    assert {row.model for row in found.scores} == {"m", "threshold"}
    native = classes_from_regions(put_back(anything.probabilities(prepared), prepared.placement))
    mask = np.asarray(nib.load(tmp_path / "FLAIR" / "P01.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, native > 0)


def test_the_leaky_protocol_lets_all_four_files_decide_on_crop_and_scale(study, anything):
    leaky = Rules(QUICK, protocol="leaky")
    opened = OpenedCase(study.cases[0], LABELS, anything.preparation, leaky)
    box = opened.prepared(SEQUENCES).placement.box
    for subset in SUBSETS:
        prepared = opened.prepared(subset)
        assert prepared.placement.box == box
        assert prepared.sequences == subset
    strict = OpenedCase(study.cases[0], LABELS, anything.preparation, STRICT)
    assert strict.prepared((FLAIR,)).placement.box != box
    found = _score(anything, study.cases[:1], rules=leaky, subsets=[(FLAIR,)], thresholds=THRESHOLDS)
    plain = _score(anything, study.cases[:1], subsets=[(FLAIR,)], thresholds=THRESHOLDS)
    assert found.scores[0].dice != plain.scores[0].dice


def test_the_leaky_protocol_needs_complete_cases_and_says_so(study, anything):
    files = replace(study.cases[0], images={FLAIR: study.cases[0].images[FLAIR]})
    found = _score(anything, [files], rules=Rules(QUICK, protocol="leaky"), subsets=[(FLAIR,)])
    assert not found.scores
    assert "expected all four sequences: the leaky protocol" in found.failed["P01"]
    assert "found FLAIR" in found.failed["P01"]
    assert "--protocol strict" in found.failed["P01"]


def _brats_case():
    affine = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
    array = np.zeros(BRATS_SHAPE, np.float32)
    array[10:120, 100:140, 0:60] = 50
    target = np.zeros(BRATS_SHAPE, np.uint8)
    target[20:30, 110:120, 2:10] = 1
    header = nib.Nifti1Image(array, affine).header
    return Case("P01", {T1: Volume(array, affine, Path("P01_t1.nii.gz"), header)}, target)


def test_the_protokd_crop_is_that_of_the_published_code():
    case = _brats_case()
    cropped = protokd_crop(case)
    # Their arrays are read as z, y, x.
    kept = np.zeros(BRATS_SHAPE[::-1], bool)
    kept[5:145, 24:216, 24:216] = True
    kept = kept.transpose(2, 1, 0)
    np.testing.assert_array_equal(cropped.images[T1].array, np.where(kept, case.images[T1].array, 0))
    np.testing.assert_array_equal(cropped.target, np.where(kept, case.target, 0))
    assert (cropped.target > 0).sum() == 6 * 10 * 5
    assert (case.target > 0).sum() == 10 * 10 * 8, "the case itself is left alone"
    assert cropped.reference.affine is case.reference.affine


def test_the_protokd_crop_is_refused_on_any_other_grid(study, anything):
    found = _score(anything, study.cases[:1], rules=Rules(QUICK, protokd_crop=True), subsets=[(FLAIR,)])
    assert "the grid of BraTS, (240, 240, 155) LPS" in found.failed["P01"]
    assert "--protokd-crop" in found.failed["P01"]


def test_what_lies_outside_the_protokd_crop_counts_for_nothing(study, anything, monkeypatch):
    monkeypatch.setattr(mindgap.inference.opened, "BRATS_SHAPE", (26, 22, 17))
    monkeypatch.setattr(mindgap.inference.opened, "PROTOKD_CROP", ((10, 24), (2, 20), (3, 15)))
    rules = Rules(QUICK, protokd_crop=True)
    for grid in ("native", "model"):
        found = _score(anything, study.cases[:1], rules=replace(rules, grid=grid), subsets=[(FLAIR,)])
        plain = _score(anything, study.cases[:1], rules=replace(STRICT, grid=grid), subsets=[(FLAIR,)])
        assert 0 < found.scores[0].reference_ml < plain.scores[0].reference_ml
        assert found.scores[0].predicted_ml < plain.scores[0].predicted_ml
    opened = OpenedCase(study.cases[0], LABELS, anything.preparation, rules)
    native = put_back(anything.probabilities(opened.prepared((FLAIR,))), opened.prepared((FLAIR,)).placement)
    assert float(native[:, :9].max()) == 0


def test_a_threshold_row_is_the_same_for_subsets_with_the_same_best_sequence(study, anything):
    found = _score(anything, study.cases[:1], subsets=[(FLAIR,), (T1, FLAIR)], thresholds=THRESHOLDS)
    rows = [row for row in found.scores if row.model == "threshold"]
    assert [row.subset for row in rows] == ["FLAIR"] * 4 + ["T1+FLAIR"] * 4
    _same(rows[:4], [replace(row, subset="FLAIR") for row in rows[4:]])


def test_progress_counts_subsets_of_cases(study, anything):
    seen = []
    _score(anything, study.cases, subsets=[(T1,), (T2,)], progress=lambda *line: seen.append(line))
    assert seen == [(1, 4, "P01"), (2, 4, "P01"), (3, 4, "P02"), (4, 4, "P02")]


def test_probabilities_do_not_depend_on_what_was_prepared_before(study, anything):
    opened = OpenedCase(study.cases[0], LABELS, anything.preparation, STRICT)
    first = anything.probabilities(opened.prepared((T2,)))
    opened.prepared(SEQUENCES)
    assert np.array_equal(anything.probabilities(opened.prepared((T2,))), first)


def test_a_sequence_without_a_threshold_is_scored_without_the_baseline(study, anything):
    known = {region: {s: t for s, t in row.items() if s != T2} for region, row in THRESHOLDS.items()}
    found = _score(anything, study.cases[:1], subsets=[(T1,), (T2,), (T1, T2)], thresholds=known)
    assert {row.subset for row in found.scores if row.model != "m"} == {"T1", "T1+T2"}
    assert {row.subset for row in found.scores if row.model == "m"} == {"T1", "T2", "T1+T2"}
    assert found.failed == {}


def test_a_case_that_does_not_fit_into_memory_costs_no_other_its_scores(study, anything, monkeypatch):
    maps = Predictor.maps

    def short(self, case_id, prepared):
        if case_id == "P01":
            raise MemoryShort("P01: memory ran out while segmenting it")
        return maps(self, case_id, prepared)

    monkeypatch.setattr(Predictor, "maps", short)
    found = _score(anything, study.cases, subsets=[(T1,)])
    assert found.failed == {"P01": "P01: memory ran out while segmenting it"}
    assert {row.case for row in found.scores} == {"P02"}
