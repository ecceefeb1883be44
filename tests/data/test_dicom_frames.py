"""An enhanced object is what its frames would be as classic images: in words, voxels, and on the way home."""

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.dicom import read_series
from mindgap.data.dicom_convert import convert_series
from mindgap.data.dicom_seg import SEGMENTS, write_seg
from mindgap.data.dicom_sequence import propose
from mindgap.data.dicom_stack import stack_of
from mindgap.errors import InputError
from mindgap.sequences import Sequence

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

SHAPE = (16, 20, 12)
TURN = np.array([[0.98, -0.199, 0.0], [0.199, 0.98, 0.0], [0.0, 0.0, 1.0]])
TURN[:, 0] /= np.linalg.norm(TURN[:, 0])
TURN[:, 1] /= np.linalg.norm(TURN[:, 1])
GRID = np.eye(4)
GRID[:3, :3] = TURN @ np.diag([1.1, 0.9, 2.5])
GRID[:3, 3] = (-30.25, 17.5, -42.125)
SHUFFLED = np.random.default_rng(3).permutation(SHAPE[2])


def _voxels() -> np.ndarray:
    return np.random.default_rng(1).integers(1, 4000, SHAPE)


@pytest.fixture
def both(write_dicom, write_enhanced, tmp_path):
    """A series as classic files and as one enhanced object, whose frames lie in no order."""

    def make(kind: str = "T1", **entries):
        files = write_dicom(tmp_path / "classic", _voxels(), GRID, kind=kind)
        write_enhanced(tmp_path / "enhanced" / "IM1", [files[index] for index in SHUFFLED], **entries)
        return tuple(read_series(tmp_path / name)[0] for name in ("classic", "enhanced"))

    return make


@pytest.mark.parametrize("kind", ["T1", "T1ce", "T2", "FLAIR"])
def test_a_series_is_recognised_as_if_it_were_classic(kind, both):
    classic, enhanced = both(kind)
    for name in ("echo_ms", "repetition_ms", "inversion_ms", "description", "contrast", "scanning", "diffusion"):
        assert getattr(enhanced, name) == getattr(classic, name), name
    assert enhanced.image_type == (*classic.image_type, "NONE")
    assert len(enhanced.slices) == SHAPE[2]
    (proposal,) = propose([enhanced], {})
    assert proposal.sequence is Sequence(kind)


def test_an_agent_that_was_not_given_yet_makes_no_contrast_enhanced_image(both, tmp_path):
    both("T1ce")
    image = pydicom.dcmread(tmp_path / "enhanced" / "IM1")
    usage = pydicom.Dataset()
    usage.ContrastBolusAgentAdministered = "NO"
    image.SharedFunctionalGroupsSequence[0].ContrastBolusUsageSequence = [usage]
    image.save_as(tmp_path / "enhanced" / "IM1")
    (series,) = read_series(tmp_path / "enhanced")
    (proposal,) = propose([series], {})
    assert proposal.sequence is Sequence.T1


def test_a_frame_of_diffusion_puts_the_series_aside(both, tmp_path):
    both("T2")
    image = pydicom.dcmread(tmp_path / "enhanced" / "IM1")
    weighting = pydicom.Dataset()
    weighting.DiffusionBValue = 1000.0
    image.PerFrameFunctionalGroupsSequence[-1].MRDiffusionSequence = [weighting]
    image.save_as(tmp_path / "enhanced" / "IM1")
    (series,) = read_series(tmp_path / "enhanced")
    (proposal,) = propose([series], {})
    assert proposal.aside


def test_what_a_complex_image_shows_is_part_of_its_type(both):
    _, enhanced = both("T2", ImageType=["ORIGINAL", "PRIMARY", "MIXED", "NONE"], ComplexImageComponent="PHASE")
    assert enhanced.image_type == ("ORIGINAL", "PRIMARY", "M", "NONE", "PHASE")
    (proposal,) = propose([enhanced], {})
    assert proposal.aside
    assert "phase" in proposal.reason


def test_private_groups_that_repeat_public_entries_change_nothing(both, tmp_path):
    classic, _ = both()
    path = tmp_path / "enhanced" / "IM1"
    image = pydicom.dcmread(path)
    for frame in image.PerFrameFunctionalGroupsSequence:
        block = pydicom.Dataset()
        block.ImagePositionPatient, block.EchoTime, block.RescaleSlope = [1.0, 2.0, 3.0], 95.0, 7.0
        frame.private_block(0x2005, "A MAKER", create=True).add_new(0x0F, "SQ", pydicom.Sequence([block]))
    image.save_as(path)
    (enhanced,) = read_series(tmp_path / "enhanced")
    assert enhanced.echo_ms == classic.echo_ms
    np.testing.assert_allclose(stack_of(enhanced).affine_lps, stack_of(classic).affine_lps)


