"""A series made from known voxels comes back with the same values in the same places, and its mask goes home."""

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.dicom import read_series
from mindgap.data.dicom_convert import convert_series
from mindgap.data.dicom_seg import SEGMENTS, is_own_seg, to_frames, write_seg
from mindgap.data.nifti import read_volume
from mindgap.errors import InputError
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

SHAPE = (20, 24, 12)  # columns, rows, slices


def _turn(x: float, z: float) -> np.ndarray:
    a, b = np.deg2rad([x, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_x @ about_z


def _affine(axes: np.ndarray, spacing=(1.1, 0.9, 2.5), origin=(-30.25, 17.5, -42.125)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


GRIDS = {
    "axial": _affine(np.eye(3)),
    "oblique": _affine(_turn(20, 15)),
    "reversed": _affine(np.diag([-1.0, -1.0, 1.0])),
    "reversed rows, downwards": _affine(np.diag([1.0, -1.0, -1.0])),
    "sagittal": _affine(np.array([[0, 0, 1.0], [1, 0, 0], [0, -1, 0]])),
    "coronal, oblique": _affine(_turn(-12, 7) @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
}


def _voxels() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 4000, SHAPE)


def _mask() -> np.ndarray:
    """Lopsided on every axis, and different in every slice that it touches."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:12, 5:20, 2:7] = ED_CLASS
    mask[4:9, 6:12, 3:6] = NCR_CLASS
    mask[5:7, 6:9, 3] = ET_CLASS
    mask[15, 20, 10] = ET_CLASS
    return mask


@pytest.fixture
def converted(write_dicom, tmp_path):
    def make(grid: str):
        files = write_dicom(tmp_path / "dicom", _voxels(), GRIDS[grid])
        (series,) = read_series(tmp_path / "dicom")
        stack = convert_series(series, tmp_path / "t1.nii.gz")
        return files, stack, nib.load(tmp_path / "t1.nii.gz")

    return make


def _at_home(mask: np.ndarray, nifti_affine: np.ndarray, lps: np.ndarray) -> np.ndarray:
    """A mask on DICOM voxels, looked up on the grid of a NIfTI by place alone."""
    move = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ lps) @ nifti_affine
    shape = np.rint(np.abs(np.linalg.inv(move[:3, :3])) @ mask.shape).astype(int)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    there = np.rint(index @ move[:3, :3].T + move[:3, 3]).astype(int)
    return mask[there[..., 0], there[..., 1], there[..., 2]]


@pytest.mark.parametrize("grid", GRIDS)
def test_values_and_places_are_those_of_the_series(grid, converted, tmp_path):
    files, stack, image = converted(grid)
    assert stack.shape == SHAPE
    assert set(stack.files) == set(files)
    np.testing.assert_allclose(np.abs(np.linalg.det(image.affine)), 1.1 * 0.9 * 2.5, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(image.dataobj), _at_home(_voxels(), image.affine, GRIDS[grid]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dicom", "t1.nii.gz"]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mask_goes_home_voxel_by_voxel(grid, converted, tmp_path):
    _, stack, image = converted(grid)
    target = _at_home(_mask(), image.affine, GRIDS[grid])
    write_seg(tmp_path / "seg.dcm", target, image.affine, stack)
    assert is_own_seg(tmp_path / "seg.dcm")
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == ["NCR", "ED", "ET"]
    found = np.zeros(SHAPE, np.uint8)
    places = {tuple(pydicom.dcmread(path).ImagePositionPatient): path for path in stack.files}
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = tuple(groups.PlanePositionSequence[0].ImagePositionPatient)
        source = pydicom.dcmread(places[position])
        referred = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert referred == source.SOPInstanceUID
        lps = np.linalg.inv(GRIDS[grid]) @ [*position, 1]
        found[:, :, round(lps[2])][frame.T > 0] = SEGMENTS[number - 1][1]
    np.testing.assert_array_equal(found, _mask())


def test_a_mask_without_tumour_says_so_in_every_frame(converted, tmp_path):
    _, stack, image = converted("oblique")
    write_seg(tmp_path / "seg.dcm", np.zeros(image.shape, np.uint8), image.affine, stack)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == 3 * SHAPE[2]
    assert not seg.pixel_array.any()


def test_a_seg_says_what_found_it_and_repeats_the_examination(converted, tmp_path):
    files, stack, image = converted("axial")
    write_seg(tmp_path / "seg.dcm", np.ones(image.shape, np.uint8), image.affine, stack)
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(files[0])
    assert seg.SegmentationType == "BINARY"
    for key in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[key].value == source[key].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    codes = {}
    for segment in seg.SegmentSequence:
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert (algorithm.AlgorithmName, segment.SegmentAlgorithmType) == ("mindgap", "AUTOMATIC")
        assert algorithm.AlgorithmVersion
        codes[segment.SegmentLabel] = segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
    assert codes == {"NCR": "Necrosis", "ED": "Edema", "ET": "Enhancing Lesion"}


def test_a_mask_on_another_grid_has_no_place_in_the_series(converted):
    _, stack, image = converted("axial")
    moved = image.affine.copy()
    moved[0, 3] += 0.01
    with pytest.raises(InputError, match="another grid"):
        to_frames(np.zeros(image.shape, np.uint8), moved, stack)
    with pytest.raises(InputError, match="all voxels of the series"):
        to_frames(np.zeros((5, 5, 5), np.uint8), image.affine, stack)


def test_entries_that_anonymisers_take_out_stop_no_seg_and_a_lost_frame_of_reference_does(write_dicom, tmp_path):
    gone = dict.fromkeys(("PatientID", "PatientName", "PatientSex", "StudyID", "StudyDate", "SliceThickness"))
    write_dicom(tmp_path / "a", _voxels(), GRIDS["axial"], **gone)
    write_dicom(tmp_path / "b", _voxels(), GRIDS["axial"], FrameOfReferenceUID=None)
    for folder in "ab":
        (series,) = read_series(tmp_path / folder)
        stack = convert_series(series, tmp_path / "t1.nii.gz")
        image = nib.load(tmp_path / "t1.nii.gz")
        out = tmp_path / f"{folder}.dcm"
        if folder == "a":
            write_seg(out, np.ones(image.shape, np.uint8), image.affine, stack)
            assert is_own_seg(out)
        else:
            with pytest.raises(InputError, match="Frame Of Reference"):
                write_seg(out, np.ones(image.shape, np.uint8), image.affine, stack)
            assert not out.exists()


def test_a_series_that_dcm2niix_splits_is_refused(write_dicom, tmp_path):
    for index, path in enumerate(write_dicom(tmp_path / "d", _voxels(), GRIDS["axial"])):
        image = pydicom.dcmread(path)
        image.EchoTime = 9 + index % 2
        image.save_as(path)
    (series,) = read_series(tmp_path / "d")
    with pytest.raises(InputError, match="expected one image from dcm2niix, found 2"):
        convert_series(series, tmp_path / "t1.nii.gz")
    assert not list(tmp_path.glob("t1*"))


def test_pixels_that_end_too_early_are_refused(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "d", _voxels(), GRIDS["axial"])[4]
    path.write_bytes(path.read_bytes()[:-100])
    (series,) = read_series(tmp_path / "d")
    with pytest.raises(InputError, match=f"{path.name}.*copy the file again"):
        convert_series(series, tmp_path / "t1.nii.gz")


def test_compressed_pixels_that_end_too_early_are_refused_in_our_words(write_dicom, tmp_path):
    for path in write_dicom(tmp_path / "d", _voxels(), GRIDS["axial"]):
        image = pydicom.dcmread(path)
        image.compress(pydicom.uid.RLELossless)
        image.save_as(path)
    path.write_bytes(path.read_bytes()[:-200])
    (series,) = read_series(tmp_path / "d")
    with pytest.raises(InputError, match=f"{path.name}: expected a whole DICOM image, found pixels that end too early"):
        convert_series(series, tmp_path / "t1.nii.gz")


def test_slices_without_the_mark_are_converted_too(write_dicom, tmp_path):
    voxels = np.random.default_rng(2).integers(1, 900, (9, 8, 6))
    files = write_dicom(tmp_path / "d", voxels, np.diag([2.0, 2.0, 3.0, 1.0]))
    for path in (files[0], files[-1]):
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    (series,) = read_series(tmp_path / "d")
    convert_series(series, tmp_path / "a.nii.gz")
    found = read_volume(tmp_path / "a.nii.gz", case="a").array
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(voxels, axis=None))
