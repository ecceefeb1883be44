import doctest
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

import mindgap
from mindgap.errors import InputError, SettingError
from mindgap.files import sha256_of
from mindgap.inference import images as module
from mindgap.sequences import Sequence

T1, FLAIR = Sequence.T1, Sequence.FLAIR


@pytest.fixture
def paths(study):
    return {sequence: source.path for sequence, source in study.cases[0].images.items()}


def _voxels(image):
    return np.asarray(image.dataobj)


def test_paths_and_images_give_the_mask_of_the_predictor_in_the_patients_grid(study, anything, paths):
    alone = anything.segment(study.cases[0].load((T1, FLAIR)))
    from_paths = mindgap.segment(t1=paths[T1], flair=str(paths[FLAIR]), model=anything)
    mixed = mindgap.segment(t1=paths[T1], flair=nib.load(paths[FLAIR]), model=anything, labels="brats2023")
    for found, numbers in ((from_paths, [0, 4, 1, 2]), (mixed, [0, 3, 1, 2])):
        np.testing.assert_array_equal(_voxels(found.segmentation), np.array(numbers, np.uint8)[alone.target])
        np.testing.assert_array_equal(found.segmentation.affine, nib.load(paths[T1]).affine)
        np.testing.assert_array_equal(np.moveaxis(_voxels(found.probabilities), -1, 0), alone.probabilities)
        assert found.volumes_ml == pytest.approx({str(r): ml for r, ml in alone.volumes_ml.items()})
        assert found.subset == (T1, FLAIR)
        assert found.warnings == ()
    assert (from_paths.labels[4], mixed.labels[3]) == ("enhancing tumour (ET)",) * 2


def test_an_image_of_another_format_is_taken(anything, paths):
    image = nib.load(paths[FLAIR])
    other = nib.MGHImage(_voxels(image).astype(np.float32), image.affine)
    found = mindgap.segment(flair=other, model=anything)
    np.testing.assert_array_equal(
        _voxels(found.segmentation), _voxels(mindgap.segment(flair=image, model=anything).segmentation)
    )


def test_nothing_is_written_or_printed_unless_out_is_given(anything, paths, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    found = mindgap.segment(flair=nib.load(paths[FLAIR]), model=anything)
    assert list(tmp_path.iterdir()) == []
    out = tmp_path / "ä b" / "seg é.nii.gz"
    mindgap.segment(flair=nib.load(paths[FLAIR]), model=anything, out=out, case="P7")
    np.testing.assert_array_equal(_voxels(nib.load(out)), _voxels(found.segmentation))
    record = json.loads((out.parent / "seg é.manifest.json").read_text())
    assert record["mask"]["sha256"] == sha256_of(out)
    assert (record["case"], record["subset"]) == ("P7", "FLAIR")
    assert record["inputs"]["FLAIR"]["file"] == "(FLAIR in memory)"
    assert len(record["inputs"]["FLAIR"]["sha256"]) == 64
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_used_is_refused(study, anything, paths, tmp_path):
    image = nib.load(paths[FLAIR])
    with pytest.raises(InputError, match="one image given for T1 and for FLAIR"):
        mindgap.segment(t1=image, flair=image, model=anything)
    with pytest.raises(InputError, match="a file of its own"):
        mindgap.segment(t1=paths[FLAIR], flair=paths[FLAIR], model=anything)
    with pytest.raises(InputError, match=r"found \(T1 in memory\) and .*copies of one another"):
        mindgap.segment(t1=image, flair=paths[FLAIR], model=anything)
    with pytest.raises(InputError, match="a path or a nibabel image for T1, found ndarray"):
        module._as_files({T1: _voxels(image)}, None)
    with pytest.raises(InputError, match="at least one of T1"):
        mindgap.segment(model=anything)
    with pytest.raises(InputError, match="add T1\\+T2\\+T1ce"):
        mindgap.segment(flair=image, model=study.fixed)
    with pytest.raises(InputError, match="3-D"):
        mindgap.segment(flair=image.slicer[:, :, 3:4], model=anything)
    with pytest.raises(SettingError, match=r"end in \.nii\.gz"):
        mindgap.segment(flair=image, model=anything, out=tmp_path / "x.png")
    with pytest.raises(SettingError, match="no mask as mindgap wrote it"):
        mindgap.segment(flair=image, model=anything, out=paths[T1])


def test_an_image_without_affine_or_in_metres_is_refused(anything, paths):
    image = nib.load(paths[FLAIR])
    with pytest.raises(InputError, match=r"\(FLAIR in memory\): expected an affine"):
        mindgap.segment(flair=nib.Nifti1Image(_voxels(image), None), model=anything)
    other = nib.Nifti1Image(_voxels(image), image.affine)
    other.header.set_xyzt_units("meter")
    with pytest.raises(InputError, match="found one in metres"):
        mindgap.segment(flair=other, model=anything)


def test_the_example_of_the_docstring_runs(study, paths, tmp_path, monkeypatch):
    shutil.copytree(study.any_subset, tmp_path / "runs" / "flair")
    (tmp_path / "P1").mkdir()
    nib.save(nib.load(paths[FLAIR]), tmp_path / "P1" / "P1_flair.nii.gz")
    monkeypatch.chdir(tmp_path)
    (example,) = (t for t in doctest.DocTestFinder().find(module.segment, "segment", module=module) if t.examples)
    assert doctest.DocTestRunner().run(example) == (0, 5)