@pytest.mark.parametrize("parts", [2, SHAPE[2]])
def test_a_series_in_several_objects_is_one_volume_without_a_seg(parts, write_dicom, write_enhanced, tmp_path):
    """Two halves, or an enhanced object of one frame for every slice."""
    files = write_dicom(tmp_path / "classic", _voxels(), GRID)
    for part, some in enumerate(np.array_split(SHUFFLED, parts)):
        write_enhanced(tmp_path / "enhanced" / f"IM{part}", [files[index] for index in some])
    for name in ("classic", "enhanced"):
        (series,) = read_series(tmp_path / name)
        stack = convert_series(series, tmp_path / f"{name}.nii.gz")
    one, other = (nib.load(tmp_path / f"{name}.nii.gz") for name in ("classic", "enhanced"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
    with pytest.raises(InputError, match=f"found one in {parts} files"):
        write_seg(tmp_path / "seg.dcm", np.zeros(SHAPE, np.uint8), other.affine, stack)


@pytest.mark.parametrize("count", [SHAPE[2] - 1, SHAPE[2] + 1])
def test_frames_that_are_not_all_described_are_refused(both, count, tmp_path):
    both()
    path = tmp_path / "enhanced" / "IM1"
    image = pydicom.dcmread(path)
    image.NumberOfFrames = count
    image.save_as(path)
    with pytest.raises(InputError, match=f"12 of {count} frames are described"):
        read_series(tmp_path / "enhanced")


def test_fewer_compressed_frames_than_promised_are_refused(both, tmp_path):
    both()
    path = tmp_path / "enhanced" / "IM1"
    image = pydicom.dcmread(path)
    image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    frames = list(pydicom.encaps.generate_frames(image.PixelData, number_of_frames=SHAPE[2]))
    image.PixelData = pydicom.encaps.encapsulate(frames[:-1])
    image.save_as(path)
    (series,) = read_series(tmp_path / "enhanced")
    with pytest.raises(InputError, match="IM1: expected a whole enhanced DICOM object"):
        convert_series(series, tmp_path / "t1.nii.gz")


@pytest.mark.parametrize("compressed", [False, True])
def test_values_and_places_are_those_of_the_frames(both, compressed, tmp_path):
    classic, enhanced = both()
    if compressed:
        image = pydicom.dcmread(tmp_path / "enhanced" / "IM1")
        image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        image.save_as(tmp_path / "enhanced" / "IM1")
        (enhanced,) = read_series(tmp_path / "enhanced")
    stacks = [convert_series(one, tmp_path / f"{n}.nii.gz") for n, one in enumerate((classic, enhanced))]
    np.testing.assert_allclose(stacks[0].affine_lps, stacks[1].affine_lps)
    assert [SHUFFLED[frame] for frame in stacks[1].frames] == list(range(SHAPE[2]))
    images = [nib.load(tmp_path / f"{n}.nii.gz") for n in range(2)]
    np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(images[0].dataobj), np.asarray(images[1].dataobj))


def test_a_mask_goes_home_to_the_frames_it_was_found_in(both, tmp_path):
    _, enhanced = both()
    stack = convert_series(enhanced, tmp_path / "t1.nii.gz")
    image = nib.load(tmp_path / "t1.nii.gz")
    target = np.zeros(SHAPE, np.uint8)
    target[3:9, 4:15, 2:7], target[4:7, 6:9, 3] = 2, 3
    write_seg(tmp_path / "seg.dcm", target, image.affine, stack)
    seg, source = highdicom.seg.segread(tmp_path / "seg.dcm"), pydicom.dcmread(tmp_path / "enhanced" / "IM1")
    move = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ GRID) @ image.affine
    found = np.zeros(SHAPE, np.uint8)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = [float(value) for value in groups.PlanePositionSequence[0].ImagePositionPatient]
        referred = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
        theirs = source.PerFrameFunctionalGroupsSequence[int(referred.ReferencedFrameNumber) - 1]
        np.testing.assert_allclose(theirs.PlanePositionSequence[0].ImagePositionPatient, position, atol=1e-4)
        slice_ = round((np.linalg.inv(GRID) @ [*position, 1])[2])
        found[:, :, slice_][frame.T > 0] = SEGMENTS[number - 1][1]
    axes = [int(np.abs(move[axis, :3]).argmax()) for axis in range(3)]
    expected = np.flip(target.transpose(axes), [axis for axis in range(3) if move[axis, axes[axis]] < 0])
    np.testing.assert_array_equal(found, expected)


def test_several_echoes_in_one_object_are_refused(write_dicom, write_enhanced, tmp_path):
    files = write_dicom(tmp_path / "classic", _voxels(), GRID)
    write_enhanced(tmp_path / "enhanced" / "IM1", [*files, *files])
    (series,) = read_series(tmp_path / "enhanced")
    with pytest.raises(InputError, match="12 positions taken twice among 24 images"):
        stack_of(series)


def test_pixels_that_end_too_early_are_refused(both, tmp_path):
    both()
    path = tmp_path / "enhanced" / "IM1"
    path.write_bytes(path.read_bytes()[:-100])
    (series,) = read_series(tmp_path / "enhanced")
    with pytest.raises(InputError, match="IM1"):
        convert_series(series, tmp_path / "t1.nii.gz")
