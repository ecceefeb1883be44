"""The laws of a segmented cohort: nothing is lost, nothing is done twice, nothing is half there."""

import errno
import json
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.cohort import Cohort, discover
from mindgap.errors import InputError, MindgapError, SettingError
from mindgap.files import write_text
from mindgap.inference import cohort as module
from mindgap.inference import status
from mindgap.inference.cohort import segment_cases
from mindgap.inference.layout import mask_of
from mindgap.inference.panel import Panel
from mindgap.inference.record import check_mask_place
from mindgap.inference.status import Shard, read_status, write_summary
from mindgap.regions import find_convention
from mindgap.runfiles import COHORT, STATUS, read_lines
from mindgap.sequences import Sequence

LABELS = find_convention("brats2017")


@pytest.fixture
def many(study, tmp_path: Path) -> Cohort:
    """Five cases without labels, the third of which is damaged."""
    source = study.cases[0].images
    for name in ("A", "B", "C", "D", "E"):
        for sequence, image in source.items():
            target = tmp_path / "cohort" / name / f"{name}_{sequence}.nii"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image.path, target)
    (tmp_path / "cohort" / "C" / "C_T1.nii").write_bytes(b"garbage")
    return discover(tmp_path / "cohort", label=False)


def _segment(anything, many: Cohort, out: Path, **options):
    return segment_cases(Panel.of_one(anything), many, out, convention=LABELS, **options)


