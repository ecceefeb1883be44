from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
    size = figure.axes[-1].collections[0].get_sizes()[0]
    signs = [inked(line.get_marker(), size, filled=line.get_markerfacecolor() != "none") for line in legend.get_lines()]
    assert min(np.abs(one - other).sum() for one, other in combinations(signs, 2)) > 12, "as they are printed"
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)


def inked(marker, size, *, filled):
    """How dark the pixels of a point are at the resolution of the pictures."""
    figure = Figure(figsize=(0.2, 0.2), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.scatter([0], [0], s=size, marker=marker, facecolors="k" if filled else "none", edgecolors="k", linewidths=0.9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return 1 - np.asarray(canvas.buffer_rgba())[..., 0] / 255
