import numpy as np

from mindgap.evaluation.calibration import reliability_bins
from mindgap.regions import REGIONS
from mindgap.report.figures import to_png
from mindgap.report.reliability import draw_reliability


def test_a_calibrated_region_lies_on_the_diagonal_and_every_case_is_a_point():
    rng = np.random.default_rng(0)
    chances = rng.random(60_000)
    right = reliability_bins(chances, rng.random(60_000) < chances)
    wrong = reliability_bins(chances, rng.random(60_000) < chances**3)
    bins = {("T1", str(region)): (wrong, right) for region in REGIONS}
    pairs = [("T1", str(region), 0.5, 0.1 * n) for region in REGIONS for n in range(4)]
    figure = draw_reliability(bins, pairs, title="a network")
    before, after = figure.axes[0].lines[:2]
    assert np.abs(after.get_ydata() - after.get_xdata()).max() < 0.03
    assert (before.get_ydata() - before.get_xdata()).min() < -0.2
    assert [len(axes.collections[0].get_offsets()) for axes in figure.axes[3:]] == [4, 4, 4]
    assert to_png(figure).startswith(b"\x89PNG")
