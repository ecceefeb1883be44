"""Folders and archives of DICOM: what is read, and everything that is refused before any work."""

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mindgap.data.dicom import dicom_folder, holds_dicom, need, read_series
from mindgap.data.dicom_doubts import doubts_about_series
from mindgap.data.dicom_stack import stack_of
from mindgap.data.masks import write_label, write_probabilities
from mindgap.data.nifti import read_volume
from mindgap.errors import InputError, SettingError
from mindgap.regions import find_convention

pydicom = pytest.importorskip("pydicom")

GRID = np.diag([2.0, 2.0, 3.0, 1.0])
VOXELS = np.arange(1, 6 * 7 * 8 + 1).reshape(6, 7, 8)


def _edit(path, **entries):
    image = pydicom.dcmread(path)
    for key, value in entries.items():
        setattr(image, key, value)
    image.save_as(path)


def _one(folder):
    (series,) = read_series(folder)
    return series


def test_series_are_found_at_any_depth_under_any_name_and_notes_are_passed_over(write_dicom, tmp_path):
    write_dicom(tmp_path / "a" / "b", VOXELS, GRID, kind="T2", SeriesNumber=7)
    files = write_dicom(tmp_path / "c", VOXELS, GRID, kind="FLAIR", SeriesNumber=3)
    (tmp_path / "a" / "notes.txt").write_text("not DICOM")
    for index, path in enumerate(files):  # two series in one folder
        path.rename(tmp_path / "a" / "b" / f"x{index}")
    found = read_series(tmp_path)
    assert [(one.number, one.description, len(one.slices)) for one in found] == [
        (3, "AX FLAIR", 8),
        (7, "AX T2 TSE", 8),
    ]
    assert (found[0].echo_ms, found[0].repetition_ms, found[0].inversion_ms) == (120, 9000, 2500)
    assert found[0].name == "series 3 (AX FLAIR)"


def test_slices_stand_in_geometric_order_whatever_they_are_called(write_dicom, tmp_path):
    files = write_dicom(tmp_path, VOXELS, GRID)
    stack = stack_of(_one(tmp_path))
    assert list(stack.files) == files
    assert [path.name for path in files] != sorted(path.name for path in files)
    np.testing.assert_allclose(stack.affine_lps, GRID)
    assert stack.shape == VOXELS.shape


def test_a_stray_file_that_may_not_be_read_hides_no_dicom(write_dicom, tmp_path, monkeypatch):
    write_dicom(tmp_path / "d", VOXELS, GRID)
    (tmp_path / "d" / "00_notes.txt").write_text("")
    known = Path.open

    def guarded(path, *words, **named):
        if path.name == "00_notes.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return known(path, *words, **named)

    monkeypatch.setattr(Path, "open", guarded)
    assert holds_dicom(tmp_path / "d")
    assert len(read_series(tmp_path / "d")) == 1


def test_what_holds_dicom(write_dicom, write_nifti, make_image, tmp_path):
    assert not holds_dicom(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"")
    assert holds_dicom(tmp_path / "x.zip")
    write_dicom(tmp_path / "d" / "deep", VOXELS, GRID)
    assert holds_dicom(tmp_path / "d")
    image = write_nifti(tmp_path / "d" / "p_t1.nii.gz", make_image())
    assert not holds_dicom(tmp_path / "d")
    like = read_volume(image, case="p")
    image.unlink()
    shape = like.array.shape
    write_label(tmp_path / "d" / "seg.nii.gz", np.zeros(shape, np.uint8), like=like, convention=find_convention("msd"))
    write_probabilities(tmp_path / "d" / "entropy.nii.gz", np.zeros(shape, np.float32), like=like, sidecar={})
    assert holds_dicom(tmp_path / "d"), "what was written there before makes it no folder of NIfTI"
    write_nifti(image, make_image())
    assert not holds_dicom(image)
    assert not holds_dicom(tmp_path / "nowhere")


