import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.case import Source
from mindgap.data.cohort import case_from_files, case_from_folder
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import sha256_of
from mindgap.inference.record import check_mask_place, find_in, manifest_of, read_for, warnings_about, write_mask
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
    assert record["force"] is False
    assert "chosen" not in record, "there is one network"
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


def test_a_manifest_says_what_was_forced_and_by_which_brain_mask(anything, study, tmp_path):
    brain = tmp_path / "brain.nii.gz"
    brain.write_bytes(b"of this patient")
    found = find_in(anything, read_for(anything, study.cases[0]))
    out = tmp_path / "x.nii.gz"
    record = write_mask(out, found, anything, convention=LABELS, force=True, brain_mask=brain)
    assert record["force"] is True
    assert record["brain_mask"] == {"file": str(brain), "sha256": sha256_of(brain)}


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


def test_a_copy_of_an_image_is_no_other_sequence(anything, study, tmp_path):
    source = study.cases[0].images[Sequence.FLAIR].path
    copy = shutil.copyfile(source, tmp_path / f"x_t1{source.suffix}")
    files = replace(study.cases[0], images={Sequence.T1: Source(copy), Sequence.FLAIR: Source(source)})
    with pytest.raises(InputError, match="copies of one another"):
        read_for(anything, files)
    packed = tmp_path / "x_t1.nii.gz"
    nib.save(nib.load(source), packed)  # other bytes
    files = replace(study.cases[0], images={Sequence.T1: Source(packed), Sequence.FLAIR: Source(source)})
    with pytest.raises(InputError, match=r"found x_t1\.nii\.gz and .*copies of one another"):
        read_for(anything, files)


def test_names_that_speak_against_what_was_given_are_said(anything, study, tmp_path):
    images = study.cases[0].images
    given = {}
    for sequence, name in ((Sequence.T1, "P01_t1"), (Sequence.FLAIR, "P02_t2")):
        path = images[sequence].path
        given[sequence] = Source(Path(shutil.copyfile(path, tmp_path / f"{name}{path.suffix}")))
    found = find_in(anything, read_for(anything, replace(study.cases[0], case_id="here", images=given)))
    lines = " | ".join(warnings_about(found))
    assert f"{given[Sequence.FLAIR]} was given as FLAIR, and its name says T2" in lines
    assert "names speak of P01 and P02" in lines
    assert "T1, and its name" not in lines


def test_files_named_one_by_one_that_speak_of_two_patients_are_said(anything, study, tmp_path):
    given = {}
    for sequence, name in ((Sequence.T1CE, "Smith_t1ce"), (Sequence.FLAIR, "Jones_flair")):
        path = study.cases[0].images[sequence].path
        given[sequence] = Path(shutil.copyfile(path, tmp_path / f"{name}{path.suffix}"))
    (line,) = warnings_about(find_in(anything, read_for(anything, case_from_files(given))))
    assert line == "names speak of Jones and Smith: these may be of different patients or series"


def test_brains_of_two_heads_are_said_in_the_manifest(anything, study, tmp_path):
    image = nib.load(study.cases[0].images[Sequence.FLAIR].path)
    moved = tmp_path / "P01_moved_flair.nii"
    nib.save(nib.Nifti1Image(np.roll(np.asarray(image.dataobj), 3, axis=1), image.affine), moved)
    files = replace(study.cases[0], images={**study.cases[0].images, Sequence.FLAIR: Source(moved)})
    record = write_mask(tmp_path / "m.nii", find_in(anything, read_for(anything, files)), anything, convention=LABELS)
    (line,) = record["warnings"]
    assert "and FLAIR (P01_moved_flair.nii) overlap by Dice 0." in line


@pytest.mark.parametrize(
    ("codes", "shift", "said"),
    [((0, 0), 0.0, "does not tell its orientation"), ((1, 1), 30.0, "lie up to 30 mm apart"), ((1, 0), 30.0, "")],
)
def test_a_header_that_leaves_the_grid_open_is_said(anything, study, tmp_path, codes, shift, said):
    image = nib.load(study.cases[0].images[Sequence.FLAIR].path)
    other = image.affine.copy()
    other[0, 3] += shift
    image.header.set_sform(image.affine, codes[0])
    image.header.set_qform(other, codes[1])
    made = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    nib.save(made, tmp_path / "x_flair.nii")
    reading = read_for(anything, replace(study.cases[0], images={Sequence.FLAIR: Source(tmp_path / "x_flair.nii")}))
    assert len(reading.warnings) == bool(said)
    assert said in " ".join(reading.warnings)


def test_foreign_notes_and_closed_places_are_refused_before_any_work(tmp_path):
    (tmp_path / "m.manifest.json").write_text('{"packing": "list"}')
    with pytest.raises(SettingError, match="is no manifest of a mask"):
        check_mask_place(tmp_path / "m.nii.gz")
    (tmp_path / "file").write_text("")
    with pytest.raises(MindgapError, match="could not be written"):
        check_mask_place(tmp_path / "file" / "m.nii.gz")
    check_mask_place(tmp_path / "new" / "folder" / "m.nii.gz")
    assert not (tmp_path / "new").exists()


def test_what_another_machine_writes_into_the_same_folder_is_left_alone(tmp_path):
    mine, others = (tmp_path / f".999999999.deadbeef.part.{name}" for name in ("m.nii.gz", "P2.nii.gz"))
    mine.write_text("")
    others.write_text("")
    check_mask_place(tmp_path / "m.nii.gz")
    assert not mine.exists()
    assert others.exists()
