import numpy as np
import pytest

from mindgap.evaluation.latents import centroid_gap, gap_metrics, linear_cka, paired_gap, probe_accuracy


def cases(make, count=6, voxels=400):
    """Latents of some cases; ``make`` turns a generator and (voxels, 3) common numbers into rows per sequence."""
    found = []
    for case in range(count):
        rng = np.random.default_rng(case)
        found.append(np.stack(make(rng, rng.normal(size=(voxels, 3)))).astype(np.float32))
    return found


SAME = cases(lambda rng, common: [common, common, common])
UNRELATED = cases(lambda rng, common: [rng.normal(size=common.shape) for _ in range(3)])
SHIFTED = cases(lambda rng, common: [common, common + 3, common - 3])


def test_equal_latents_have_no_gap():
    found = gap_metrics(SAME)
    assert found["paired_gap"] == 0
    assert found["centroid_gap"] == pytest.approx(0, abs=1e-12)
    assert found["probe_accuracy"] == pytest.approx(1 / 3, abs=0.02)
    assert found["cka"] == pytest.approx(1)


def test_unrelated_latents_of_one_distribution():
    found = gap_metrics(UNRELATED)
    assert found["paired_gap"] == pytest.approx(1, rel=0.05)
    assert found["centroid_gap"] < 0.01
    assert found["probe_accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["cka"] < 0.05


def test_shifted_latents_are_told_apart_by_a_line_though_paired_exactly():
    found = gap_metrics(SHIFTED)
    assert found["centroid_gap"] == pytest.approx(6, rel=0.05)  # variance of (0, 3, -3) over 1
    assert found["probe_accuracy"] > 0.9
    assert found["cka"] == pytest.approx(1)
    assert found["paired_gap"] == pytest.approx((9 + 9 + 36) / 3 / 2, rel=0.05)


def test_scale_and_rotation_change_nothing_they_should_not():
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turned = cases(lambda rng, common: [common, common @ turn, 5 * common])
    assert linear_cka(turned) == pytest.approx(1)
    for measure in (paired_gap, centroid_gap, probe_accuracy, linear_cka):
        assert measure([0.01 * latents for latents in SHIFTED]) == pytest.approx(measure(SHIFTED), rel=1e-4)


def test_a_probe_is_tested_on_other_cases_than_it_was_fitted_on():
    """Each case has its own direction of difference: known by heart it would be told, from other cases it cannot."""
    rng = np.random.default_rng(0)
    peculiar = []
    for case in range(2):
        step = np.zeros(40)
        step[case * 20 : case * 20 + 20] = 10
        common = rng.normal(size=(200, 40))
        peculiar.append(np.stack([common, common + step]))
    assert probe_accuracy(peculiar) == pytest.approx(0.5, abs=0.05)
    assert probe_accuracy([peculiar[0], peculiar[0]]) > 0.95


def test_absent_sequences_and_single_cases_are_left_out():
    lacking = [latents.copy() for latents in SHIFTED]
    for latents in lacking[::2]:
        latents[1] = np.nan
    found = gap_metrics(lacking)
    assert found["centroid_gap"] == pytest.approx(6, rel=0.1)
    assert all(np.isfinite(value) for value in found.values())
    assert "probe_accuracy" not in gap_metrics(SHIFTED[:1])
    assert gap_metrics([latents[:1] for latents in SHIFTED]) == {}
    assert gap_metrics([]) == {}