def _bytes(out: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*/*.nii.gz")}


def test_a_damaged_case_is_listed_and_the_others_are_done(anything, many, tmp_path):
    seen = []
    out = tmp_path / "out"
    outcome = _segment(anything, many, out, progress=lambda done, total, case: seen.append((done, total, case)))
    assert outcome.done == ["A", "B", "D", "E"]
    assert list(outcome.failed) == ["C"]
    assert "C_T1.nii: expected a whole NIfTI file" in outcome.failed["C"]
    assert seen == [(n, 5, case) for n, case in enumerate("ABCDE", start=1)]
    status = read_status(out)
    assert [line.status for line in status.values()] == ["done", "done", "failed", "done", "done"]
    assert status["A"].subset == "T1+T2+T1ce+FLAIR"
    assert status["A"].files["T1"].endswith("A_T1.nii")
    assert set(status["A"].seconds) == {"read", "compute", "write"}
    alone = anything.segment(many.cases[0].load())
    np.testing.assert_array_equal(
        np.asarray(nib.load(mask_of(out, "A", Sequence.T1)).dataobj), np.array([0, 4, 1, 2], np.uint8)[alone.target]
    )
    assert status["A"].volumes_ml == {str(r): pytest.approx(ml, abs=1e-3) for r, ml in alone.volumes_ml.items()}
    assert not mask_of(out, "C", Sequence.T1).exists()


def test_the_next_case_is_read_while_one_is_computed_and_no_more_than_that(anything, many, tmp_path, monkeypatch):
    begun: list[str] = []
    second, ahead = threading.Event(), []
    read, find = module.read_for, module.find_in

    def watched_read(predictor, files, **options):
        begun.append(files.case_id)
        if files.case_id == "B":
            second.set()
        return read(predictor, files, **options)

    def watched_find(predictor, reading, *known):
        if reading.files.case_id == "A":
            assert second.wait(20), "B is read while A is computed"
        ahead.append(len(begun))
        return find(predictor, reading, *known)

    monkeypatch.setattr(module, "read_for", watched_read)
    monkeypatch.setattr(module, "find_in", watched_find)
    outcome = _segment(anything, replace(many, cases=many.cases[:2] + many.cases[3:]), tmp_path / "out")
    assert outcome.done == ["A", "B", "D", "E"]
    assert ahead[0] == 2
    assert all(count <= number + 2 for number, count in enumerate(ahead))


def test_whatever_one_case_brings_the_others_go_on(anything, many, tmp_path, monkeypatch):
    find = module.find_in

    def fragile(predictor, reading, *known):
        if reading.files.case_id == "B":
            raise RuntimeError("out of\n memory")
        return find(predictor, reading, *known)

    monkeypatch.setattr(module, "find_in", fragile)
    outcome = _segment(anything, many, tmp_path / "out")
    assert outcome.done == ["A", "D", "E"]
    assert outcome.failed["B"] == "B: RuntimeError: out of memory"


def test_what_cannot_be_written_stops_the_run(anything, many, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MindgapError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_mask", full)
    with pytest.raises(MindgapError, match="the disk is full"):
        _segment(anything, many, tmp_path / "out")
    assert read_status(tmp_path / "out") == {}


def test_a_folder_of_somebody_else_is_its_cases_matter(anything, many, tmp_path, monkeypatch):
    written = module.write_mask

    def refused(path, *known, **named):
        if path.parent.name == "B":
            raise MindgapError(f"{path} could not be written") from OSError(errno.EACCES, "Permission denied")
        return written(path, *known, **named)

    monkeypatch.setattr(module, "write_mask", refused)
    outcome = _segment(anything, many, tmp_path / "out")
    assert outcome.done == ["A", "D", "E"]
    assert "B_seg.nii.gz could not be written" in outcome.failed["B"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are bytes")
def test_a_name_that_is_no_utf8_costs_no_summary(anything, many, tmp_path):
    folder = os.fsdecode(b"M\xfcller")
    (tmp_path / "cohort" / "A").rename(tmp_path / "cohort" / folder)
    cohort = discover(tmp_path / "cohort", label=False)
    out = tmp_path / "out"
    assert _segment(anything, cohort, out).done == ["B", "D", "E", folder]
    assert "M\\udcfcller,done" in write_summary(out).read_text(encoding="utf-8")
    (manifest,) = (out / folder).glob("*.manifest.json")
    assert folder in json.loads(manifest.read_text(encoding="utf-8"))["inputs"]["T1"]["file"]
    assert read_status(out)[folder].status == "done"
    assert folder in _segment(anything, cohort, out, resume=True).skipped


def test_a_signal_does_not_wait_for_what_the_reader_waits_for(anything, many, tmp_path, monkeypatch):
    ended, read = threading.Event(), module.read_for

    def read_slowly(predictor, files, **named):
        if files.case_id == "B":
            ended.wait(30)
        return read(predictor, files, **named)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "stop_hd_bet", ended.set)
    monkeypatch.setattr(module._Run, "find", interrupted)
    monkeypatch.setattr(module, "read_for", read_slowly)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _segment(anything, many, tmp_path / "out")
    assert time.monotonic() - began < 20


def test_resuming_repeats_only_what_is_missing_or_damaged(anything, many, tmp_path):
    out = tmp_path / "out"
    _segment(anything, many, out)
    before = _bytes(out)
    mask_of(out, "A", Sequence.T1).write_bytes(before["A_seg.nii.gz"][1][:60])
    mask_of(out, "D", Sequence.T1).unlink()
    outcome = _segment(anything, many, out, resume=True)
    assert outcome.done == ["A", "D"]
    assert outcome.skipped == ["B", "E"]
    assert list(outcome.failed) == ["C"]
    after = _bytes(out)
    assert after["B_seg.nii.gz"] == before["B_seg.nii.gz"]
    assert after["E_seg.nii.gz"] == before["E_seg.nii.gz"]
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    kinds = [(line["case"], line["status"]) for line in read_lines(out / STATUS)]
    assert ("B", "skipped") in kinds
    assert read_status(out)["B"].status == "done"


def test_notes_beside_a_mask_are_not_written_over(anything, many, tmp_path):
    notes = mask_of(tmp_path / "out", "B", Sequence.T1).with_name("B_seg.json")
    notes.parent.mkdir(parents=True)
    notes.write_text('{"reader": "second look wanted"}')
    outcome = _segment(anything, many, tmp_path / "out")
    assert "is not about a mask" in outcome.failed["B"]
    assert notes.read_text() == '{"reader": "second look wanted"}'
    assert outcome.done == ["A", "D", "E"]


def test_what_cannot_be_said_of_one_mask_is_its_cases_matter(anything, many, tmp_path, monkeypatch):
    write = module.write_mask

    def fails_for_b(mask, found, *rest, **options):
        if found.reading.files.case_id == "B":
            raise ValueError("no address")
        return write(mask, found, *rest, **options)

    monkeypatch.setattr(module, "write_mask", fails_for_b)
    outcome = _segment(anything, many, tmp_path / "out")
    assert "ValueError: no address" in outcome.failed["B"]
    assert outcome.done == ["A", "D", "E"]


@pytest.mark.parametrize("editor", ["new header", "same header", "SimpleITK"])
def test_a_corrected_mask_is_not_written_over(anything, many, tmp_path, editor):
    out = tmp_path / "out"
    _segment(anything, many, out)
    mask = mask_of(out, "B", Sequence.T1)
    image = nib.load(mask)
    edited = np.zeros(image.shape, np.uint8)
    edited[3, 4, 5] = 4
    if editor == "SimpleITK":
        from SimpleITK import GetArrayFromImage, GetImageFromArray, ReadImage, WriteImage

        read = ReadImage(str(mask))
        changed = GetImageFromArray(GetArrayFromImage(read) * 0 + 2)
        changed.CopyInformation(read)
        WriteImage(changed, str(mask))
    else:
        mask.unlink()
        nib.save(nib.Nifti1Image(edited, image.affine, image.header if editor == "same header" else None), mask)
    content = mask.read_bytes()
    outcome = _segment(anything, many, out, resume=True)
    assert "that mindgap did not write, or that was changed since" in outcome.failed["B"]
    with pytest.raises(SettingError, match="a corrected mask"):
        check_mask_place(mask)
    assert mask.read_bytes() == content


def test_a_case_whose_sequences_or_files_changed_is_done_again(anything, many, tmp_path):
    out = tmp_path / "out"
    fewer = replace(many, cases=tuple(replace(c, images={Sequence.T1: c.images[Sequence.T1]}) for c in many.cases))
    _segment(anything, fewer, out)
    assert read_status(out)["A"].subset == "T1"
    a, b, *rest = fewer.cases
    renamed = tmp_path / "cohort" / "B" / "B_again_T1.nii"
    b.images[Sequence.T1].path.rename(renamed)
    mixed = (many.cases[0], replace(b, images={Sequence.T1: replace(b.images[Sequence.T1], path=renamed)}), *rest)
    outcome = _segment(anything, replace(many, cases=mixed), out, resume=True)
    assert outcome.done == ["A", "B"]
    assert outcome.skipped == ["D", "E"]
    assert read_status(out)["A"].subset == "T1+T2+T1ce+FLAIR"
    assert a.case_id == "A"


def test_a_case_whose_files_hold_something_else_now_is_done_again(anything, many, tmp_path):
    out = tmp_path / "out"
    _segment(anything, many, out)
    a, b, _, d, _ = (files.images[Sequence.T1].path for files in many.cases)
    past, soon = a.stat().st_mtime - 3600, time.time() + 3600
    image = nib.load(a)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 1.1, image.affine, image.header), a)
    os.utime(a, (soon, soon))  # exported anew, of the same length
    b.write_bytes(b.read_bytes() + bytes(8))
    os.utime(b, (past, past))  # another length, however old it says it is
    os.utime(d, (soon, soon))  # only copied
    outcome = _segment(anything, many, out, resume=True)
    assert outcome.done == ["A", "B"]
    assert outcome.skipped == ["D", "E"]


@pytest.mark.parametrize("layout", ["folders", "bids"])
def test_the_mask_of_a_case_that_fails_now_is_no_mask_of_it_any_more(anything, many, tmp_path, layout):
    out = tmp_path / "out"
    _segment(anything, many, out, layout=layout, probabilities=True)
    mask = mask_of(out, "B", Sequence.T1, layout)
    before, names = mask.read_bytes(), {path.name for path in mask.parent.iterdir()}
    many.cases[1].images[Sequence.T1].path.write_bytes(b"garbage")
    outcome = _segment(anything, many, out, layout=layout, probabilities=True, resume=True)
    assert "B_T1.nii: expected a whole NIfTI file" in outcome.failed["B"]
    assert outcome.failed["B"].endswith(f"; its earlier mask was set aside as {mask.name}.stale")
    assert {path.name for path in mask.parent.iterdir()} == {f"{name}.stale" for name in names}
    assert mask.with_name(f"{mask.name}.stale").read_bytes() == before
    assert outcome.skipped == ["A", "D", "E"]
    assert "earlier mask" not in outcome.failed["C"], "it never had one"


def test_probabilities_that_are_gone_are_made_again(anything, many, tmp_path):
    out = tmp_path / "out"
    _segment(anything, many, out, probabilities=True)
    lost = out / "B" / "B_seg_probabilities.nii.gz"
    content = np.asarray(nib.load(lost).dataobj)
    lost.unlink()
    outcome = _segment(anything, many, out, probabilities=True, resume=True)
    assert (outcome.done, outcome.skipped) == (["B"], ["A", "D", "E"])
    np.testing.assert_array_equal(np.asarray(nib.load(lost).dataobj), content)


def test_a_file_that_goes_away_while_it_is_segmented_ends_no_cohort(anything, many, tmp_path, monkeypatch):
    find, gone = module.find_in, many.cases[1].images[Sequence.T2].path

    def slow(predictor, reading, *known):
        if reading.files.case_id == "B":
            gone.unlink()
        return find(predictor, reading, *known)

    monkeypatch.setattr(module, "find_in", slow)
    out = tmp_path / "out"
    assert _segment(anything, many, out).done == ["A", "B", "D", "E"]
    outcome = _segment(anything, many, out, resume=True)
    assert outcome.skipped == ["A", "D", "E"]
    assert "B_T2.nii" in outcome.failed["B"]


def test_files_of_others_with_our_names_are_refused_before_any_work(anything, many, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.csv").write_text("age,sex\n")
    with pytest.raises(SettingError, match=r"summary\.csv of somebody else"):
        _segment(anything, many, out)
    assert (out / "summary.csv").read_text() == "age,sex\n"
    data_set = tmp_path / "bids"
    data_set.mkdir()
    (data_set / "dataset_description.json").write_text(json.dumps({"Name": "ours", "Authors": ["A. Reader"]}))
    with pytest.raises(SettingError, match="a BIDS data set that mindgap did not make"):
        _segment(anything, many, data_set, layout="bids")
    assert json.loads((data_set / "dataset_description.json").read_text())["Name"] == "ours"
    (tmp_path / "brain.json").write_text('{"EchoTime": 0.1}')
    with pytest.raises(SettingError, match=r"brain\.json exists and is not about a mask"):
        check_mask_place(tmp_path / "brain.nii.gz")


def test_a_folder_with_results_is_taken_only_to_go_on_and_only_by_the_same_model(anything, fixed, many, tmp_path):
    out = tmp_path / "out"
    _segment(anything, many, out)
    with pytest.raises(SettingError, match="add --resume"):
        _segment(anything, many, out)
    with pytest.raises(SettingError, match=r"labels brats2017 \(now msd\)"):
        segment_cases(Panel.of_one(anything), many, out, convention=find_convention("msd"), resume=True)
    known = json.loads((out / COHORT).read_text())
    assert known["model_sha256"] == anything.sha256
    (out / COHORT).write_text(json.dumps({**known, "model_sha256": "0" * 64}))
    with pytest.raises(SettingError, match="masks made otherwise: model_sha256 000000000000"):
        _segment(anything, many, out, resume=True)
    (out / COHORT).write_text(json.dumps({**known, "coverage": "tiles"}))
    with pytest.raises(SettingError, match="coverage tiles"):
        _segment(anything, many, out, resume=True)


def test_half_a_line_left_by_a_kill_hides_no_later_line(anything, many, tmp_path):
    out = tmp_path / "out"
    _segment(anything, many, out)
    text = (out / STATUS).read_text()
    (out / STATUS).write_text(text[:-40])
    outcome = _segment(anything, many, out, resume=True)
    assert outcome.done == ["E"]
    assert set(read_status(out)) == set("ABCDE")


def test_leftovers_of_a_killed_writer_are_removed(anything, many, tmp_path):
    out = tmp_path / "out"
    leftover = out / "A" / ".999999999.part.A_seg.nii.gz"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    _segment(anything, many, out)
    assert not leftover.exists()


def test_shards_take_every_case_once_and_the_summary_is_whole(anything, many, tmp_path, monkeypatch):
    out = tmp_path / "out"
    outcomes = [_segment(anything, many, out, shard=Shard(number, 3)) for number in (1, 2, 3)]
    assert [[*o.done, *o.failed] for o in outcomes] == [["A", "D"], ["B", "E"], ["C"]]
    assert sorted(path.name for path in out.glob("status*")) == [f"status-{n}-of-3.jsonl" for n in (1, 2, 3)]
    rows = write_summary(out).read_text().splitlines()
    assert rows[0] == (
        "case,status,subset,WT_ml,TC_ml,ET_ml,WT_expected_dice,TC_expected_dice,ET_expected_dice,review,seconds,reason"
    )
    assert [row.split(",")[:2] for row in rows[1:]] == [[c, "failed" if c == "C" else "done"] for c in "ABCDE"]
    last = out / "status-3-of-3.jsonl"
    line, wrote = last.read_text(), []
    last.write_text("")

    def write_and_be_late(path, text):
        write_text(path, text)
        wrote.append(text)
        last.write_text(line)  # another share ends while the table is written

    monkeypatch.setattr(status, "write_text", write_and_be_late)
    assert write_summary(out).read_text().splitlines() == rows
    assert len(wrote) == 2
    with pytest.raises(SettingError, match="add --resume"):
        _segment(anything, many, out, shard=Shard(2, 3))
    with pytest.raises(SettingError, match="add --resume"):
        _segment(anything, many, out)
    assert _segment(anything, many, out, resume=True).skipped == ["A", "B", "D", "E"], "other shares of the same cases"


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1", "1/0", "a/b", "-1/2"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(SettingError, match="write 2/4"):
        Shard.parse(text)


def test_shares_are_disjoint_and_whole():
    names = {f"case{n}" for n in range(11)}
    shares = [Shard.parse(f"{number}/4").share(names) for number in (1, 2, 3, 4)]
    assert sorted(name for share in shares for name in share) == sorted(names)


def test_what_the_cohort_rejected_is_listed_and_names_cannot_leave_the_folder(anything, many, tmp_path):
    with pytest.raises(InputError, match="without /"):
        replace(many.cases[0], case_id="../escaped")
    some = replace(many, cases=(many.cases[1],), rejected={"two": "two folders carry this name"})
    outcome = _segment(anything, some, tmp_path / "out")
    assert outcome.done == ["B"]
    assert outcome.failed["two"] == "two: two folders carry this name"


def test_a_case_that_lacks_what_the_network_needs_says_what(fixed, many, tmp_path):
    lacking = replace(many.cases[0], images={s: p for s, p in many.cases[0].images.items() if str(s) != "T2"})
    outcome = _segment(fixed, replace(many, cases=(lacking,)), tmp_path / "out")
    assert "expected T1+T2+T1ce+FLAIR" in outcome.failed["A"]
    assert "add T2" in outcome.failed["A"]


def test_a_network_for_any_subset_takes_incomplete_cases(anything, many, tmp_path):
    lacking = replace(many.cases[0], images={s: p for s, p in many.cases[0].images.items() if str(s) != "T2"})
    assert _segment(anything, replace(many, cases=(lacking,)), tmp_path / "out").done == ["A"]
    assert read_status(tmp_path / "out")["A"].subset == "T1+T1ce+FLAIR"
