import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.case import Source
from mindgap.data.cohort import case_from_folder
from mindgap.errors import InputError
from mindgap.files import sha256_of
from mindgap.inference.record import find_in, manifest_of, read_for, warnings_about, write_mask
from mindgap.regions import find_convention
from mindgap.sequences import SEQUENCES, Sequence

LABELS = find_convention("brats2023")


def test_a_mask_says_from_what_by_what_and_how_it_was_made(anything, study, tmp_path):
    images = {s: source for s, source in study.cases[0].images.items() if s is not Sequence.T2}
    files = replace(study.cases[0], images=images)
    mask = tmp_path / "deep" / "x.nii.gz"
    record = write_mask(mask, find_in(anything, read_for(anything, files)), anything, convention=LABELS)
    path = manifest_of(mask)
    assert path.name == "x.manifest.json"
    assert json.loads(path.read_text()) == record
    assert record["mask"] == {"file": "x.nii.gz", "sha256": sha256_of(mask), "labels": "brats2023"}
    assert record["subset"] == "T1+T1ce+FLAIR"
    assert record["missing"] == record["missing_for_network"] == ["T2"]
    assert record["not_opened"] == []
    assert set(record["inputs"]) == {"T1", "T1ce", "FLAIR"}
    for sequence, taken in record["inputs"].items():
        source = images[Sequence(sequence)].path
        assert taken == {"file": str(source), "channel": None, "sha256": sha256_of(source)}
    assert record["model"]["folder"] == "any"
    assert record["model"]["sha256"] == anything.sha256
    assert (record["precision"], record["coverage"]) == ("fp32", "whole")
    assert "threads" in record["processor"]
    assert all(value >= 0 for value in record["seconds"].values())
    assert set(record["volumes_ml"]) == {"WT", "TC", "ET"}
    assert {"mindgap", "torch", "python"} <= set(record["versions"])


def test_a_manifest_names_the_link_and_not_what_may_be_the_patients_name(anything, study, tmp_path):
    source = study.cases[0].images[Sequence.FLAIR].path
    link = tmp_path / f"P01_flair{source.suffix}"
    link.symlink_to(source)
    files = replace(study.cases[0], images={Sequence.FLAIR: Source(link)})
    mask = tmp_path / "x.nii.gz"
    record = write_mask(mask, find_in(anything, read_for(anything, files)), anything, convention=LABELS)
    assert record["inputs"]["FLAIR"]["file"] == str(link)
    assert str(source) not in manifest_of(mask).read_text()


def test_channels_of_one_file_share_its_hash(anything, study, tmp_path):
    arrays = [np.asarray(nib.load(study.cases[0].images[s].path).dataobj) for s in SEQUENCES]
    path = tmp_path / "all.nii.gz"
    nib.save(nib.Nifti1Image(np.stack(arrays, axis=3), nib.load(study.cases[0].images[SEQUENCES[0]].path).affine), path)
    files = replace(study.cases[0], images={s: Source(path, n) for n, s in enumerate(SEQUENCES)})
    reading = read_for(anything, files)
    assert reading.sha256 == {path: sha256_of(path)}
    record = write_mask(tmp_path / "m.nii.gz", find_in(anything, reading), anything, convention=LABELS)
    assert [taken["channel"] for taken in record["inputs"].values()] == [0, 1, 2, 3]


def test_affines_that_were_let_through_and_an_empty_mask_are_warned_of(anything, study, tmp_path):
    source = study.cases[0].images[Sequence.FLAIR].path
    image = nib.load(source)
    affine = image.affine.copy()
    affine[1, 3] += 4
    moved = tmp_path / "moved.nii"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), moved)
    files = replace(study.cases[0], images={**study.cases[0].images, Sequence.FLAIR: Source(moved)})
    with pytest.raises(InputError, match="affine"):
        read_for(anything, files)
    found = find_in(anything, read_for(anything, files, force=True))
    (line,) = warnings_about(found)
    assert "FLAIR differs from that of T1 by 4 mm" in line
    empty = replace(found, segmentation=replace(found.segmentation, target=np.zeros_like(found.segmentation.target)))
    assert warnings_about(empty)[-1] == "no tumour was found"


def test_files_that_were_not_understood_are_named_where_a_sequence_is_absent(anything, study, tmp_path):
    case = tmp_path / "P1"
    case.mkdir()
    names = {Sequence.T1: "P1_T1", Sequence.T2: "P1_T2", Sequence.T1CE: "P1_T1_post_1", Sequence.FLAIR: "P1_FLAIR"}
    for sequence, name in names.items():
        shutil.copy(study.cases[0].images[sequence].path, case / f"{name}.nii")
    shutil.copy(case / "P1_T1.nii", case / "P1_seg.nii")
    files = case_from_folder(case, label=False)
    assert files.left_alone == ("P1_T1_post_1.nii",)
    (line,) = warnings_about(find_in(anything, read_for(anything, files)))
    assert line.startswith("T1ce absent, and files were left alone whose names end in no sequence: P1_T1_post_1.nii (")
    (case / "P1_T1_post_1.nii").rename(case / "P1_T1_post.nii")
    shutil.copy(case / "P1_T1.nii", case / "P1_DWI.nii")
    files = case_from_folder(case, label=False)
    assert files.left_alone == ("P1_DWI.nii",)
    assert warnings_about(find_in(anything, read_for(anything, files))) == [], "nothing is missing"
