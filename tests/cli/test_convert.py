"""Many DICOM examinations become a cohort: a table first, which a person corrects, then files."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.cli import convert as verb
from mindgap.cli import main
from mindgap.data.cohort import discover
from mindgap.data.conversion import convert
from mindgap.data.dicom import read_series
from mindgap.data.dicom_convert import convert_series
from mindgap.data.examinations import find_examinations
from mindgap.data.series_table import Table, read_table
from mindgap.data.survey import survey
from mindgap.errors import InputError

pydicom = pytest.importorskip("pydicom")
GRID = np.diag([4.0, 4.0, 5.0, 1.0])


@pytest.fixture
def export(write_dicom, tmp_path: Path) -> Path:
    """P1 has all four; of P2 one series is unclear; P3 is a .zip of T1ce and FLAIR; P4 is cut short."""
    root = tmp_path / "export"
    rng = np.random.default_rng(0)

    def write(case: str, kind: str, number: int, **entries) -> None:
        study = {"PatientID": case, "StudyInstanceUID": f"1.2.3.{case[1:]}"}
        write_dicom(root / case / f"S{number}", rng.integers(1, 900, (12, 10, 6)), GRID, kind=kind,
                    SeriesNumber=number, **{**study, **entries})  # fmt: skip

    for case in ("P1", "P2", "P3", "P4"):
        write(case, "FLAIR", 6)
        write(case, "T1ce", 9)
    write("P1", "T1", 2)
    write("P1", "T2", 4)
    write("P2", "T2", 4, SeriesDescription="AX", EchoTime=45, RepetitionTime=1800)
    with zipfile.ZipFile(root / "P3.zip", "w") as archive:
        for path in sorted((root / "P3").rglob("IM*")):
            archive.write(path, path.relative_to(root / "P3"))
    shutil.rmtree(root / "P3")
    next((root / "P4" / "S6").iterdir()).write_bytes(b"")
    (root / "notes").mkdir()
    return root


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        return list(csv.DictReader(handle))


def _write(path: Path, rows: list[dict[str, str]], *, encoding: str = "utf-8", delimiter: str = ",") -> None:
    with path.open("w", encoding=encoding, newline="") as handle:
        writer = csv.DictWriter(handle, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _decide(path: Path, series: tuple[str, str], word: str) -> None:
    """Write a word into the row of a case and a series number, and a column of one's own."""
    rows = _rows(path)
    for row in rows:
        row["note"] = "looked at" if (row["case"], row["series"]) == series else ""
        row["sequence"] = word if row["note"] else row["sequence"]
    _write(path, rows)


def _row(path: Path, case: str, series: str) -> dict[str, str]:
    return next(row for row in _rows(path) if (row["case"], row["series"]) == (case, series))


def test_a_table_comes_first_and_what_it_says_is_converted(export, tmp_path, capsys) -> None:
    out = tmp_path / "cohort"
    command = ["convert", str(export), "-o", str(out)]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "3 examinations of 9 series: T1 in 1, T2 in 1, T1ce in 3, FLAIR in 3" in text
    assert "to decide: P2: series 4 (AX) may be T1 or T2" in text
    assert "failed: P4: " in text
    assert "no DICOM in notes" in text
    assert "nothing was converted" in text
    assert [path.name for path in out.iterdir()] == ["series.csv"]

    assert main([*command, "--yes"]) == 1
    assert "2 converted, 1 to decide, 1 failed" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["P1", "P3"]

    _decide(out / "series.csv", ("P2", "4"), "t2w")
    assert main([*command, "--yes"]) == 1
    assert "1 converted, 2 converted before, 1 failed" in capsys.readouterr().out
    row = _row(out / "series.csv", "P2", "4")
    assert (row["sequence"], row["proposed"], row["note"]) == ("T2", "?", "looked at")
    assert row["reason"].startswith("decided by hand; by its headers: ")
    assert not list(out.glob(".conv*"))

    cohort = discover(out, label=False)
    assert not cohort.rejected
    assert {case.case_id: "+".join(map(str, case.images)) for case in cohort.cases} == {
        "P1": "T1+T2+T1ce+FLAIR",
        "P2": "T2+T1ce+FLAIR",
        "P3": "T1ce+FLAIR",
    }


def test_files_are_those_of_one_examination_and_say_where_they_come_from(export, tmp_path) -> None:
    (tmp_path / "cohort").mkdir()
    convert(survey(export).decide(Table()), tmp_path / "cohort")
    series = next(one for one in read_series(export / "P1") if one.number == 9)
    convert_series(series, tmp_path / "alone.nii.gz")
    made, alone = nib.load(tmp_path / "cohort" / "P1" / "P1_t1ce.nii.gz"), nib.load(tmp_path / "alone.nii.gz")
    np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(alone.dataobj))
    np.testing.assert_array_equal(made.affine, alone.affine)
    facts = json.loads((tmp_path / "cohort" / "P1" / "P1_series.json").read_text())["made_of"]
    assert facts["T1ce"]["series"]["uid"] == series.uid
    assert list(facts) == ["T1", "T2", "T1ce", "FLAIR"]


