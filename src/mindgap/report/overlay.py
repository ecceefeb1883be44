"""A prediction beside its reference, in radiological convention, on what the network saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from mindgap.regions import REGIONS, Region, region_mask

# Okabe and Ito's palette, told apart with the common colour-vision deficiencies; none is used twice.
REGION_COLOURS: dict[Region, str] = {Region.WT: "#56B4E9", Region.TC: "#E69F00", Region.ET: "#CC79A7"}
ERROR_COLOURS: dict[str, str] = {
    "error: missed tumour": "#D55E00",
    "error: false tumour": "#009E73",
    "error: wrong tissue": "#F0E442",
}
READER_PREFERENCE = ("FLAIR", "T2", "T1ce", "T1")
"""Where a whole tumour is easiest to see, best first."""

_INK, _FAINT = "#1d2733", "#8a94a0"
_FILL_ALPHA = 0.42
_WIDTH_INCH = 10.8


@dataclass(frozen=True)
class Picture:
    """One prediction to be looked at.

    Attributes:
        case_id: Name of the case.
        caption: Why it is shown, such as "best of 12: mean Dice 0.871".
        model: Who predicted.
        seen: Names of the sequences the network saw.
        images: Background images by sequence name, all on one grid (i j k); not only those the network saw.
        reference: Classes (0 background, 1 ET, 2 NCR, 3 ED), or None where there is no reference.
        predicted: Classes.
        affine: Voxel index to scanner mm (RAS+): tells left from right, and the voxel edges.
    """

    case_id: str
    caption: str
    model: str
    seen: tuple[str, ...]
    images: Mapping[str, NDArray[np.float32]]
    reference: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    affine: NDArray[np.float64]


class View(NamedTuple):
    """One plane through a volume as a viewer sees it; the rows run downwards, the columns to the right.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        columns: RAS axis shown from right to left on the screen, 0 = x, 1 = y.
        rows: RAS axis shown from bottom to top.
        through: RAS axis looked along.
        left: Letter on the left edge of the panel; the patient's right in radiological convention.
        right: Letter on the right edge.
    """

    name: str
    columns: int
    rows: int
    through: int
    left: str
    right: str


VIEWS = (
    View("axial", 0, 1, 2, "R", "L"),
    View("coronal", 0, 2, 1, "R", "L"),
    View("sagittal", 1, 2, 0, "A", "P"),
)


def unseen_for_reader(picture: Picture) -> str | None:
    """A sequence the network did not see that shows the tumour better than those it saw, or None."""
    ranked = [name for name in READER_PREFERENCE if name in picture.images]
    return ranked[0] if ranked and ranked[0] not in picture.seen else None


def to_ras(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Permute and flip axes so that they run right, anterior, superior; nothing is resampled.

    An oblique grid is shown along its own axes, each named by the anatomical axis it is closest to.
    """
    turned: NDArray[Any] = apply_orientation(volume, io_orientation(affine))
    return turned


def slice_of(volume: NDArray[Any], view: View, index: int) -> NDArray[Any]:
    """A plane of an RAS volume as rows and columns of a screen in radiological convention.

    Args:
        volume: RAS+ volume (x y z).
        view: Which plane.
        index: Place on the axis looked along.

    Returns:
        Row 0 is the top; column 0 is the patient's right, or anterior in the sagittal plane.
    """
    plane = np.take(volume, index, axis=view.through)  # the two other axes, in order: columns, rows
    screen: NDArray[Any] = plane.T[::-1, ::-1]
    return screen


