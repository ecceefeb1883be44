"""A contact sheet: one axial plane per case with its mask, to look through a cohort at a glance."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from mindgap.data.case import Source
from mindgap.data.nifti import read_volume
from mindgap.data.volume import volume_of_voxel_ml
from mindgap.errors import InputError
from mindgap.progress import Progress, silent
from mindgap.regions import REGIONS, LabelConvention, Region, region_mask, target_from_label
from mindgap.report.figures import save_png
from mindgap.report.overlay import READER_PREFERENCE, RESEARCH
from mindgap.report.scene import (
    FAINT,
    INK,
    LIGHT_ALPHA,
    REGION_COLOURS,
    VIEWS,
    WARNING_COLOUR,
    Picture,
    Scene,
    show_fill,
    show_image,
    show_outline,
)

PER_PAGE, COLUMNS = 24, 6
_AXIAL = VIEWS[0]
_FRAME = "#D55E00"
_TILE_INCH = (2.1, 3.0)


@dataclass(frozen=True)
class SheetCase:
    """One case of a contact sheet, still on disk.

    Attributes:
        case_id: Its name.
        mask: The mask that was written.
        images: Sequences on the grid of the mask, by name; one of them lies below it.
        seen: What the network looked at.
        review: Whether a human should look at the mask.
    """

    case_id: str
    mask: Path
    images: Mapping[str, Source]
    seen: str
    review: bool = False


def write_sheets(
    cases: Sequence[SheetCase],
    path: Path,
    convention: LabelConvention,
    *,
    per_page: int = PER_PAGE,
    progress: Progress = silent,
) -> list[Path]:
    """Draw all cases, on several pages ``<name>-1.png``, ... where one does not hold them; old pages are removed.

    Masks are read back from the disk, one case at a time: the sheet shows what a reader of the files will find.

    Args:
        cases: Who is shown, in this order.
        path: The picture.
        convention: How labels are numbered in the masks.
        per_page: Cases on a page.
        progress: Called after each case.

    Returns:
        The pages.
    """
    pages = [cases[first : first + per_page] for first in range(0, len(cases), per_page)]
    places = [path] if len(pages) == 1 else [_page(path, number) for number in range(1, len(pages) + 1)]
    for number, (page, place) in enumerate(zip(pages, places, strict=False)):
        start = number * per_page

        def step(done: int, case_id: str, start: int = start) -> None:
            progress(start + done, len(cases), case_id)

        headline = f"{len(cases)} cases" + (f", page {number + 1} of {len(pages)}" if len(pages) > 1 else "")
        save_png(draw_sheet(page, convention, headline=headline, progress=step), place)
    numbered = re.compile(rf"{re.escape(path.stem)}-\d+{re.escape(path.suffix)}")
    for old in {path, *(other for other in path.parent.iterdir() if numbered.fullmatch(other.name))} - set(places):
        old.unlink(missing_ok=True)
    return places if pages else []


def draw_sheet(
    cases: Sequence[SheetCase],
    convention: LabelConvention,
    *,
    headline: str,
    progress: Callable[[int, str], None] = lambda done, case: None,
) -> Figure:
    """One page: for each case the axial plane with the largest tumour area, and its volumes.

    Radiological convention: the patient's right is on the left. Outlines are the prediction; below them lies
    the sequence, of those the network saw, on which a whole tumour is seen best. Tiles to be reviewed are framed.

    Args:
        cases: Who is shown.
        convention: How labels are numbered in the masks.
        headline: What the page is.
        progress: Called after each case.
    """
    columns = min(COLUMNS, max(len(cases), 3))
    rows = max(1, math.ceil(len(cases) / columns))
    size = (columns * _TILE_INCH[0], rows * _TILE_INCH[1] + 0.7)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (axes, case) in enumerate(zip(panels, cases, strict=False), start=1):
        _draw_case(axes, case, convention)
        progress(number, case.case_id)
    for axes in panels[len(cases) :]:
        axes.set_axis_off()
    names = {Region.WT: "whole tumour (WT)", Region.TC: "tumour core (TC)", Region.ET: "enhancing tumour (ET)"}
    handles = [Line2D([], [], color=REGION_COLOURS[region], lw=2, label=names[region]) for region in REGIONS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False, labelcolor=INK)
    flagged = sum(case.review for case in cases)
    said = f"{headline}  ·  the prediction on its largest axial plane  ·  patient's right on the left"
    said += f"  ·  {flagged} to be reviewed, framed" if flagged else ""
    figure.suptitle(f"{said}\n{RESEARCH}", fontsize=9, color=FAINT, x=0.01, ha="left", parse_math=False)
    return figure


def _draw_case(axes: Axes, case: SheetCase, convention: LabelConvention) -> None:
    title = _short(case.case_id)
    axes.set_axis_off()
    try:
        picture = _read(case, convention)
    except InputError as error:
        axes.set_title(f"{title}\ncannot be shown:\n{_short(error.found)}", fontsize=8, color=INK, parse_math=False)
        return
    scene = Scene.of(picture)
    (background,) = picture.images
    show_image(axes, scene, background, _AXIAL)
    show_fill(axes, scene, _AXIAL, alpha=LIGHT_ALPHA)
    show_outline(axes, scene, _AXIAL, scene.predicted, width_pt=0.9)
    corner: dict[str, Any] = {
        "transform": axes.transAxes,
        "ha": "right",
        "va": "bottom",
        "fontsize": 7,
        "color": "white",
    }
    axes.text(0.98, 0.02, background, path_effects=[withStroke(linewidth=2, foreground="black")], **corner)
    caption = f"{picture.caption}\nplease review" if case.review else picture.caption
    colour = WARNING_COLOUR if case.review else INK
    axes.set_title(f"{title}\n{caption}", fontsize=8, color=colour, parse_math=False, linespacing=1.3)
    if case.review:
        frame = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=_FRAME, linewidth=3)
        axes.add_patch(frame)


def _read(case: SheetCase, convention: LabelConvention) -> Picture:
    """The mask as it lies on the disk, on the best of the images.

    Raises:
        InputError: One of the two is not there any more, or does not fit the other.
    """
    name = next((name for name in READER_PREFERENCE if name in case.images), None)
    if name is None:
        raise InputError(
            case=case.case_id,
            expected="one of the images the network saw",
            found="none any more",
            mend="put the images back",
        )
    source = case.images[name]
    image = read_volume(source.path, case=case.case_id, channel=source.channel)
    mask = read_volume(case.mask, case=case.case_id)
    if mask.array.shape != image.array.shape:
        raise InputError(
            case=case.case_id,
            expected=f"a mask of shape {image.array.shape}",
            found=f"shape {mask.array.shape}",
            mend="segment the case again",
        )
    target = target_from_label(mask.array, convention, case.case_id)
    voxel_ml = volume_of_voxel_ml(mask.affine)
    volumes = (f"{region} {np.count_nonzero(region_mask(target, region)) * voxel_ml:.1f}" for region in REGIONS)
    caption = f"{' · '.join(volumes)} mL" if target.any() else "no tumour found"
    caption = f"{caption}\nsaw {case.seen}"
    return Picture(case.case_id, caption, "", tuple(case.images), {name: image.array}, None, target, mask.affine)


def _page(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _short(text: str, longest: int = 26) -> str:
    """The text, its middle left out where it is long: names of cases differ at their ends."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"
