import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.masks import write_label, write_probabilities
from mindgap.data.nifti import is_nifti, read_volume, stem_of, volume_from_image, write_volume
from mindgap.data.volume import orientation_of
from mindgap.errors import InputError
from mindgap.regions import find_convention, label_from_target

BRATS = find_convention("brats2017")


def _affine(degrees=0.0, spacing=(1.0, 1.0, 1.5)):
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) @ np.diag(spacing)
    affine[:3, 3] = (31.5, -20.25, 7)
    return affine


@pytest.fixture
def target(make_label):
    return make_label((1, 2, 3))


def _write(path, array, *, sform, qform):
    """An image with the given (affine or None, code) pairs."""
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((1.0, 1.0, 1.5))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_sform(*sform)
    image.header.set_qform(*qform)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("sform", "qform"),
    [
        ((_affine(), 1), (_affine(), 1)),
        ((_affine(), 2), (_affine(), 1)),
        ((_affine(20), 4), (_affine(20), 0)),
        ((None, 0), (_affine(20), 1)),
        ((_affine(20), 1), (_affine(), 1)),
        ((None, 0), (None, 0)),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_mask_goes_home_in_the_grid_it_came_in(tmp_path, make_image, target, sform, qform, suffix):
    source = _write(tmp_path / "a_t1.nii.gz", make_image(), sform=sform, qform=qform)
    path = tmp_path / f"mask{suffix}"
    write_label(path, target, like=read_volume(source, case="A"), convention=BRATS)
    before, after = nib.load(source), nib.load(path)
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in ("sform_code", "qform_code", "srow_x", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    assert orientation_of(after.affine) == orientation_of(before.affine)
    assert after.shape == before.shape
    assert after.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(after.dataobj), label_from_target(target, BRATS))


def test_a_mask_says_its_names(tmp_path, make_image, target):
    source = _write(tmp_path / "a.nii.gz", make_image(), sform=(_affine(), 1), qform=(_affine(), 1))
    write_label(tmp_path / "m.nii.gz", target, like=read_volume(source, case="A"), convention=BRATS)
    sidecar = json.loads((tmp_path / "m.json").read_text())
    assert sidecar["LabelConvention"] == "brats2017"
    assert set(sidecar["Labels"]) == {"0", "1", "2", "4"}
    assert sidecar["Labels"]["4"] == "enhancing tumour (ET)"
    (extension,) = nib.load(tmp_path / "m.nii.gz").header.extensions
    assert extension.get_code() == 6
    content = extension.get_content()
    known = json.loads(content.rstrip("\0") if isinstance(content, str) else content)
    assert len(known.pop("VoxelsBlake2b")) == 32
    assert known == sidecar
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.nii.gz", "m.json", "m.nii.gz"]


def test_scale_factors_do_not_reach_the_mask(tmp_path, make_image, target):
    source = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image((make_image() * 10).astype(np.int16), _affine())
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, source)
    volume = read_volume(source, case="A")
    write_label(tmp_path / "m.nii.gz", target, like=volume, convention=BRATS)
    after = nib.load(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(after.get_fdata(), label_from_target(target, BRATS))


def test_a_mask_like_one_channel_is_three_dimensional(tmp_path, make_image, target, write_nifti):
    source = write_nifti(tmp_path / "a.nii.gz", np.stack([make_image(0), make_image(1)], axis=3))
    write_label(tmp_path / "m.nii.gz", target, like=read_volume(source, case="A", channel=1), convention=BRATS)
    after = nib.load(tmp_path / "m.nii.gz")
    assert after.shape == target.shape
    np.testing.assert_array_equal(after.affine, nib.load(source).affine)


def test_a_mask_of_another_shape_is_refused(tmp_path, make_image, target, write_nifti):
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", make_image()), case="A")
    with pytest.raises(InputError, match=r"m.nii.gz: expected shape \(12, 10, 8\), found \(11, 10, 8\)"):
        write_label(tmp_path / "m.nii.gz", target[1:], like=volume, convention=BRATS)


def test_an_image_goes_and_comes_home(tmp_path, make_image):
    write_volume(tmp_path / "a.nii.gz", make_image(), _affine(20))
    volume = read_volume(tmp_path / "a.nii.gz", case="A")
    np.testing.assert_array_equal(volume.array, make_image())
    np.testing.assert_allclose(volume.affine, _affine(20), atol=1e-6)
    assert volume.array.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((1, 1, 1.5))


def test_what_float32_cannot_hold_becomes_infinite(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", np.full((2, 2, 2), 1e300))
    assert np.isinf(read_volume(path, case="A").array).all()


def test_one_volume_on_a_fourth_axis_is_an_image(tmp_path, write_nifti, make_image):
    path = write_nifti(tmp_path / "a.nii.gz", make_image()[..., None])
    assert read_volume(path, case="A").array.shape == (12, 10, 8)


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colours_and_complex_numbers_are_refused(tmp_path, write_nifti, dtype):
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), dtype=dtype))
    with pytest.raises(InputError, match=r"A: a.nii.gz: expected one number per voxel.* To mend"):
        read_volume(path, case="A")