def draw_overlay(picture: Picture) -> Figure:
    """Axial, coronal and sagittal planes through the tumour, and below the plain images and the errors.

    The axial plane is the one with the largest reference WT area (predicted, where there is no reference), and
    the two others run through its fullest row and column. Radiological convention: the patient's right is on
    the left of the screen.

    Args:
        picture: What to draw.
    """
    scene = _Scene.of(picture)
    main = _best_seen(picture)
    unseen = unseen_for_reader(picture)
    lower = [*_ranked(picture, picture.seen), *([unseen] if unseen else []), None]  # None: the errors

    sizes = [scene.extent_mm(view) for view in VIEWS]
    widths, heights = [width for width, _ in sizes], [height for _, height in sizes]
    inch_per_mm = _WIDTH_INCH / sum(widths)
    upper_inch = max(heights) * inch_per_mm + 0.3
    lower_inch = min(_WIDTH_INCH / len(lower) * heights[0] / widths[0], 1.1 * upper_inch) + 0.3
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05)
    figure = Figure(figsize=(_WIDTH_INCH + 0.2, upper_inch + lower_inch + 0.8), layout=engine, facecolor="white")
    outer = figure.add_gridspec(2, 1, height_ratios=(upper_inch, lower_inch))
    grid = outer[0].subgridspec(1, 3, width_ratios=widths)
    for column, view in enumerate(VIEWS):
        axes = figure.add_subplot(grid[0, column])
        _show_image(axes, scene, main, view)
        _show_fill(axes, scene, view)
        _show_contours(axes, scene, view)
        axes.set_title(f"{view.name} on {main or 'no image'}", fontsize=10, color=_INK, parse_math=False)
    grid = outer[1].subgridspec(1, len(lower))
    for column, name in enumerate(lower):
        _show_lower(figure.add_subplot(grid[0, column]), scene, picture, name)
    _add_legend(figure, has_reference=picture.reference is not None)
    headline = f"{picture.case_id}  ·  {picture.model}  ·  saw {', '.join(picture.seen)}"
    figure.suptitle(headline, fontsize=9, color=_FAINT, x=0.01, ha="left", parse_math=False)
    return figure


@dataclass(frozen=True)
class _Scene:
    """A picture turned to RAS+ and cut to the head, with the point the planes run through."""

    images: Mapping[str, NDArray[np.float32]]
    reference: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    point: tuple[int, int, int]

    @classmethod
    def of(cls, picture: Picture) -> _Scene:
        affine = picture.affine
        images = {
            name: to_ras(np.nan_to_num(image, posinf=0.0, neginf=0.0), affine) for name, image in picture.images.items()
        }
        predicted = to_ras(picture.predicted, affine)
        reference = None if picture.reference is None else to_ras(picture.reference, affine)
        box = _box_of_content(images, predicted, reference)
        predicted, reference = predicted[box], None if reference is None else reference[box]
        tumour = predicted if reference is None or not reference.any() else reference
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        order = np.argsort(io_orientation(affine)[:, 0])  # stored axis that became x, y, z
        x, y, z = edges[order].tolist()
        return cls(
            images={name: image[box] for name, image in images.items()},
            reference=reference,
            predicted=predicted,
            spacing_mm=(x, y, z),
            point=_fullest_point(tumour > 0),
        )

    def extent_mm(self, view: View) -> tuple[float, float]:
        """Width and height of a plane."""
        shape, edges = self.predicted.shape, self.spacing_mm
        return shape[view.columns] * edges[view.columns], shape[view.rows] * edges[view.rows]

    def cut(self, volume: NDArray[Any], view: View) -> NDArray[Any]:
        """The plane of a volume that is shown."""
        return slice_of(volume, view, self.point[view.through])