def test_two_series_of_one_sequence_are_asked_about_and_one_examination_may_be_left_out(
    export, tmp_path, capsys
) -> None:
    out = tmp_path / "cohort"
    command = ["convert", str(export), "-o", str(out), "--yes"]
    assert main(command[:-1]) == 1
    _decide(out / "series.csv", ("P1", "4"), "FLAIR")
    rows = _rows(out / "series.csv")
    for row in rows:
        row["sequence"] = "none" if row["case"] == "P3" else row["sequence"]
    _write(out / "series.csv", rows)
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "to decide: P1: series 4 (AX T2 TSE) and series 6 (AX FLAIR) are both FLAIR in the table" in said
    assert "0 converted, 1 with none of the four, 2 to decide, 1 failed" in said
    assert "--raw" not in said
    assert not (out / "P1").exists()
    assert _row(out / "series.csv", "P1", "4")["note"] == "looked at"


def test_what_was_converted_is_never_replaced(export, tmp_path, capsys) -> None:
    out = tmp_path / "cohort"
    command = ["convert", str(export), "-o", str(out), "--yes"]
    main(command)
    before = (out / "P1" / "P1_t2.nii.gz").read_bytes()
    _decide(out / "series.csv", ("P1", "2"), "-")
    (out / "P3" / "P3_flair.nii.gz").unlink()
    (out / "P2").mkdir()
    _decide(out / "series.csv", ("P2", "4"), "T2")
    (out / "P2" / "P2_series.json").write_text('{"made_of": []}')
    capsys.readouterr()
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "failed: P1: images of other series than the table says now" in said
    assert "failed: P2: one that no conversion left there whole" in said
    assert "failed: P3: one that has lost P3_flair.nii.gz" in said
    assert (out / "P1" / "P1_t2.nii.gz").read_bytes() == before


def test_a_series_that_cannot_be_converted_leaves_no_folder(export, tmp_path, capsys) -> None:
    files = sorted((export / "P1" / "S2").iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    files[2].unlink()  # a gap, which dcm2niix would not mind
    (tmp_path / "cohort" / ".converting-P9").mkdir(parents=True)  # as a kill leaves it
    assert main(["convert", str(export), "-o", str(tmp_path / "cohort"), "--yes"]) == 1
    assert "failed: P1: series 2 (AX T1 SE): " in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "cohort").iterdir())] == ["P3", "series.csv"]


def test_a_guess_that_no_longer_holds_is_no_decision_and_a_removed_row_is_asked_about(
    export, write_dicom, tmp_path
) -> None:
    path = tmp_path / "cohort" / "series.csv"
    command = ["convert", str(export), "-o", str(path.parent)]
    main(command)
    write_dicom(export / "P1" / "S12", np.ones((12, 10, 6)), GRID, kind="T1", SeriesNumber=12, PatientID="P1",
                StudyInstanceUID="1.2.3.1")  # fmt: skip
    _write(path, [row for row in _rows(path) if (row["case"], row["series"]) != ("P3", "6")])
    main(command)
    assert {_row(path, "P1", number)["sequence"] for number in ("2", "12")} == {"?"}
    assert (_row(path, "P3", "6")["sequence"], _row(path, "P3", "6")["proposed"]) == ("?", "FLAIR")
    main(command)
    assert _row(path, "P3", "6")["reason"].startswith("left open, new, or its row was removed")


def test_rows_that_were_not_seen_stay_and_rows_are_known_by_uid(export, tmp_path, capsys) -> None:
    path = tmp_path / "cohort" / "series.csv"
    main(["convert", str(export), "-o", str(path.parent)])
    rows = _rows(path)
    for row in rows:
        row["case"] = row["case"].replace("P1", "1")  # as a spreadsheet does to 001
        row["sequence"] = "-" if (row["case"], row["series"]) == ("1", "4") else row["sequence"]
    _write(path, rows)
    capsys.readouterr()
    main(["convert", str(export / "P1"), "-o", str(path.parent), "--yes"])
    assert sorted(file.name for file in (path.parent / "P1").glob("*.gz")) == [
        *("P1_flair.nii.gz", "P1_t1.nii.gz", "P1_t1ce.nii.gz")
    ]
    assert sorted({row["case"] for row in _rows(path)}) == ["P1", "P2", "P3"]
    assert len(_rows(path)) == 9


