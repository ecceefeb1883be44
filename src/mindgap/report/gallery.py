"""Figures that put several networks side by side: their masks, their latents, and t-SNE of the latents."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mindgap.regions import REGIONS
from mindgap.report.scene import (
    ERROR_COLOURS,
    FAINT,
    INK,
    REGION_COLOURS,
    VIEWS,
    Picture,
    Scene,
    place,
    show_contours,
    show_errors,
    show_fill,
    show_image,
)

SEQUENCE_COLOURS = {"T1": "#0072B2", "T1ce": "#D55E00", "T2": "#009E73", "FLAIR": "#CC79A7"}
"""Okabe and Ito's, as everywhere."""
NOT_RUN = "not run"
_MARKERS = {"T1": "o", "T1ce": "^", "T2": "s", "FLAIR": "D"}
_AXIAL = VIEWS[0]
_LETTERS_PER_INCH, _LINE_INCHES = 14.0, 0.17  # of 9 point text


@dataclass(frozen=True)
class Embedding:
    """Latents of one network in the plane, and measures of the gap in all their dimensions.

    Attributes:
        points: One row per voxel and sequence (N, 2).
        sequences: Whose latent each row is (N).
        measures: Names and values, as they are to be read.
    """

    points: NDArray[np.floating]
    sequences: Sequence[str]
    measures: Mapping[str, str]


def draw_embeddings(panels: Mapping[str, Embedding | None], *, caption: str) -> Figure:
    """One panel per network, one colour and marker per sequence, the measures of the gap below each.

    Args:
        panels: By title; None says that the network was not run.
        caption: What was embedded and how.
    """
    figure = _figure(3.5 * len(panels), 5.0, caption)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, embedding) in zip(axes, panels.items(), strict=True):
        panel.set_title(title, fontsize=11, color=INK)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_box_aspect(1)
        panel.spines[:].set_color(FAINT)
        if embedding is None:
            _say_not_run(panel)
            continue
        names = np.array(embedding.sequences)
        order = np.random.default_rng(0).permutation(len(names))  # no sequence lies on top of the others
        for name, colour in SEQUENCE_COLOURS.items():
            rows = order[names[order] == name]
            panel.scatter(*embedding.points[rows].T, s=7, c=colour, marker=_MARKERS[name], alpha=0.55, linewidths=0)
        text = "\n".join(f"{name}: {value}" for name, value in embedding.measures.items())
        panel.set_xlabel(text, fontsize=9, color=INK, loc="left", linespacing=1.4)
    handles = [
        Line2D([], [], ls="", marker=_MARKERS[name], color=colour, label=name)
        for name, colour in SEQUENCE_COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def draw_masks(rows: Mapping[str, Mapping[str, Picture | None]], *, background: str, caption: str) -> Figure:
    """Two lines per case: the reference and every network's mask, and below them the image and every network's errors.

    The axial plane with the largest reference WT, the patient's right on the left.

    Args:
        rows: Case captions, then networks by title; None says that the network was not run.
        background: Name of the image below the masks.
        caption: What is seen.
    """
    titles = list(next(iter(rows.values())))
    columns, lines = 1 + len(titles), 2 * len(rows)
    figure = _figure(2.5 * columns, 2.75 * lines + 1.2, caption)
    grid = figure.subplots(lines, columns, squeeze=False)
    for number, (name, row) in enumerate(rows.items()):
        upper, lower = grid[2 * number], grid[2 * number + 1]
        some = Scene.of(next(picture for picture in row.values() if picture is not None))
        assert some.reference is not None
        show_image(upper[0], some, background, _AXIAL)
        show_fill(upper[0], replace(some, predicted=some.reference), _AXIAL)
        upper[0].set_title("reference", fontsize=10, color=INK)
        show_image(lower[0], some, background, _AXIAL)
        lower[0].set_title(name, fontsize=8.5, color=FAINT, parse_math=False)
        for column, (title, picture) in enumerate(row.items(), start=1):
            _show_mask_and_errors((upper[column], lower[column]), title, picture, background)
    names = {"WT": "WT (fill: oedema)", "TC": "TC (fill: necrotic core)", "ET": "ET"}
    handles = [Patch(color=REGION_COLOURS[region], label=names[str(region)]) for region in REGIONS]
    handles += [Patch(color=colour, label=name) for name, colour in ERROR_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, columns), fontsize=9, frameon=False)
    return figure


def _show_mask_and_errors(panels: tuple[Axes, Axes], title: str, picture: Picture | None, background: str) -> None:
    panels[0].set_title(title, fontsize=10, color=INK)
    if picture is None:
        for panel in panels:
            panel.set_axis_off()
            _say_not_run(panel)
        return
    scene = Scene.of(picture)
    for panel in panels:
        show_image(panel, scene, background, _AXIAL)
    show_fill(panels[0], scene, _AXIAL)
    show_contours(panels[0], scene, _AXIAL)
    show_errors(panels[1], scene, _AXIAL)
    panels[1].set_title(picture.caption, fontsize=8.5, color=FAINT, parse_math=False)


def draw_latent_maps(
    picture: Picture, maps: Mapping[str, Mapping[str, NDArray[np.float32]] | None], *, caption: str
) -> Figure:
    """Latents of one case as colours: the images above, below them one line per network and one column per sequence.

    Args:
        picture: The case on the grid of the maps, with its reference.
        maps: By network's title, then sequence: colours (i j k 3), 0 to 1, the same for the same latent whatever the
            sequence; None says that the network was not run.
        caption: How latents became colours.
    """
    channels = {
        f"{title}/{name}/{c}": values[..., c]
        for title, row in maps.items()
        for name, values in (row or {}).items()
        for c in range(3)
    }
    scene = Scene.of(replace(picture, images={**picture.images, **channels}))
    names = list(picture.images)
    lines = 1 + len(maps)
    figure = _figure(2.5 * len(names) + 0.4, 2.75 * lines + 0.2, caption)
    grid = figure.subplots(lines, len(names), squeeze=False)
    for panel, name in zip(grid[0], names, strict=True):
        show_image(panel, scene, name, _AXIAL)
        panel.set_title(name, fontsize=10, color=INK)
    for line, (title, row) in zip(grid[1:], maps.items(), strict=True):
        for panel, name in zip(line, names, strict=True):
            placed = place(panel, scene, _AXIAL)
            if row is None:
                _say_not_run(panel)
            else:
                planes = [scene.cut(scene.images[f"{title}/{name}/{c}"], _AXIAL) for c in range(3)]
                panel.imshow(np.stack(planes, axis=-1), interpolation="nearest", **placed)
                show_contours(panel, scene, _AXIAL)
        line[0].text(-0.04, 0.5, title, transform=line[0].transAxes, rotation=90, ha="right", va="center", color=INK)
    return figure


def _figure(width: float, height: float, caption: str) -> Figure:
    """An empty figure, in inches, whose caption is wrapped to its width and adds to its height."""
    lines = textwrap.wrap(" ".join(caption.split()), int(_LETTERS_PER_INCH * width))
    size = (width, height + _LINE_INCHES * len(lines))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    figure.suptitle("\n".join(lines), fontsize=9, color=FAINT, x=0.01, ha="left", parse_math=False)
    return figure


def _say_not_run(axes: Axes) -> None:
    axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color=FAINT)
