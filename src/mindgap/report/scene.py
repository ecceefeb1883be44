"""Planes through a case in radiological convention: image, prediction, reference, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
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
INK, FAINT, GRID = "#1d2733", "#8a94a0", "#e3e7eb"
"""Of text, of what is less than text, and of lines behind curves."""
WARNING_COLOUR = "#9c2a00"
FILL_ALPHA, LIGHT_ALPHA = 0.42, 0.14
"""Of a prediction beside the outline of its reference, and within its own: what is judged is the tumour below it."""


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
        warning: Why a human should look at the mask; empty where nothing speaks for it.
    """

    case_id: str
    caption: str
    model: str
    seen: tuple[str, ...]
    images: Mapping[str, NDArray[np.float32]]
    reference: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    affine: NDArray[np.float64]
    warning: str = ""


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


@dataclass(frozen=True)
class Scene:
    """A picture turned to RAS+ and cut to the head, with the point the planes run through.

    Attributes:
        images: By name (x y z).
        reference: Classes, or None.
        predicted: Classes.
        spacing_mm: Voxel edges.
        point: The middle of the largest tumour plane.
    """

    images: Mapping[str, NDArray[np.float32]]
    reference: NDArray[np.uint8] | None
    predicted: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    point: tuple[int, int, int]

    @classmethod
    def of(cls, picture: Picture) -> Scene:
        """Turn and cut a picture."""
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


def place(axes: Axes, scene: Scene, view: View) -> dict[str, Any]:
    """Give the axes the plane's size in mm; what ``imshow`` needs to fill it."""
    width, height = scene.extent_mm(view)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", adjustable="box", anchor="N")
    axes.set_axis_off()
    return {"extent": (0.0, width, height, 0.0), "origin": "upper"}


def show_image(axes: Axes, scene: Scene, name: str | None, view: View) -> None:
    """An image in grey (black without one), with sides named and, where there is room, a scale bar."""
    placed = place(axes, scene, view)
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
    if width > 60:
        axes.plot([0.04 * width, 0.04 * width + 20], [0.965 * height] * 2, color="white", lw=2.2)
        axes.text(0.04 * width, 0.945 * height, "2 cm", color="white", fontsize=8).set_path_effects(halo)


def _tint(plane: NDArray[Any], colours: Mapping[int, str], alpha: float) -> NDArray[np.float64]:
    painted = np.zeros((*plane.shape, 4))
    for value, colour in colours.items():
        painted[plane == value] = (*to_rgb(colour), alpha)
    return painted


def show_fill(axes: Axes, scene: Scene, view: View, *, alpha: float = FILL_ALPHA) -> None:
    """The prediction: each class in the colour of the smallest region that holds it."""
    colours = {1: REGION_COLOURS[Region.ET], 2: REGION_COLOURS[Region.TC], 3: REGION_COLOURS[Region.WT]}
    plane = scene.cut(scene.predicted, view)
    axes.imshow(_tint(plane, colours, alpha), interpolation="nearest", **place(axes, scene, view))


def show_contours(axes: Axes, scene: Scene, view: View) -> None:
    """The reference: the outline of each region."""
    if scene.reference is not None:
        show_outline(axes, scene, view, scene.reference)


def show_outline(axes: Axes, scene: Scene, view: View, classes: NDArray[np.uint8], *, width_pt: float = 1.2) -> None:
    """The outline of each region of a volume of classes on the grid of the scene, with a dark rim."""
    plane = scene.cut(classes, view)
    width, height = place(axes, scene, view)["extent"][1:3]
    for region in REGIONS:
        mask = region_mask(plane, region)
        if not mask.any() or mask.all():
            continue
        # Fourfold voxels keep the outline on the voxel edges, instead of cutting their corners.
        fine = np.repeat(np.repeat(mask, 4, axis=0), 4, axis=1).astype(np.float64)
        rows, columns = fine.shape
        x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
        for colour, line in (("black", 1.75 * width_pt), (REGION_COLOURS[region], width_pt)):
            axes.contour(x, y, fine, [0.5], colors=[colour], linewidths=line)


def show_errors(axes: Axes, scene: Scene, view: View) -> None:
    """Where prediction and reference differ, by kind; nothing where there is no reference."""
    if scene.reference is None:
        return
    a, b = scene.cut(scene.predicted, view), scene.cut(scene.reference, view)
    kind = np.select([(a == 0) & (b > 0), (a > 0) & (b == 0), (a > 0) & (b > 0) & (a != b)], [1, 2, 3], 0)
    colours = dict(enumerate(ERROR_COLOURS.values(), start=1))
    axes.imshow(_tint(kind, colours, 0.85), interpolation="nearest", **place(axes, scene, view))
