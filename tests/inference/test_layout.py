"""Probabilities beside masks, BIDS derivatives, and the lock on a share."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.cohort import discover
from mindgap.errors import SettingError
from mindgap.inference.cohort import Outcome, _Run, _Segmented, segment_cases
from mindgap.inference.layout import bids_case, check_bids
from mindgap.inference.panel import Answer, Panel
from mindgap.inference.record import find_in, read_for
from mindgap.inference.status import Shard, StatusBook, read_status
from mindgap.lock import hold
from mindgap.regions import find_convention
from mindgap.sequences import Sequence

LABELS = find_convention("brats2017")


@pytest.fixture
def cohort(study, tmp_path):
    """One subject with two sessions, the second of which has FLAIR alone."""
    names = {"T1": "T1w", "T2": "T2w", "T1ce": "ce-gadolinium_T1w", "FLAIR": "FLAIR"}
    for case, wanted in (("sub-01_ses-1", names), ("sub-01_ses-2", ("FLAIR",))):
        folder = (tmp_path / "raw").joinpath(*case.split("_"), "anat")
        folder.mkdir(parents=True)
        for sequence, source in study.cases[0].images.items():
            if str(sequence) in wanted:
                nib.save(nib.load(source.path), folder / f"{case}_{names[str(sequence)]}.nii.gz")
    return discover(tmp_path / "raw", label=False)


def _voxels(path):
    return np.asarray(nib.load(path).dataobj)


def _segment(anything, cohort, out, **options):
    return segment_cases(Panel.of_one(anything), cohort, out, convention=LABELS, **options)


def test_the_mask_of_raw_scans_is_named_by_the_scan_whose_grid_it_has(anything, cohort, tmp_path):
    case = cohort.cases[0]
    reading = replace(read_for(anything, case), raw={"native": "FLAIR"})
    found = find_in(anything, reading)
    with StatusBook(tmp_path, Shard()) as book:
        run = _Run(Panel.of_one(anything), tmp_path, LABELS, False, book, set(), Outcome(), "bids", True)
        run.write(case.case_id, _Segmented(Answer(anything, None), found))
    folder = tmp_path / "sub-01" / "ses-1" / "anat"
    (mask,) = folder.glob("*_dseg.nii.gz")
    assert mask.name == "sub-01_ses-1_space-FLAIR_desc-tumour_dseg.nii.gz"
    about = [json.loads(path.read_text()) for path in folder.glob("*.json") if "manifest" not in path.name]
    assert len(about) == 4
    assert all(one["SpatialReference"] == case.images[Sequence.FLAIR].path.as_uri() for one in about)
    assert read_status(tmp_path)[case.case_id].grid == Sequence.FLAIR


def test_a_bids_derivative_holds_the_same_masks_with_table_sidecar_and_probabilities(anything, cohort, tmp_path):
    plain, bids = tmp_path / "plain", tmp_path / "bids"
    _segment(anything, cohort, plain, probabilities=True)
    outcome = _segment(anything, cohort, bids, layout="bids", probabilities=True)
    assert outcome.done == ["sub-01_ses-1", "sub-01_ses-2"]
    first = bids / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_space-T1w_desc-tumour_dseg"
    second = bids / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_space-FLAIR_desc-tumour_dseg"
    for stem, case in ((first, "sub-01_ses-1"), (second, "sub-01_ses-2")):
        mask = plain / case / f"{case}_seg.nii.gz"
        np.testing.assert_array_equal(_voxels(f"{stem}.nii.gz"), _voxels(mask))
        sidecar = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        assert sidecar["SpatialReference"].startswith("file:///")
        assert sidecar["SpatialReference"] == sidecar["Sources"][0]
        assert sidecar["Labels"]["4"] == "enhancing tumour (ET)"
        table = [line.split("\t") for line in stem.with_name(f"{stem.name}.tsv").read_text().splitlines()]
        assert table[0] == ["index", "name", "abbreviation"]
        assert ["4", "enhancing tumour", "ET"] in table
        together = _voxels(mask.with_name(f"{case}_seg_probabilities.nii.gz"))
        about = json.loads(mask.with_name(f"{case}_seg_probabilities.json").read_text())
        assert about["Channels"] == {"0": "WT", "1": "TC", "2": "ET"}
        for channel, region in enumerate(("WT", "TC", "ET")):
            space = stem.name.removesuffix("_desc-tumour_dseg")
            alone = _voxels(stem.with_name(f"{space}_label-{region}_probseg.nii.gz"))
            np.testing.assert_array_equal(alone, together[..., channel])
    description = json.loads((bids / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "mindgap"


def test_probabilities_are_those_of_the_network_on_the_grid_of_the_mask(anything, cohort, tmp_path):
    _segment(anything, cohort, tmp_path / "out", probabilities=True)
    found = anything.segment(cohort.cases[1].load())
    image = nib.load(tmp_path / "out" / "sub-01_ses-2" / "sub-01_ses-2_seg_probabilities.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.moveaxis(np.asarray(image.dataobj), -1, 0), found.probabilities)
    np.testing.assert_array_equal(image.affine, found.like.affine)


def test_a_bids_folder_goes_on_and_only_in_its_own_layout(anything, cohort, tmp_path):
    out = tmp_path / "out"
    _segment(anything, cohort, out, layout="bids")
    masks = sorted(out.rglob("*_dseg.nii.gz"))
    masks[0].unlink()
    about = json.loads((out / "dataset_description.json").read_text()) | {"Authors": ["A. Nonymous"]}
    (out / "dataset_description.json").write_text(json.dumps(about))
    outcome = _segment(anything, cohort, out, layout="bids", resume=True)
    assert json.loads((out / "dataset_description.json").read_text()) == about
    assert (outcome.done, outcome.skipped) == (["sub-01_ses-1"], ["sub-01_ses-2"])
    for options in ({}, {"layout": "bids", "probabilities": True}):
        with pytest.raises(SettingError, match="masks made otherwise"):
            _segment(anything, cohort, out, resume=True, **options)


def test_a_file_that_is_not_ours_is_not_written_over(anything, cohort, tmp_path):
    other = tmp_path / "out" / "sub-01_ses-1" / "sub-01_ses-1_seg_probabilities.nii.gz"
    other.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.float32), np.eye(4)), other)
    content = other.read_bytes()
    outcome = _segment(anything, cohort, tmp_path / "out", probabilities=True)
    assert "was not written by --probabilities" in outcome.failed["sub-01_ses-1"]
    assert other.read_bytes() == content


def test_names_that_bids_cannot_tell_apart_are_refused(tmp_path):
    assert [bids_case(name) for name in ("sub-1_ses-2", "sub-1", "Brats18_A-1")] == [
        "sub-1_ses-2",
        "sub-1",
        "sub-Brats18A1",
    ]
    with pytest.raises(SettingError, match="A-1 and A_1 would both be sub-A1"):
        check_bids(tmp_path, ["A_1", "B", "A-1"])


def test_a_share_is_not_run_twice_at_once_and_the_lock_dies_with_its_process(anything, cohort, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mindgap.lock import hold\n"
        "with hold(Path(sys.argv[1]), what='it'):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    lock = out / ".status-1-of-2.jsonl.lock"
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match=r"share 1/2 of .* is at work in another process"):
            _segment(anything, cohort, out, shard=Shard(1, 2))
        assert _segment(anything, cohort, out, shard=Shard(2, 2)).done == ["sub-01_ses-2"]
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    assert lock.exists()
    assert _segment(anything, cohort, out, shard=Shard(1, 2)).done == ["sub-01_ses-1"]
    assert not lock.exists()
    assert set(read_status(out)) == {"sub-01_ses-1", "sub-01_ses-2"}


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), hold(tmp_path / "lock", what="it"):
            raise ValueError("x")
    assert not (tmp_path / "lock").exists()


def test_what_was_found_on_another_grid_gives_way_to_what_is_found_now(anything, cohort, tmp_path):
    out, alone = tmp_path / "out", cohort.cases[1]
    _segment(anything, replace(cohort, cases=(alone,)), out, layout="bids", probabilities=True)
    folder = out / "sub-01" / "ses-2" / "anat"
    before = {path.name for path in folder.iterdir()}
    assert before
    assert all("space-FLAIR" in name for name in before)
    notes = next(folder.glob("*dseg.tsv"))
    notes.write_text("looked at, looks right")
    more = replace(alone, images={**cohort.cases[0].images, **alone.images})
    outcome = _segment(
        anything, replace(cohort, cases=(more,)), out, layout="bids", probabilities=True, resume=True, force=True
    )
    assert outcome.done == ["sub-01_ses-2"]
    assert {path.name for path in folder.iterdir()} == {name.replace("FLAIR", "T1w") for name in before} | {notes.name}
    assert notes.read_text() == "looked at, looks right"


def test_a_refused_bids_folder_is_left_as_it_was(anything, cohort, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text('{"Name": "raw data"}')
    with pytest.raises(SettingError, match="that mindgap did not make"):
        _segment(anything, cohort, out, layout="bids")
    assert [path.name for path in out.iterdir()] == ["dataset_description.json"]