def test_names():
    assert stem_of(Path("x/W39_1998.09.19_Segm.nii")) == "W39_1998.09.19_Segm"
    assert stem_of(Path("a.b.nii.gz")) == "a.b"
    assert [is_nifti(Path(name)) for name in ("a.nii", "a.nii.gz", "._a.nii.gz", "a.gz", "a.json")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.NII", "a.Nii.gz", "a.nii.GZ", "a.Nii"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_suffixes_may_be_in_capitals(tmp_path, make_image, name, kind):
    path = tmp_path / name
    plain = tmp_path / name.lower().replace("a.", "b.")
    image = kind(make_image(), _affine(20))
    image.header.set_qform(None, 0)
    nib.save(image, plain)
    plain.rename(path)
    assert is_nifti(path)
    assert stem_of(path) == "a"
    volume = read_volume(path, case="A")
    np.testing.assert_array_equal(volume.array, make_image())
    np.testing.assert_allclose(volume.affine, _affine(20), atol=1e-6)


def test_an_image_without_an_affine_is_refused(make_image):
    with pytest.raises(InputError, match=r"A: x: expected an affine .*found none.* To mend: .*Nifti1Image"):
        volume_from_image(nib.Nifti1Image(make_image(), None), Path("x"), case="A")


def test_what_was_read_does_not_hang_on_the_file(tmp_path, make_image):
    path = tmp_path / "a.nii"
    write_volume(path, make_image(), _affine())
    volume = read_volume(path, case="A")
    path.write_bytes(b"")  # a mapped array would end the process when it is read
    np.testing.assert_array_equal(volume.array, make_image())


def test_texts_of_the_input_do_not_travel_with_its_mask(tmp_path, make_image, target):
    image = nib.Nifti1Image(make_image(), _affine())
    for name in ("db_name", "aux_file", "intent_name", "descrip", "data_type"):
        image.header[name] = b"MUELLER^H"
    image.header.set_intent(3, (2.0,), name="MUELLER")
    image.header.extensions.append(nib.nifti1.Nifti1Extension(6, b"MUELLER"))
    nib.save(image, tmp_path / "a.nii.gz")
    like = read_volume(tmp_path / "a.nii.gz", case="A")
    write_label(tmp_path / "mask.nii", target, like=like, convention=BRATS)
    write_probabilities(tmp_path / "p.nii", make_image() / 200, like=like, sidecar={})
    for name in ("mask.nii", "p.nii"):
        assert b"MUELLER" not in (tmp_path / name).read_bytes()
        assert int(nib.load(tmp_path / name).header["intent_code"]) == 0


def test_a_mask_of_an_analyze_image_is_nifti(tmp_path, make_image, target):
    image = nib.Spm2AnalyzeImage(make_image(), _affine())
    like = volume_from_image(image, Path("a.img"), case="A")
    write_label(tmp_path / "mask.nii.gz", target, like=like, convention=BRATS)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, _affine())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII"])
def test_a_header_that_promises_more_than_its_file_holds_asks_for_no_memory(tmp_path, make_image, suffix):
    path = tmp_path / f"a{suffix}"
    nib.save(nib.Nifti1Image(make_image().astype(np.int16), np.eye(4)), tmp_path / "plain.nii")
    content = bytearray((tmp_path / "plain.nii").read_bytes())
    content[42:48] = np.array([30000] * 3, "<i2").tobytes()
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    said = r"a\..*: expected a whole NIfTI file, .*54,000,000,000,352 are due by its header, whose shape is \(30000,"
    with pytest.raises(InputError, match=said):
        read_volume(path, case="A")


def test_what_does_not_fit_into_memory_is_an_error_a_user_can_mend(tmp_path):
    class Large:
        shape, affine = (90, 90, 90), np.eye(4)

        @property
        def dataobj(self):
            return self

        def __array__(self, *_, **__):
            return np.empty((1 << 20, 1 << 20, 1 << 4))  # more than any machine has

    with pytest.raises(InputError, match=r"A: a\.nii: expected an image that fits into memory, found shape \(90, 90"):
        volume_from_image(Large(), Path("a.nii"), case="A")
