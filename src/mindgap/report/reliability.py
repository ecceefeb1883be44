"""Reliability curves: what probabilities and expected Dice said, against what was so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mindgap.regions import REGIONS
from mindgap.report.scene import FAINT, GRID, INK, REGION_COLOURS

_SIGNS = [*((marker, face) for face in (INK, "none") for marker in "osD^v<>"), ("*", INK)]
"""Marker and filling, one for each of the fifteen subsets; a star or a plus shows too little of its filling."""
_SIGN_POINTS2 = 26
_FEWEST_VOXELS = 50  # a bin of fewer says nothing


def draw_reliability(
    bins: Mapping[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]],
    pairs: Iterable[tuple[str, str, float, float]],
    *,
    title: str,
) -> Figure:
    """Above, the share of true voxels against probability, before and after temperature scaling; below, Dice.

    Args:
        bins: (subset, region) -> sums of ``reliability_bins`` (3 B) before and after; subsets are added up.
        pairs: Subset, region, expected and reached Dice of every case.
        title: Whose they are.
    """
    figure = Figure(figsize=(10.8, 7.4), layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(REGIONS))
    found = list(pairs)
    subsets = list(dict.fromkeys(subset for subset, *_ in found))
    for column, region in enumerate(REGIONS):
        mine = [pair for (_, name), pair in bins.items() if name == str(region)]
        above, below = panels[0][column], panels[1][column]
        for label, colour, style, place in (
            ("before", FAINT, "--", 0),
            ("after temperature", REGION_COLOURS[region], "-", 1),
        ):
            _plot_curve(above, np.sum([pair[place] for pair in mine], axis=0), label, colour, style)
        for number, subset in enumerate(subsets):
            points = [(e, d) for s, r, e, d in found if s == subset and r == str(region)]
            x, y = np.array(points, dtype=np.float64).T
            marker, face = _SIGNS[number]
            below.scatter(
                x, y, s=_SIGN_POINTS2, marker=marker, facecolors=face if face == "none" else REGION_COLOURS[region],
                edgecolors=REGION_COLOURS[region], linewidths=0.9, alpha=0.75, label=subset,
            )  # fmt: skip
        _frame(above, str(region), "probability", "share of true voxels")
        _frame(below, "", "expected Dice", "Dice")
        above.legend(fontsize=8, frameon=False, loc="upper left")
    handles = [
        Line2D([], [], linestyle="", marker=marker, markersize=6, color=INK, markerfacecolor=face, label=subset)
        for subset, (marker, face) in zip(subsets, _SIGNS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _plot_curve(axes: Axes, bins: NDArray[np.float64], label: str, colour: str, style: str) -> None:
    kept = bins[0] >= _FEWEST_VOXELS
    x, y = bins[1][kept] / bins[0][kept], bins[2][kept] / bins[0][kept]
    axes.plot(x, y, style, color=colour, marker="o", markersize=4, linewidth=1.5, label=label)


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.set_title(title, fontsize=11, color=INK, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
