"""A prediction beside its reference, in radiological convention, on what the network saw."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mindgap.regions import Region
from mindgap.report.scene import (
    ERROR_COLOURS,
    FAINT,
    FILL_ALPHA,
    INK,
    LIGHT_ALPHA,
    REGION_COLOURS,
    VIEWS,
    WARNING_COLOUR,
    Picture,
    Scene,
    show_contours,
    show_errors,
    show_fill,
    show_image,
    show_outline,
)

READER_PREFERENCE = ("FLAIR", "T2", "T1ce", "T1")
"""Where a whole tumour is easiest to see, best first."""

_WIDTH_INCH, _LETTERS = 10.8, 150
"""Of the planes, and of a line of the headline."""
_NAMES = {
    Region.WT: "WT, whole tumour (fill: oedema)",
    Region.TC: "TC, core (fill: necrosis)",
    Region.ET: "ET, enhancing",
}
RESEARCH = "research use only, not a medical device"


def unseen_for_reader(picture: Picture) -> str | None:
    """A sequence the network did not see that shows the tumour better than those it saw, or None."""
    ranked = [name for name in READER_PREFERENCE if name in picture.images]
    return ranked[0] if ranked and ranked[0] not in picture.seen else None


def draw_overlay(picture: Picture) -> Figure:
    """Axial, coronal and sagittal planes through the tumour, and below the plain images and the errors.

    Where there is no reference the prediction is an outline with a light fill, and the caption stands above the planes,
    with the reason why a human should look.

    The axial plane is the one with the largest reference WT area (predicted, where there is no reference), and
    the two others run through its fullest row and column. The planes are equally high, each with a scale of its own.
    Radiological convention: the patient's right is on the left of the screen.

    Args:
        picture: What to draw.
    """
    scene = Scene.of(picture)
    main = _best_seen(picture)
    unseen = unseen_for_reader(picture)
    known = [*_ranked(picture, picture.seen), *([unseen] if unseen else [])]
    lower = [*known, None] if picture.reference is not None or not known else known  # None: the errors

    widths = [width / height for width, height in map(scene.extent_mm, VIEWS)]  # of planes that are equally high
    upper_inch = _WIDTH_INCH / sum(widths) + 0.3
    lower_inch = min(_WIDTH_INCH / len(lower) / widths[0] + 0.3, upper_inch)
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05)
    figure = Figure(figsize=(_WIDTH_INCH + 0.2, upper_inch + lower_inch + 0.8), layout=engine, facecolor="white")
    outer = figure.add_gridspec(2, 1, height_ratios=(upper_inch, lower_inch))
    grid = outer[0].subgridspec(1, 3, width_ratios=widths)
    for column, view in enumerate(VIEWS):
        axes = figure.add_subplot(grid[0, column])
        show_image(axes, scene, main, view)
        if picture.reference is None:
            show_fill(axes, scene, view, alpha=LIGHT_ALPHA)
            show_outline(axes, scene, view, scene.predicted)
        else:
            show_fill(axes, scene, view)
            show_contours(axes, scene, view)
        axes.set_title(f"{view.name} on {main or 'no image'}", fontsize=10, color=INK, parse_math=False)
    grid = outer[1].subgridspec(1, len(lower))
    for column, name in enumerate(lower):
        _show_lower(figure.add_subplot(grid[0, column]), scene, picture, name)
    _add_legend(figure, has_reference=picture.reference is not None)
    colour = WARNING_COLOUR if picture.warning else FAINT
    figure.suptitle(_headline(picture), fontsize=9, color=colour, x=0.01, ha="left", parse_math=False)
    return figure


def _headline(picture: Picture) -> str:
    lines = [f"{picture.case_id}  ·  {picture.model}  ·  saw {', '.join(picture.seen)}  ·  {RESEARCH}"]
    if picture.reference is None and picture.caption:
        lines.append(picture.caption)
    if picture.warning:
        lines += textwrap.wrap(f"please review: {picture.warning}", _LETTERS)
    return "\n".join(lines)


def _ranked(picture: Picture, names: Sequence[str]) -> list[str]:
    known = [name for name in READER_PREFERENCE if name in names and name in picture.images]
    return known + [name for name in names if name in picture.images and name not in known]


def _best_seen(picture: Picture) -> str | None:
    ranked = _ranked(picture, picture.seen)
    return ranked[0] if ranked else None


def _show_lower(axes: Axes, scene: Scene, picture: Picture, name: str | None) -> None:
    view = VIEWS[0]
    if name is not None:
        show_image(axes, scene, name, view)
        if name in picture.seen:
            axes.set_title(f"{name}, seen", fontsize=10, color=INK, parse_math=False)
        else:
            show_contours(axes, scene, view)
            title = f"{name}, NOT seen by network"
            axes.set_title(title, fontsize=10, color=WARNING_COLOUR, weight="bold", parse_math=False)
        return
    main = _best_seen(picture)
    show_image(axes, scene, main, view)
    if scene.reference is None:
        axes.set_title("no reference, so no errors", fontsize=10, color=FAINT)
        return
    show_errors(axes, scene, view)
    axes.set_title("errors", fontsize=10, color=INK)


def _add_legend(figure: Figure, *, has_reference: bool) -> None:
    handles: list[Any] = [
        Patch(
            facecolor=to_rgba(colour, 1.0 if has_reference else 2 * LIGHT_ALPHA), edgecolor=colour, label=_NAMES[region]
        )
        for region, colour in REGION_COLOURS.items()
    ]
    if has_reference:
        handles.append(Patch(color=FAINT, alpha=FILL_ALPHA, label="fill: prediction"))
        handles.append(Line2D([], [], color=FAINT, lw=2, label="line: reference"))
        handles += [Patch(color=colour, label=name) for name, colour in ERROR_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False, labelcolor=INK)
