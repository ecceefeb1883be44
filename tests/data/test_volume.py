import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.nifti import read_volume
from mindgap.data.volume import (
    Volume,
    check_head,
    doubt_about_brains,
    doubt_about_grid,
    orientation_of,
    shear_of,
    spacing_of,
    volume_of_voxel_ml,
)
from mindgap.errors import InputError


def test_geometry_of_oblique_grids():
    angle = np.deg2rad(33)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.5, -2, 3])
    assert spacing_of(affine) == pytest.approx((0.5, 2, 3))
    assert volume_of_voxel_ml(affine) == pytest.approx(0.003)
    assert orientation_of(affine) == "LPS"


def _read(path, make_image, *, units="mm", scale=1.0):
    """A head of 240 mm in voxels of 20 x 24 x 30 mm, its numbers scaled, as it is read again."""
    image = nib.Nifti1Image(make_image(), np.diag([*(scale * np.array([20, 24, 30])), 1]))
    image.header.set_xyzt_units(units)
    nib.save(image, path)
    return read_volume(path, case="A")


@pytest.mark.parametrize(("units", "scale", "word"), [("meter", 1e-3, "metres"), ("micron", 1e3, "micrometres")])
def test_other_units_than_mm_are_refused_by_name(tmp_path, make_image, units, scale, word):
    volume = _read(tmp_path / "a.nii", make_image, units=units, scale=scale)
    with pytest.raises(InputError, match=rf"A: a.nii: expected a grid in mm, found one in {word} .*set_xyzt_units"):
        check_head("A", volume)
    with pytest.raises(InputError, match=r"A: a.nii: expected a grid of the size of a head.* To mend: .*micrometres"):
        check_head("A", _read(tmp_path / "a.nii", make_image, units="unknown", scale=scale))


@pytest.mark.parametrize("edge", [0.001, 0.1, 10.0, 1000.0])
def test_a_head_in_metres_centimetres_or_micrometres_is_refused_with_its_size(edge):
    volume = Volume(np.ones((240, 240, 155), np.float32), np.diag([edge, edge, edge, 1]), Path("a.nii"), None)
    with pytest.raises(
        InputError, match=rf"voxels of {re.escape(f'{edge:.3g}')} x .* mm, {re.escape(f'{240 * edge:.3g}')} x"
    ):
        check_head("A", volume)


def test_crops_phantoms_and_undeclared_units_pass(tmp_path, make_image):
    check_head("A", _read(tmp_path / "a.nii", make_image, units="unknown"))
    check_head("A", _read(tmp_path / "a.nii", make_image, scale=1 / 24))  # 10 mm in all
    for shape, edges in (((2, 2, 2), (1, 1, 1)), ((240, 240, 155), (1, 1, 1)), ((512, 512, 24), (0.4, 0.4, 6))):
        check_head("A", Volume(np.ones(shape, np.float32), np.diag([*edges, 1]).astype(float), Path("a"), None))


def test_small_numbers_are_no_singular_grid(tmp_path, make_image):
    assert _read(tmp_path / "a.nii", make_image, units="meter", scale=1e-5).spacing_mm[0] == pytest.approx(2e-4)


def _head(centre=(0.0, 0.0, 0.0), radii=(0.55, 0.8, 0.7)):
    """An egg of noise with a thick end, on background 0."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 40)), indexing="ij")
    i, j, k = ((axis - shift) / radius for axis, shift, radius in zip(axes, centre, radii, strict=True))
    brain = i**2 * (1 + 0.4 * j) + j**2 + k**2 * (1 + 0.4 * j) < 1
    array = np.random.default_rng(0).uniform(1, 100, brain.shape) * brain
    return Volume(array.astype(np.float32), np.eye(4), Path("a.nii"), None)


def test_brains_that_do_not_lie_upon_each_other_are_doubted():
    head = _head()
    assert doubt_about_brains({"T1": head}) == ""
    assert doubt_about_brains({"T1": head, "T2": _head(), "FLAIR": _head(radii=(0.55, 0.79, 0.69))}) == ""
    turned = Volume(head.array[:, ::-1], head.affine, Path("turned.nii"), None)
    for other in (turned, _head(centre=(0.0, 0.1, 0.0)), _head(radii=(0.6, 0.75, 0.8))):
        said = doubt_about_brains({"T1": head, "T2": _head(), "FLAIR": other})
        assert said.startswith("the brains of T1 (a.nii) and FLAIR ("), said
        assert "overlap by Dice 0." in said


def test_a_sheared_grid_is_doubtful_and_an_oblique_one_is_not():
    tilt, turn = np.eye(4), np.eye(4)
    tilt[1, 2] = np.tan(np.deg2rad(12))
    turn[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    voxels, spacing = np.ones((4, 4, 4), np.float32), np.diag([1.0, 1.0, 5.0, 1.0])
    assert doubt_about_grid(Volume(voxels, turn @ spacing, Path("a.nii"), None)) == ""
    sheared = turn @ tilt @ spacing
    assert np.degrees(np.arcsin(shear_of(sheared))) == pytest.approx(12)
    said = doubt_about_grid(Volume(voxels, sheared, Path("a.nii"), None))
    assert said.startswith("the grid of a.nii is sheared by 12.0 degrees")
    assert np.prod(spacing_of(sheared)) > 1.02 * np.prod(np.diag(spacing)), "edges overstate its voxels"
    assert volume_of_voxel_ml(sheared) == pytest.approx(0.005)
