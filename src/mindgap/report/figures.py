"""Pictures of predictions, of learning and of scores; every function returns a figure and keeps no state."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mindgap.evaluation.scores import Score, values_of
from mindgap.evaluation.summary import SummaryRow, summarise
from mindgap.files import write_aside
from mindgap.regions import REGIONS
from mindgap.report.overlay import draw_overlay
from mindgap.report.scene import FAINT, GRID, INK, REGION_COLOURS, Picture

__all__ = [
    "ANCHOR_PREFIX",
    "REGION_COLOURS",
    "Picture",
    "draw_learning",
    "draw_overlay",
    "draw_scores",
    "save_png",
    "to_png",
]

ANCHOR_PREFIX = "anchor_weight/"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = {"WT": "o", "TC": "s", "ET": "^"}
_SMOOTHING_SHARE = 40  # the window of the running mean is a fortieth of the run


def draw_learning(terms: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> Figure:
    """How a run learned: loss terms, validation Dice, learning rate, anchor weights, as far as logged.

    All panels show the same steps, from 0 to the last one logged.

    Args:
        terms: Lines of terms.jsonl: "step", "lr" and the named terms.
        validations: Lines of validations.jsonl: "step", WT, TC, ET, "mean" and perhaps anchor weights.
    """
    anchors = validations if _keys(validations, ANCHOR_PREFIX) else terms
    panels: list[tuple[Any, Sequence[Mapping[str, Any]]]] = []
    if terms:
        panels.append((_plot_terms, terms))
    if validations:
        panels.append((_plot_validations, validations))
    if any("lr" in line for line in terms):
        panels.append((_plot_learning_rate, terms))
    if _keys(anchors, ANCHOR_PREFIX):
        panels.append((_plot_anchors, anchors))
    columns = min(2, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / 2))
    figure = Figure(figsize=(5.4 * columns, 3.1 * rows), layout="constrained", facecolor="white")
    grid = figure.add_gridspec(rows, columns)
    spare = rows * columns - len(panels)  # of three the first is as wide as the two below it
    last = max((line.get("step", 0) for line in (*terms, *validations)), default=0)
    for place, (plot, lines) in enumerate(panels):
        row, column = divmod(place + (spare if place else 0), columns)
        axes = figure.add_subplot(grid[row, :] if spare and not place else grid[row, column])
        plot(axes, lines)
        _tidy(axes)
        axes.set_xlim(-0.02 * last, max(1.02 * last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
        axes.set_xlabel("optimiser step", fontsize=9)
    if not panels:
        figure.text(0.5, 0.5, "nothing was logged", ha="center", va="center", color=FAINT)
    return figure


def draw_scores(scores: Sequence[Score]) -> Figure:
    """One dot per case for every model, subset and region, with the mean and its 95 % interval.

    Args:
        scores: Rows of scores.csv.
    """
    rows = summarise(scores)
    figure = Figure(figsize=(10.8, 1.1 + 0.42 * max(len(rows), 1)), layout="constrained", facecolor="white")
    if not rows:
        figure.text(0.5, 0.5, "no scores", ha="center", va="center", color=FAINT)
        return figure
    panels = figure.subplots(1, len(REGIONS), sharey=True, sharex=True, squeeze=False)[0]
    for axes, region in zip(panels, map(str, REGIONS), strict=True):
        for place, row in enumerate(rows):
            _plot_cases(axes, place, row, region, values_of(scores, model=row.model, subset=row.subset, region=region))
        axes.set_title(region, fontsize=11, color=INK, weight="bold")
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("Dice", fontsize=9)
        _tidy(axes)
    panels[0].set_yticks(range(len(rows)))
    panels[0].set_yticklabels([_name(row) for row in rows], parse_math=False)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def to_png(figure: Figure, *, dpi: int = 110, software: str | None = None) -> bytes:
    """The figure as the bytes of a PNG file.

    Args:
        figure: Any figure of this file.
        dpi: Pixels per inch.
        software: What the file says it was made by; nothing by default.
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=dpi, format="png", metadata={"Software": software})
    return buffer.getvalue()


