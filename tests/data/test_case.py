from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.case import Case, CaseFiles, Source
from mindgap.data.cohort import case_from_folder
from mindgap.data.volume import Volume
from mindgap.errors import InputError, SettingError
from mindgap.regions import find_convention
from mindgap.sequences import SEQUENCES, SUBSETS, Sequence

BRATS = find_convention("brats2017")


@pytest.fixture
def files(tmp_path, write_case) -> CaseFiles:
    return case_from_folder(write_case(tmp_path / "P01"))


def _rewrite(path, change=lambda array: array, shift=0.0):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift
    array = np.asarray(image.dataobj).astype(np.float32)
    nib.save(nib.Nifti1Image(change(array), affine), path)


def test_a_case_loads_in_canonical_order(files):
    case = files.load(convention=BRATS)
    assert case.sequences == files.sequences == SEQUENCES
    assert case.reference.path.name == "P01_t1.nii.gz"
    assert case.target.dtype == np.uint8
    assert set(np.unique(case.target)) == {0, 1, 2, 3}
    assert case.reference.spacing_mm == (1.0, 1.0, 1.5)


def test_the_order_of_naming_does_not_matter(files):
    turned = CaseFiles("P01", dict(reversed(files.images.items())))
    assert turned.sequences == SEQUENCES
    assert Case("P01", dict(reversed(files.load().images.items()))).sequences == SEQUENCES


@pytest.mark.parametrize("subset", SUBSETS)
def test_absent_sequences_are_never_opened(files, subset):
    whole = files.load()
    for sequence in set(SEQUENCES) - set(subset):
        files.images[sequence].path.write_bytes(b"garbage")
    case = files.load(subset)
    assert case.sequences == subset
    for sequence in subset:
        np.testing.assert_array_equal(case.images[sequence].array, whole.images[sequence].array)


def test_the_label_is_opened_only_when_its_convention_is_known(files):
    files.label.path.write_bytes(b"garbage")
    assert files.load().target is None
    with pytest.raises(InputError, match="P01_seg"):
        files.load(convention=BRATS)
    assert replace(files, label=None).load(convention=BRATS).target is None


def test_an_absent_sequence_cannot_be_asked_for(files):
    fewer = CaseFiles("P01", {Sequence.T2: files.images[Sequence.T2]})
    with pytest.raises(InputError, match=r"P01: expected the sequences T1\+T2, found T2 \(T1 absent\). To mend"):
        fewer.load((Sequence.T1, Sequence.T2))
    with pytest.raises(SettingError, match="empty"):
        fewer.load(())


def _fill(value, count):
    def change(array):
        array = array.copy()
        array.flat[:count] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "found", "mend"),
    [
        (lambda a: a[:-1], "(11, 10, 8)", "one grid"),
        (_fill(np.nan, 1), "1 that are NaN or infinite", "background is 0"),
        (_fill(np.inf, 2), "2 that are NaN or infinite", "background is 0"),
        (_fill(-np.inf, 2), "2 that are NaN or infinite", "background is 0"),
        (lambda a: a * 0, "only zeros", "leave this sequence out"),
        (lambda a: a * 0 + 7, "the same value 7", "leave this sequence out"),
        (lambda a: a - 50, "negative voxels", "skull-stripped images with background 0"),
        (lambda a: _fill(-0.1, 960 // 100 + 1)(a), "negative voxels", "background 0"),
        (lambda a: _fill(-0.1, 2)(a * 0), "0.000%", "background 0"),
        (lambda a: np.stack([a, a], axis=3), "(12, 10, 8, 2)", "one 3-D file per sequence"),
        (lambda a: a[..., 0], "(12, 10)", "one 3-D file per sequence"),
    ],
)
def test_impossible_images_are_refused(files, change, found, mend):
    _rewrite(files.images[Sequence.T2].path, change)
    with pytest.raises(InputError) as caught:
        files.load(force=True)
    message = str(caught.value)
    assert message.startswith("P01: ")
    assert "P01_t2.nii.gz" in message
    assert found in message
    assert mend in message.partition("To mend")[2]


def test_a_head_with_its_skull_is_no_brain(files):
    for source in files.images.values():  # 288 voxels of 21 mm
        image = nib.load(source.path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([21.0, 21.0, 21.0, 1.0])), source.path)
    with pytest.raises(InputError, match=r"at most 2\.5 L, found 2\.[0-9] L above 0.*--raw and --hd-bet.*--force"):
        files.load()
    assert files.load(force=True).sequences == files.sequences


def test_few_negative_voxels_are_legal(files):
    _rewrite(files.images[Sequence.T2].path, _fill(-0.1, 9))
    assert files.load().images[Sequence.T2].array.min() < 0


def test_a_segmentation_given_as_an_image_is_refused(files):
    files.images[Sequence.T2].path.write_bytes(files.label.path.read_bytes())
    with pytest.raises(InputError, match=r"T2.*grey values.*whole numbers from 0 to 4.*named \*seg\*"):
        files.load()
    _rewrite(files.images[Sequence.T2].path, lambda array: array * 0.9)
    assert files.load().sequences == SEQUENCES


def test_negligible_brain_is_refused(make_image):
    array = np.zeros((20, 20, 20), dtype=np.float32)
    array[0, 0, :7] = np.arange(1, 8)
    volume = Volume(array, np.eye(4), Path("a_t1.nii.gz"), nib.Nifti1Header())
    with pytest.raises(InputError, match=r"a brain .* of at least 0.1%"):
        Case("P", {Sequence.T1: volume})
    array[0, 0, 7] = 1
    Case("P", {Sequence.T1: volume})


