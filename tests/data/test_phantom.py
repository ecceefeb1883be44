"""The embedded cohort: laws of the tree, of the tumours, of the signal equations, and how hard it is."""

import json
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from mindgap.data import phantom
from mindgap.data.phantom import affine_of, draw_case, make_case, write_cohort
from mindgap.data.physics import null_time_ms
from mindgap.data.volume import orientation_of, spacing_of
from mindgap.errors import SettingError
from mindgap.regions import CLASS_COUNT, Region, region_mask
from mindgap.sequences import SEQUENCES, Sequence

SEED, CASES, SPACING_MM, BINS = 1, 16, 4.0, 255


@dataclass(frozen=True)
class Summary:
    """What the statistics need of a case; the images themselves are let go."""

    parameters: dict
    histograms: dict


def _histograms(image, target):
    """Counts per grey value (brain clipped at its 0.5 and 99.5 percentiles) of the brain and of WT in it."""
    brain = image > 0
    values, whole = image[brain], region_mask(target, Region.WT)
    low, high = np.percentile(values, [0.5, 99.5])
    bins = np.clip((values - low) / (high - low) * BINS, 0, BINS - 1).astype(int)
    return np.bincount(bins, minlength=BINS), np.bincount(bins[whole[brain]], minlength=BINS), whole.sum()


def _best_threshold_dice(histograms):
    """Mean Dice over cases of the one threshold, and the one direction, that serves the cohort best."""
    best = 0.0
    for step in (1, -1):
        dice = [2 * np.cumsum(whole[::step]) / (np.cumsum(brain[::step]) + size) for brain, whole, size in histograms]
        best = max(best, float(np.mean(dice, axis=0).max()))
    return best


@pytest.fixture(scope="session")
def cohort():
    summaries = []
    for index in range(CASES):
        case = make_case(SEED, index, spacing_mm=SPACING_MM)
        histograms = {sequence: _histograms(image, case.target) for sequence, image in case.images.items()}
        summaries.append(Summary(case.parameters, histograms))
    return summaries


@pytest.fixture(scope="session")
def case():
    return make_case(SEED, 1, spacing_mm=SPACING_MM)


def test_same_arguments_give_the_same_case(case):
    again = make_case(SEED, 1, spacing_mm=SPACING_MM)
    assert again.parameters == case.parameters
    assert np.array_equal(again.target, case.target)
    for sequence in SEQUENCES:
        assert np.array_equal(again.images[sequence], case.images[sequence])


def test_seed_and_index_make_another_case(case):
    assert draw_case(SEED, 1) != draw_case(SEED, 2)
    assert draw_case(SEED, 1) != draw_case(SEED + 1, 1)
    assert not np.array_equal(make_case(SEED + 1, 1, spacing_mm=SPACING_MM).target, case.target)


def test_the_same_patient_at_another_spacing(case):
    fine = make_case(SEED, 1, spacing_mm=2.0).parameters
    for region in Region:
        assert fine["volume_ml"][region] == pytest.approx(case.parameters["volume_ml"][region], rel=0.15)
    assert fine["brain_ml"] == pytest.approx(case.parameters["brain_ml"], rel=0.03)


def test_case_is_skull_stripped_whole_numbers_on_one_grid(case):
    outside = case.images[Sequence.T1] == 0
    for image in case.images.values():
        assert image.dtype == np.float32
        assert image.shape == case.target.shape == (60, 60, 39)
        assert np.array_equal(image == 0, outside)
        assert np.array_equal(image, np.rint(image))
        assert 0 <= image.min() < image.max() < np.iinfo(np.int16).max
    assert case.target.dtype == np.uint8
    assert not case.target[outside].any()
    assert 1000 < case.parameters["brain_ml"] < 2100


def test_parameters_survive_json(case):
    assert json.loads(json.dumps(case.parameters)) == case.parameters


def test_all_classes_and_nested_regions(case):
    assert set(np.unique(case.target)) == set(range(CLASS_COUNT))
    whole, core, enhancing = (region_mask(case.target, region) for region in Region)
    assert (enhancing <= core).all()
    assert (core <= whole).all()


def test_every_enhancing_tumour_has_all_parts(cohort):
    for summary in cohort:
        volume_ml = summary.parameters["volume_ml"]
        assert 0 < volume_ml["TC"] < volume_ml["WT"]
        if summary.parameters["grade"] == "HGG":
            assert 0 < volume_ml["ET"] < volume_ml["TC"]
        else:
            assert volume_ml["ET"] == 0


def test_one_case_in_five_has_no_enhancing_tumour():
    spared = np.array([not draw_case(SEED, index).tumour.enhancing for index in range(50)])
    assert (spared.reshape(10, 5).sum(axis=1) == 1).all()
    assert len(set(spared.reshape(10, 5).argmax(axis=1))) > 2


def test_whole_tumour_volumes(cohort):
    volume_ml = [summary.parameters["volume_ml"]["WT"] for summary in cohort]
    assert 60 <= np.median(volume_ml) <= 110
    assert np.percentile(volume_ml, 5) >= 10
    assert np.percentile(volume_ml, 95) <= 250


@pytest.mark.parametrize(
    ("sequence", "low", "high"),
    [
        (Sequence.FLAIR, 0.45, 0.70),
        (Sequence.T2, 0.2, 0.5),
        (Sequence.T1, 0.0, 0.25),
        (Sequence.T1CE, 0.0, 0.25),
    ],
)
def test_neither_trivial_nor_impossible(cohort, sequence, low, high):
    dice = _best_threshold_dice([summary.histograms[sequence] for summary in cohort])
    assert low <= dice <= high