def _box_of_content(
    images: Mapping[str, NDArray[np.float32]],
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8] | None,
) -> tuple[slice, slice, slice]:
    content = predicted > 0
    if reference is not None:
        content = content | (reference > 0)
    for image in images.values():
        content = content | (image != image[0, 0, 0])  # what differs from the corner is head
    slices = []
    for axis in range(3):
        line = np.flatnonzero(content.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = (int(line[0]), int(line[-1])) if len(line) else (0, content.shape[axis] - 1)
        slices.append(slice(max(low - 2, 0), high + 3))
    return slices[0], slices[1], slices[2]


def _fullest_point(mask: NDArray[np.bool_]) -> tuple[int, int, int]:
    if not mask.any():
        x, y, z = (length // 2 for length in mask.shape)
        return x, y, z
    z = _middle_of_largest(mask.sum(axis=(0, 1)))
    return _middle_of_largest(mask[:, :, z].sum(axis=1)), _middle_of_largest(mask[:, :, z].sum(axis=0)), z


def _middle_of_largest(counts: NDArray[Any]) -> int:
    places = np.flatnonzero(counts == counts.max())
    return int(places[len(places) // 2])


def _ranked(picture: Picture, names: Sequence[str]) -> list[str]:
    known = [name for name in READER_PREFERENCE if name in names and name in picture.images]
    return known + [name for name in names if name in picture.images and name not in known]


def _best_seen(picture: Picture) -> str | None:
    ranked = _ranked(picture, picture.seen)
    return ranked[0] if ranked else None


def _place(axes: Axes, scene: _Scene, view: View) -> dict[str, Any]:
    width, height = scene.extent_mm(view)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", adjustable="box", anchor="N")
    axes.set_axis_off()
    return {"extent": (0.0, width, height, 0.0), "origin": "upper"}


def _show_image(axes: Axes, scene: _Scene, name: str | None, view: View) -> None:
    placed = _place(axes, scene, view)
    image = None if name is None else scene.images[name]
    if image is None:
        plane, low, high = np.zeros(scene.cut(scene.predicted, view).shape), 0.0, 1.0
    else:
        plane = scene.cut(image, view)
        inside = image[image != image[0, 0, 0]]
        low, high = np.percentile(inside, [0.5, 99.7]).tolist() if inside.size else (0.0, 1.0)
    axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest", **placed)
    halo: list[AbstractPathEffect] = [withStroke(linewidth=2.2, foreground="black")]
    for x, text, side in ((0.02, view.left, "left"), (0.98, view.right, "right")):
        axes.text(
            x, 0.5, text, transform=axes.transAxes, color="white", fontsize=11, weight="bold",
            ha=side, va="center",
        ).set_path_effects(halo)  # fmt: skip
    width, height = scene.extent_mm(view)
    if view.name == "axial" and width > 60:
        axes.plot([0.04 * width, 0.04 * width + 20], [0.965 * height] * 2, color="white", lw=2.2)
        axes.text(0.04 * width, 0.945 * height, "2 cm", color="white", fontsize=8).set_path_effects(halo)


def _tint(plane: NDArray[Any], colours: Mapping[int, str], alpha: float) -> NDArray[np.float64]:
    painted = np.zeros((*plane.shape, 4))
    for value, colour in colours.items():
        painted[plane == value] = (*to_rgb(colour), alpha)
    return painted


def _show_fill(axes: Axes, scene: _Scene, view: View) -> None:
    """The prediction: each class in the colour of the smallest region that holds it."""
    colours = {1: REGION_COLOURS[Region.ET], 2: REGION_COLOURS[Region.TC], 3: REGION_COLOURS[Region.WT]}
    plane = scene.cut(scene.predicted, view)
    axes.imshow(_tint(plane, colours, _FILL_ALPHA), interpolation="nearest", **_place(axes, scene, view))


def _show_contours(axes: Axes, scene: _Scene, view: View) -> None:
    """The reference: the outline of each region."""
    if scene.reference is None:
        return
    plane = scene.cut(scene.reference, view)
    width, height = _place(axes, scene, view)["extent"][1:3]
    for region in REGIONS:
        mask = region_mask(plane, region)
        if not mask.any() or mask.all():
            continue
        # Fourfold voxels keep the outline on the voxel edges, instead of cutting their corners.
        fine = np.repeat(np.repeat(mask, 4, axis=0), 4, axis=1).astype(np.float64)
        rows, columns = fine.shape
        x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
        for colour, line in (("black", 2.1), (REGION_COLOURS[region], 1.2)):
            axes.contour(x, y, fine, [0.5], colors=[colour], linewidths=line)


def _show_lower(axes: Axes, scene: _Scene, picture: Picture, name: str | None) -> None:
    view = VIEWS[0]
    if name is not None:
        _show_image(axes, scene, name, view)
        if name in picture.seen:
            axes.set_title(f"{name}, seen", fontsize=10, color=_INK, parse_math=False)
        else:
            _show_contours(axes, scene, view)
            title = f"{name}, NOT seen by network"
            axes.set_title(title, fontsize=10, color="#9c2a00", weight="bold", parse_math=False)
        return
    main = _best_seen(picture)
    _show_image(axes, scene, main, view)
    if scene.reference is None:
        axes.set_title("no reference, so no errors", fontsize=10, color=_FAINT)
        return
    a, b = scene.cut(scene.predicted, view), scene.cut(scene.reference, view)
    kind = np.select([(a == 0) & (b > 0), (a > 0) & (b == 0), (a > 0) & (b > 0) & (a != b)], [1, 2, 3], 0)
    colours = dict(enumerate(ERROR_COLOURS.values(), start=1))
    axes.imshow(_tint(kind, colours, 0.85), interpolation="nearest", **_place(axes, scene, view))
    axes.set_title("errors", fontsize=10, color=_INK)


def _add_legend(figure: Figure, *, has_reference: bool) -> None:
    names = {Region.WT: "WT (fill: oedema)", Region.TC: "TC (fill: necrotic core)", Region.ET: "ET"}
    handles: list[Any] = [Patch(color=REGION_COLOURS[region], label=names[region]) for region in REGIONS]
    handles.append(Patch(color=_FAINT, alpha=_FILL_ALPHA, label="fill: prediction"))
    if has_reference:
        handles.append(Line2D([], [], color=_FAINT, lw=2, label="line: reference"))
        handles += [Patch(color=colour, label=name) for name, colour in ERROR_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False, labelcolor=_INK)