def test_truncated_files_are_refused(files):
    path = files.images[Sequence.T1].path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"P01: P01_t1.nii.gz: .* To mend: copy or convert .*truncated"):
        files.load()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x1f\x8b\x08garbage"])
def test_files_that_are_no_image_are_refused(files, content):
    files.images[Sequence.T1].path.write_bytes(content)
    with pytest.raises(InputError, match=r"P01: P01_t1.nii.gz: expected a whole NIfTI file"):
        files.load()


def test_a_missing_file_is_named(files):
    files.images[Sequence.T1].path.unlink()
    with pytest.raises(InputError, match=r"P01: expected a file at .*P01_t1.nii.gz.* To mend"):
        files.load()


def test_the_affine_gate_has_a_tolerance_and_a_key(files):
    path = files.images[Sequence.FLAIR].path
    _rewrite(path, shift=5e-4)
    files.load()
    _rewrite(path, shift=2e-3)
    with pytest.raises(InputError, match=r"P01: P01_flair.* within 0.001 mm.* 0.0025 mm .*--force"):
        files.load()
    assert files.load(force=True).sequences == SEQUENCES


def test_a_singular_affine_is_refused(files, write_nifti, make_image):
    path = files.images[Sequence.T1].path
    image = nib.load(path)
    image.header["srow_x"], image.header["sform_code"] = 0, 1
    raw = nib.Nifti1Image(make_image(), None, image.header)
    nib.save(raw, path)
    with pytest.raises(InputError, match=r"voxels of positive size.* To mend: repair the header"):
        files.load()


def test_labels_are_checked_against_grid_and_convention(files, make_label):
    path = files.label.path
    with pytest.raises(InputError, match=r"P01: P01_seg.nii.gz: .*brats2023.*found 4.*--labels"):
        files.load(convention=find_convention("brats2023"))
    _rewrite(path, shift=1.0)
    with pytest.raises(InputError, match=r"P01_seg.nii.gz: expected the affine"):
        files.load(convention=BRATS)
    assert files.load(convention=BRATS, force=True).target is not None
    for change, found in ((lambda a: a + 0.5, "0.5"), (_fill(np.nan, 1), "nan"), (lambda a: a - 1, "-1")):
        nib.save(nib.Nifti1Image(change(make_label().astype(np.float32)), nib.load(path).affine), path)
        with pytest.raises(InputError, match=found):
            files.load(convention=BRATS, force=True)
    _rewrite(path, lambda array: array[1:])
    with pytest.raises(InputError, match=r"P01_seg.nii.gz: expected shape \(12, 10, 8\).*\(11, 10, 8\)"):
        files.load(convention=BRATS, force=True)


def test_a_target_of_another_grid_or_class_is_refused(files):
    images = files.load().images
    with pytest.raises(InputError, match=r"P01: target.*shape"):
        Case("P01", images, np.zeros((2, 2, 2), dtype=np.uint8))
    with pytest.raises(InputError, match=r"P01: target.*classes 0 to 3, found 4.*target_from_label"):
        Case("P01", images, np.full((12, 10, 8), 4, dtype=np.uint8))


def test_one_file_is_one_sequence(files, tmp_path):
    t1, t2 = files.images[Sequence.T1], files.images[Sequence.T2]
    with pytest.raises(InputError, match=r"P01: .*P01_t1.nii.gz named for T1 and for FLAIR. To mend"):
        CaseFiles("P01", {Sequence.T1: t1, Sequence.FLAIR: t1, Sequence.T2: t2})
    with pytest.raises(InputError, match="for T1 and for the label"):
        CaseFiles("P01", {Sequence.T1: t1}, label=t1)
    link = tmp_path / "link.nii.gz"
    link.symlink_to(t1.path)
    with pytest.raises(InputError, match="for T1 and for T2"):
        CaseFiles("P01", {Sequence.T1: t1, Sequence.T2: Source(link)})


@pytest.mark.parametrize("birth", [CaseFiles, Case])
def test_a_case_without_images_is_refused(birth):
    with pytest.raises(InputError, match=r"P01: expected at least one of T1.* To mend"):
        birth("P01", {})


def test_channels_of_one_file(tmp_path, write_nifti, make_image):
    path = write_nifti(tmp_path / "all.nii.gz", np.stack([make_image(0), make_image(1)], axis=3))
    files = CaseFiles("M", {Sequence.FLAIR: Source(path, 0), Sequence.T1: Source(path, 1)})
    np.testing.assert_array_equal(files.load().images[Sequence.T1].array, make_image(1))
    with pytest.raises(InputError, match=r"M: all.nii.gz: expected a channel 2.*2 channels.* To mend"):
        CaseFiles("M", {Sequence.T1: Source(path, 2)}).load()
    flat = write_nifti(tmp_path / "flat.nii.gz", make_image())
    with pytest.raises(InputError, match=r"expected a 4-D image"):
        CaseFiles("M", {Sequence.T1: Source(flat, 0)}).load()


@pytest.mark.real
def test_a_real_case(brats):
    folder = sorted((brats / "HGG").iterdir())[0]
    case = case_from_folder(folder).load(convention=BRATS)
    assert case.reference.array.shape == case.target.shape == (240, 240, 155)
    assert case.sequences == SEQUENCES
    assert 0 < (case.target > 0).mean() < 0.1