def test_images_of_other_modalities_are_refused_by_name(write_dicom, tmp_path):
    write_dicom(tmp_path / "mr", VOXELS, GRID)
    write_dicom(tmp_path / "ct", VOXELS, GRID, Modality="CT")
    with pytest.raises(InputError, match="expected MR images only, found modality CT"):
        read_series(tmp_path)


@pytest.mark.parametrize("key", ["PatientID", "StudyInstanceUID"])
def test_patients_and_examinations_are_not_mixed_and_not_named(key, write_dicom, tmp_path):
    write_dicom(tmp_path / "a", VOXELS, GRID)
    write_dicom(tmp_path / "b", VOXELS, GRID, **{key: "1.2.3456789"})
    with pytest.raises(InputError, match=f"found 2 \\(by {key}\\)") as caught:
        read_series(tmp_path)
    assert "3456789" not in str(caught.value)
    assert "P1" not in str(caught.value)


def test_objects_about_images_are_passed_over_and_alone_are_no_input(write_dicom, tmp_path):
    write_dicom(tmp_path / "pr", VOXELS[:, :, :1], GRID, Modality="PR")
    with pytest.raises(InputError, match="1 DICOM files without images"):
        read_series(tmp_path)
    write_dicom(tmp_path / "mr", VOXELS, GRID)
    assert len(read_series(tmp_path)) == 1


def test_an_empty_folder_and_an_unreadable_file_are_refused(write_dicom, tmp_path):
    with pytest.raises(InputError, match="no DICOM file"):
        read_series(tmp_path)
    files = write_dicom(tmp_path / "d", VOXELS, GRID)
    whole = files[2].read_bytes()
    for damaged in (whole[:133], whole[:132] + b"\xff" * 200):
        files[2].write_bytes(damaged)
        with pytest.raises(InputError, match=f"{files[2].name}.*cannot be read"):
            read_series(tmp_path / "d")
    files[2].write_bytes(whole)
    (tmp_path / "d" / "note.dcm").write_text("not DICOM at all")
    with pytest.raises(InputError, match=r"note\.dcm.*cannot be read"):
        read_series(tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "0 bytes beside DICOM"), (b"\x08\x00" * 50, "100 bytes beside"), (bytes(4000), "begins with zeros")],
)
@pytest.mark.parametrize("place", [0, -1])
def test_what_an_interrupted_copy_left_is_refused_at_the_ends_of_a_stack_too(
    place, content, said, write_dicom, tmp_path
):
    path = write_dicom(tmp_path / "d", VOXELS, GRID)[place]
    for suffix in ("", ".7"):
        path.unlink()
        path = path.with_suffix(suffix)
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"^d.{path.name}: expected a whole DICOM file, .*{said}"):
            read_series(tmp_path)
    path.rename(path.with_suffix(".txt"))
    assert len(_one(tmp_path).slices) == 7, "a file that promises text is none of ours"


def test_slices_without_the_mark_are_read_and_strangers_are_named(write_dicom, tmp_path):
    files = write_dicom(tmp_path / "d", VOXELS, GRID)
    for path in (files[0], files[-1]):
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little")
        path.write_bytes(content[144 + length :] if path is files[0] else content[132:])  # without and with meta
    (tmp_path / "d" / "LICENSE").write_text("Do what you like with it. " * 20)
    (tmp_path / "README").write_text("beside no DICOM")
    said = []
    (series,) = read_series(tmp_path, said.append)
    assert len(series.slices) == 8
    assert said == [f"passed over, being no DICOM: {Path('d', 'LICENSE')}"]
    path = files[-1]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=path.name):
        read_series(tmp_path)


def test_frames_of_reference_and_images_that_are_not_there_are_doubted(write_dicom, tmp_path):
    write_dicom(tmp_path / "a", VOXELS, GRID, SeriesNumber=1, ImagesInAcquisition=8)
    write_dicom(tmp_path / "b", VOXELS, GRID, kind="FLAIR", SeriesNumber=2, FrameOfReferenceUID="1.2.3")
    write_dicom(tmp_path / "c", VOXELS, GRID, kind="T2", SeriesNumber=3, ImagesInAcquisition=10)
    one, other, third = read_series(tmp_path)
    assert doubts_about_series([one], registered=False) == ()
    (line,) = doubts_about_series([one, other], registered=False)
    assert line.startswith("series 1 (AX T1 SE) and series 2 (AX FLAIR) have frames of reference of their own")
    (line,) = doubts_about_series([one, other, third], registered=True)
    assert line == "the headers of series 3 (AX T2 TSE) speak of 10 images in the acquisition, and 8 are here"