def test_inversion_time_is_at_the_null_of_csf():
    for index in range(50):
        physics = draw_case(SEED, index).physics
        scan = physics.scans[Sequence.FLAIR]
        csf_t1_ms = next(value.t1_ms for tissue, value in physics.relaxation.items() if "fluid" in tissue.value)
        assert scan.ti_ms == pytest.approx(null_time_ms(csf_t1_ms, scan.tr_ms), rel=0.03)


def test_contrast_order(cohort):
    for summary in cohort:
        signal = summary.parameters["mean_signal"]
        white, grey, csf, oedema = (
            {sequence: signal[sequence][tissue] for sequence in signal}
            for tissue in ("white matter", "grey matter", "cerebrospinal fluid", "oedema")
        )
        assert csf["FLAIR"] < 0.8 * white["FLAIR"]
        assert white["FLAIR"] < oedema["FLAIR"]
        assert white["T1"] > grey["T1"] > csf["T1"]
        assert white["T2"] < grey["T2"] < csf["T2"]
        if summary.parameters["grade"] == "HGG":
            assert signal["T1ce"]["enhancing tumour"] > white["T1ce"]
    ratio = [s.parameters["mean_signal"]["FLAIR"] for s in cohort]
    assert 1.0 < np.median([tissue["grey matter"] / tissue["white matter"] for tissue in ratio]) < 1.3


def test_tree_is_that_of_brats_2018(tmp_path):
    calls = []
    folders = write_cohort(
        tmp_path, cases=5, seed=7, spacing_mm=6.0, progress=lambda done, every: calls.append((done, every))
    )
    assert [folder.name for folder in folders] == [f"Phantom_7_{index:03d}" for index in range(5)]
    assert sorted(folder.parent.name for folder in folders) == ["HGG"] * 4 + ["LGG"]
    assert calls == [(n, 5) for n in range(1, 6)]
    summary = json.loads((tmp_path / "phantom.json").read_text())
    assert list(summary["cases"]) == [folder.name for folder in folders]
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        assert names == {f"{folder.name}_{end}.nii.gz" for end in ("t1", "t2", "t1ce", "flair", "seg")}
        for name in names:
            image = nib.load(folder / name)
            assert orientation_of(image.affine) == "LPS"
            assert spacing_of(image.affine) == pytest.approx((6.0, 6.0, 6.0))
            assert image.get_data_dtype() == (np.uint8 if "_seg" in name else np.int16)
        labels = set(np.unique(nib.load(folder / f"{folder.name}_seg.nii.gz").dataobj))
        assert labels <= {0, 1, 2, 4}
        assert (4 in labels) == (folder.parent.name == "HGG")


def test_files_hold_what_memory_holds(tmp_path):
    (folder,) = write_cohort(tmp_path, cases=1, seed=SEED, spacing_mm=SPACING_MM, first=1)
    case = make_case(SEED, 1, spacing_mm=SPACING_MM)
    image = nib.load(folder / f"{folder.name}_t1ce.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), case.images[Sequence.T1CE])
    assert np.array_equal(image.affine, case.affine)
    assert json.loads((tmp_path / "phantom.json").read_text())["cases"][case.case_id] == case.parameters


def test_finished_cases_are_not_made_again(tmp_path, monkeypatch):
    first = write_cohort(tmp_path, cases=2, seed=3, spacing_mm=6.0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    lost = first[1] / f"{first[1].name}_seg.nii.gz"
    lost.unlink()
    made = []
    real = make_case
    monkeypatch.setattr(phantom, "make_case", lambda seed, index, **kw: made.append(index) or real(seed, index, **kw))
    write_cohort(tmp_path, cases=3, seed=3, spacing_mm=6.0)
    assert made == [1, 2]
    assert all(path.stat().st_mtime_ns == before[path] for path in first[0].iterdir())
    assert lost.is_file()


def test_workers_make_the_same_files(tmp_path):
    one = write_cohort(tmp_path / "one", cases=2, seed=5, spacing_mm=6.0)
    two = write_cohort(tmp_path / "two", cases=2, seed=5, spacing_mm=6.0, workers=2)
    for left, right in zip(one, two, strict=True):
        for path in left.iterdir():
            same = np.asarray(nib.load(path).dataobj) == np.asarray(nib.load(right / path.name).dataobj)
            assert same.all()
    assert (tmp_path / "one/phantom.json").read_text() == (tmp_path / "two/phantom.json").read_text()


def test_geometry_is_that_of_brats_at_one_millimetre():
    affine = affine_of(1.0)
    assert np.array_equal(affine, np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert phantom.box_of(1.0)[0] == (240, 240, 155)


@pytest.mark.parametrize("spacing_mm", [0.4, 7.0, float("nan")])
def test_impossible_spacing(tmp_path, spacing_mm):
    with pytest.raises(SettingError, match="out of range"):
        make_case(0, 0, spacing_mm=spacing_mm)
    with pytest.raises(SettingError, match="out of range"):
        write_cohort(tmp_path, cases=1, seed=0, spacing_mm=spacing_mm)


def test_impossible_numbers(tmp_path):
    with pytest.raises(SettingError, match="0 or more"):
        make_case(-1, 0)
    with pytest.raises(SettingError, match="at least 1"):
        write_cohort(tmp_path, cases=0, seed=0)


def test_one_folder_holds_one_spacing(tmp_path):
    write_cohort(tmp_path, cases=1, seed=3, spacing_mm=6.0)
    with pytest.raises(SettingError, match="another folder"):
        write_cohort(tmp_path, cases=1, seed=3, spacing_mm=5.0)