def save_png(figure: Figure, path: Path, *, software: str | None = None) -> None:
    """Write the figure atomically.

    Args:
        figure: Any figure of this file.
        path: The file.
        software: As :func:`to_png`.

    Raises:
        MindgapError: The place cannot be written.
    """
    data = to_png(figure, software=software)
    with write_aside(path) as aside:
        aside.write_bytes(data)


def _name(row: SummaryRow) -> str:
    return f"baseline: {row.model} · {row.subset}" if row.is_baseline else f"{row.model} · {row.subset}"


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _plot_cases(axes: Axes, place: int, row: SummaryRow, region: str, values: Mapping[str, float]) -> None:
    interval = row.dice[region]
    colour = FAINT if row.is_baseline else REGION_COLOURS[next(r for r in REGIONS if str(r) == region)]
    height = place + 0.22 * np.sin(2.4 * np.arange(len(values)))  # spread, and the same in every region
    face = "none" if row.is_baseline else colour
    axes.scatter(list(values.values()), height, s=17, facecolors=face, edgecolors=colour, alpha=0.85, linewidths=0.9)
    if math.isfinite(interval.low):
        axes.plot([interval.low, interval.high], [place, place], color=INK, linewidth=2.0, solid_capstyle="butt")
    if interval.n > 1:  # of a single case the dot is the mean, and would be hidden
        axes.plot([interval.mean], [place], "D", color=INK, markersize=5.5, markeredgecolor="white")


def _keys(lines: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line if key.startswith(prefix)))


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over a centred window of finite values that is cut, not padded, at the ends."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="full")
    count = np.convolve(finite.astype(np.float64), kernel, mode="full")
    start = (window - 1) // 2
    kept = slice(start, start + len(values))
    smooth: NDArray[np.float64] = np.where(count[kept] > 0, total[kept] / np.maximum(count[kept], 1.0), np.nan)
    return smooth


def _plot_terms(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    names = [key for key in _keys(lines, "") if key not in {"step", "lr"} and "/" not in key]
    window = max(1, len(lines) // _SMOOTHING_SHARE)
    lowest = math.inf
    for place, name in enumerate(sorted(names, key=lambda name: name != "loss")):
        steps, values = _series(lines, name)
        if len(values) == 0:
            continue
        colour = INK if name == "loss" else _LINES[place % len(_LINES)]
        axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.7)
        axes.plot(steps, _running_mean(values, window), color=colour, linewidth=1.6, label=name)
        finite = values[np.isfinite(values)]
        lowest = min(lowest, float(finite.min()) if len(finite) else math.inf)
    if 0 < lowest < math.inf:
        axes.set_yscale("log")
    axes.set_title(f"Training terms (bold: mean of {window} logged)", fontsize=10, color=INK, loc="left")
    if names:
        axes.legend(fontsize=8, frameon=False)


def _plot_validations(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for region in REGIONS:
        steps, values = _series(lines, str(region))
        style: dict[str, Any] = {"marker": _MARKERS[str(region)], "markersize": 4.5, "color": REGION_COLOURS[region]}
        axes.plot(steps, values, label=str(region), **style)
    steps, values = _series(lines, "mean")
    if len(values):
        axes.plot(steps, values, color=INK, linewidth=1.2, linestyle="--", label="mean")
    axes.set_ylim(0, 1)
    axes.set_title("Dice on the validation cases", fontsize=10, color=INK, loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower right")


def _plot_learning_rate(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(*_series(lines, "lr"), color=INK, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_title("Learning rate", fontsize=10, color=INK, loc="left")


def _plot_anchors(axes: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for place, key in enumerate(_keys(lines, ANCHOR_PREFIX)):
        axes.plot(
            *_series(lines, key), marker="osD^v"[place % 5], markersize=4, linewidth=1.4,
            color=_LINES[place % len(_LINES)], label=key.removeprefix(ANCHOR_PREFIX),
        )  # fmt: skip
    axes.set_title("Anchor weights (not a measure of information)", fontsize=10, color=INK, loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=4)
