import numpy as np

from mindgap.evaluation.calibration import reliability_bins
from mindgap.regions import REGIONS
from mindgap.report.figures import to_png
from mindgap.report.reliability import draw_reliability
from mindgap.sequences import SUBSETS, format_subset


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


def test_every_subset_has_a_sign_of_its_own_beside_the_points():
    bins = {("T1", str(region)): (np.ones((3, 4)), np.ones((3, 4))) for region in REGIONS}
    pairs = [(format_subset(subset), str(region), 0.5, 0.5) for subset in SUBSETS for region in REGIONS]
    figure = draw_reliability(bins, pairs, title="a network")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [format_subset(subset) for subset in SUBSETS]
    signs = {(line.get_marker(), line.get_markerfacecolor()) for line in legend.get_lines()}
    assert len(signs) == len(SUBSETS)
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