def test_what_is_written_while_headers_are_read_or_the_question_stands_counts(export, tmp_path, monkeypatch) -> None:
    path = tmp_path / "cohort" / "series.csv"

    def corrects(table: Path) -> bool:
        _decide(table, ("P1", "4"), "-")
        return True

    monkeypatch.setattr(verb, "_agreed", corrects)
    main(["convert", str(export), "-o", str(path.parent)])
    assert not (path.parent / "P1" / "P1_t2.nii.gz").exists()
    assert (path.parent / "P1" / "P1_t1.nii.gz").exists()


def test_an_output_among_what_is_converted_is_refused(export, fails) -> None:
    for out in (export, export / "cohort"):
        assert "name a folder beside it" in fails(["convert", str(export), "-o", str(out)])
    assert sorted(path.name for path in export.iterdir()) == ["P1", "P2", "P3.zip", "P4", "notes"]


def test_examinations_are_told_by_study_whichever_way_they_are_nested(export, tmp_path) -> None:
    assert list(find_examinations(export).examinations) == ["P1", "P2", "P3", "P4"]
    assert find_examinations(export / "P1").examinations == {"P1": export / "P1"}
    assert find_examinations(export / "P1" / "S2").examinations == {"S2": export / "P1" / "S2"}
    assert find_examinations(export / "P3.zip").examinations == {"P3": export / "P3.zip"}
    (tmp_path / "zips" / "P8").mkdir(parents=True)
    shutil.copy(export / "P3.zip", tmp_path / "zips" / "P8" / "exam.zip")
    assert find_examinations(tmp_path / "zips").examinations == {"exam": tmp_path / "zips" / "P8" / "exam.zip"}
    shutil.copy(export / "P3.zip", tmp_path / "zips")
    assert find_examinations(tmp_path / "zips").failed.keys() == {"P3.zip", "P8"}
    shutil.copytree(export / "P2" / "S6", tmp_path / "zips" / "P8" / "S6")
    (tmp_path / "zips" / "P3.zip").unlink()
    assert list(find_examinations(tmp_path / "zips").examinations) == ["S6", "exam"]
    shutil.copytree(export / "P2", tmp_path / "disc" / "DICOM" / "PA0" / "ST0")
    (tmp_path / "disc" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    disc = find_examinations(tmp_path / "disc")
    assert disc.examinations == {"disc": tmp_path / "disc"}
    shutil.copytree(export / "P1", tmp_path / "disc" / "DICOM" / "PA1" / "ST0")
    shutil.copytree(export / "P4", tmp_path / "disc" / "DICOM" / "PA1" / "ST1")
    assert list(find_examinations(tmp_path / "disc").examinations) == ["PA0", "PA1_ST0", "PA1_ST1"]
    shutil.copytree(export / "P1" / "S2", tmp_path / "disc" / "DICOM" / "PA1" / "S2")
    beside = find_examinations(tmp_path / "disc")
    assert list(beside.examinations) == ["PA0", "PA1_ST1"]
    assert list(beside.failed.values()) == [
        "its study lies in ST0 too; give each one folder of its own",
        "its study lies in S2 too; give each one folder of its own",
    ]
    shutil.copy(next((export / "P1" / "S2").iterdir()), tmp_path / "disc" / "DICOM" / "PA1")
    assert list(find_examinations(tmp_path / "disc").examinations) == ["PA0"]


def test_what_may_be_an_examination_and_gives_none_is_listed_at_any_depth(export, tmp_path) -> None:
    site = export / "site"
    site.mkdir()
    shutil.move(export / "P2", site / "P2")
    (site / "P5").symlink_to(tmp_path / "gone")
    (site / "P6").mkdir()
    (site / "P6" / "exam.tar.gz").write_bytes(b"")
    with zipfile.ZipFile(export / "viewer.zip", "w") as archive:
        archive.writestr("autorun.inf", "x" * 200)
    shutil.copytree(export / "P4", site / "P8")
    shutil.rmtree(export / "P4")
    found = find_examinations(export)
    assert list(found.failed) == ["site/P5", "site/P6/exam.tar.gz"]
    assert found.others == ["notes", "site/P6", "viewer.zip"]
    with pytest.raises(InputError, match="found no DICOM"):
        find_examinations(export / "notes")
    with pytest.raises(InputError, match="found nothing there"):
        find_examinations(tmp_path / "nowhere")


def test_links_lead_nowhere_twice(export) -> None:
    for index in range(9):
        (export / f"L{index}").mkdir()
    for index in range(9):
        for other in range(9):
            (export / f"L{index}" / f"to{other}").symlink_to(export / f"L{other}")
    (export / "P1" / "up").symlink_to(export)
    (export / "P1" / "again").symlink_to(export / "P1" / "S2")
    assert list(find_examinations(export).examinations) == ["P1", "P2", "P3", "P4"]
    assert [len(one.slices) for one in read_series(export / "P1")] == [6, 6, 6, 6]


def test_copies_are_two_patients_to_nobody(export, tmp_path, capsys) -> None:
    with zipfile.ZipFile(export / "P1_backup.zip", "w") as archive:
        for path in sorted((export / "P1").rglob("IM*")):
            archive.write(path, path.relative_to(export / "P1"))
    found = find_examinations(export)
    assert found.failed["P1"] == "its study lies in P1_backup.zip too; give each one folder of its own"
    shutil.move(export / "P1_backup.zip", export / "P2" / "more.zip")
    assert find_examinations(export).failed.keys() == {"P1", "P2"}
    with zipfile.ZipFile(export / "two.zip", "w") as archive:
        for place in (export / "P1" / "S2", export / "P4" / "S9"):
            archive.write(next(place.iterdir()), f"{place.name}/IM")
    shutil.rmtree(export / "P1")
    shutil.rmtree(export / "P4")
    (export / "P2" / "more.zip").unlink()
    assert find_examinations(export).failed == {"two.zip": "an archive of 2 examinations; unpack it"}


def test_series_that_were_converted_under_another_name_are_not_converted_again(export, tmp_path, capsys) -> None:
    shutil.move(export / "P1", export / "P0" / "ST1")
    command = ["convert", str(export), "-o", str(tmp_path / "cohort"), "--yes"]
    main(command)
    shutil.move(export / "P4", export / "P0" / "ST2")
    capsys.readouterr()
    assert main(command) == 1
    assert "failed: P0_ST1: its series, converted under that name where no folder" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "cohort").iterdir()) == ["P0", "P3", "series.csv"]