def test_a_value_that_is_no_number_is_refused_with_its_file(write_dicom, tmp_path):
    write_dicom(tmp_path, VOXELS, GRID, EchoTime=12.5)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"12.5", b"12x5"))
    with pytest.raises(InputError, match=r"^IM\d+: .*cannot be read \(ValueError"):
        read_series(tmp_path)


def test_gaps_and_positions_taken_twice_are_refused(write_dicom, tmp_path):
    files = write_dicom(tmp_path, VOXELS, GRID)
    content = files[3].read_bytes()
    files[3].unlink()
    with pytest.raises(
        InputError, match="expected slices 3 mm apart, found about 1 missing, 6 mm between slices 3 and 4"
    ):
        stack_of(_one(tmp_path))
    files[3].write_bytes(content)
    (tmp_path / "copy").write_bytes(content)
    with pytest.raises(InputError, match="1 positions taken twice among 9 images"):
        stack_of(_one(tmp_path))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"ImagePositionPatient": [0.5, 0, 6]}, "shifted sideways"),
        ({"ImagePositionPatient": [0, 0, 7]}, "slices 3 mm apart"),
        ({"ImagePositionPatient": None}, "without"),
        ({"PixelSpacing": [1, 1]}, "one pixel spacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "one orientation"),
        ({"Rows": 14, "Columns": 3}, "one image size"),
        ({"NumberOfFrames": 2}, "nothing says where each lies"),
    ],
)
def test_slices_that_make_no_even_volume_are_refused(entries, said, write_dicom, tmp_path):
    _edit(write_dicom(tmp_path, VOXELS, GRID)[2], **entries)
    with pytest.raises(InputError, match=said) as caught:
        stack_of(_one(tmp_path))
    assert caught.value.case == "series 1 (AX T1 SE)"


def test_one_slice_is_no_volume(write_dicom, tmp_path):
    write_dicom(tmp_path, VOXELS[:, :, :1], GRID)
    with pytest.raises(InputError, match="at least 2 slices"):
        stack_of(_one(tmp_path))


def _zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_read_like_its_folder_and_leaves_nothing_behind(write_dicom, tmp_path):
    files = write_dicom(tmp_path / "d", VOXELS, GRID)
    path = _zip(tmp_path / "d.zip", {f"deep/{file.name}": file.read_bytes() for file in files})
    with dicom_folder(path) as folder:
        assert len(_one(folder).slices) == 8
    assert not folder.exists()
    with dicom_folder(tmp_path / "d") as folder:
        assert folder == tmp_path / "d"
    assert folder.exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil"])
def test_an_archive_that_would_write_elsewhere_is_refused(name, tmp_path):
    path = _zip(tmp_path / "x.zip", {"fine": b"1", name: b"2"})
    with pytest.raises(InputError, match="inside the archive's own folder"), dicom_folder(path):
        pass
    assert not (tmp_path / "evil").exists()


def test_links_and_damage_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="found a link"), dicom_folder(tmp_path / "x.zip"):
        pass
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(range(256)) * 40)
    packed = bytearray((tmp_path / "z.zip").read_bytes())
    packed[40:60] = b"\xff" * 20  # within the deflated bytes
    (tmp_path / "z.zip").write_bytes(packed)
    with pytest.raises(InputError, match="cannot be unpacked"), dicom_folder(tmp_path / "z.zip"):
        pass
    (tmp_path / "y.zip").write_bytes(b"PK no archive")
    with pytest.raises(InputError, match="cannot be unpacked"), dicom_folder(tmp_path / "y.zip"):
        pass


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(SettingError, match=r"pip install 'mindgap\[dicom\]'"):
        need("no_such_package")