def test_an_emptied_cell_and_a_proposal_that_was_changed_are_no_decisions(export, tmp_path) -> None:
    path = tmp_path / "cohort" / "series.csv"
    command = ["convert", str(export), "-o", str(path.parent)]
    main(command)
    rows = _rows(path)
    rows[0]["sequence"], rows[1]["sequence"], rows[1]["proposed"] = "", "T1ce", "T1ce"
    _write(path, rows)
    main(command)
    assert [row["sequence"] for row in _rows(path)][:4] == ["?", "?", "FLAIR", "T1ce"]


def test_damaged_files_part_no_examination(export) -> None:
    for path in (export / "P1" / "S2").iterdir():
        path.write_bytes(bytes(128) + b"DICM" + b"x" * 40)
    found = find_examinations(export)
    assert (list(found.examinations), found.failed) == (["P1", "P2", "P3", "P4"], {})
    assert "P1" in survey(export).failed


def test_a_folder_without_any_mark_is_a_series_too_or_refused(export) -> None:
    for path in (export / "P1" / "S2").iterdir():
        path.write_bytes(path.read_bytes()[132:])  # without the mark
    (export / "P1" / "README").write_text("exported\n" * 40)
    assert [one.number for one in read_series(export / "P1")] == [2, 4, 6, 9]
    for path in (export / "P1" / "S4").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes beside DICOM files"):
        read_series(export / "P1")


def test_a_link_to_nothing_among_series_is_refused(export, tmp_path) -> None:
    (export / "P1" / "S13").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="P1: expected a file behind every link, found S13"):
        read_series(export / "P1")
    (export / "P1" / "S13").unlink()
    shutil.move(export / "P1" / "S2", tmp_path / "elsewhere")
    (export / "P1" / "S2").symlink_to(tmp_path / "elsewhere")
    assert [one.number for one in read_series(export / "P1")] == [2, 4, 6, 9]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no column"),
        ("case,what\nP1,T1\n", "called sequence or uid"),
        ("case,uid,sequence\nP1,1,T1,x\n", "4 cells under 3 names in row 2"),
        ("case,uid,sequence\nP1,1,T1\nP1,1,T2\n", "T1 and T2 for one uid in row 3"),
        ("case,uid,sequence\nP1,,T1\n", "no uid in row 2"),
        ("case,uid,sequence\nP1,1,T3\n", "found 'T3'"),
    ],
)
def test_what_is_no_table_is_refused(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=found):
        read_table(path)


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8-sig", ";"), ("cp1252", ";"), ("utf-16", "\t")])
def test_a_table_is_read_as_spreadsheets_save_it(encoding: str, delimiter: str, tmp_path: Path) -> None:
    rows = [{"Case": "Müller", "UID": "1.2", "Sequence": "T1c"}, {"Case": "", "UID": "", "Sequence": ""}]
    _write(tmp_path / "series.csv", rows, encoding=encoding, delimiter=delimiter)
    table = read_table(tmp_path / "series.csv")
    assert table.lines == ({"case": "Müller", "uid": "1.2", "sequence": "T1ce"},)
    assert table.delimiter == delimiter
