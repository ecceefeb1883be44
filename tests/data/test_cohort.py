import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindgap.data.cohort import case_from_files, case_from_folder, discover
from mindgap.errors import InputError, SettingError
from mindgap.regions import find_convention
from mindgap.sequences import SEQUENCES, Sequence

NAMES_2023 = ("-t1n", "-t2w", "-t1c", "-t2f")


def _ids(cohort):
    return [case.case_id for case in cohort.cases]


def test_brats_2018_with_grades(tmp_path, write_case):
    write_case(tmp_path / "LGG" / "Brats18_B")
    write_case(tmp_path / "HGG" / "Brats18_A", endings=("_flair", "_t1"), label=None)
    cohort = discover(tmp_path)
    assert (cohort.layout, cohort.convention.name) == ("brats2017", "brats2017")
    assert _ids(cohort) == ["Brats18_A", "Brats18_B"]
    assert cohort.cases[0].sequences == (Sequence.T1, Sequence.FLAIR)
    assert cohort.cases[0].label is None
    assert cohort.cases[1].label.path.name == "Brats18_B_seg.nii.gz"
    assert cohort.rejected == {}


@pytest.mark.parametrize("above", [".", "a", "a/b"])
def test_any_depth_up_to_three(tmp_path, write_case, above):
    write_case(tmp_path / above / "X")
    assert _ids(discover(tmp_path)) == ["X"]


def test_deeper_folders_are_not_searched(tmp_path, write_case):
    write_case(tmp_path / "a" / "b" / "c" / "X")
    with pytest.raises(InputError, match=r"imagesTr.*manifest.* To mend"):
        discover(tmp_path)


def test_one_case_folder_is_a_cohort(tmp_path, write_case, monkeypatch):
    folder = write_case(tmp_path / "X")
    assert _ids(discover(folder)) == ["X"]
    monkeypatch.chdir(folder)
    assert _ids(discover(Path())) == ["X"]


def test_a_patient_with_a_folder_for_each_sequence_is_not_several_patients(tmp_path, write_case):
    write_case(tmp_path / "P1" / "T1")
    write_case(tmp_path / "P1" / "FLAIR")
    write_case(tmp_path / "P2")
    for place in (tmp_path, tmp_path / "P1"):
        with pytest.raises(InputError, match=r"named as sequences \(FLAIR, T1\), as of one patient"):
            discover(place)


def test_the_misnamed_label_of_brats_2020(tmp_path, write_case, write_nifti, make_label):
    folder = write_case(tmp_path / "BraTS20_Training_355", label=None)
    write_nifti(folder / "W39_1998.09.19_Segm.nii", make_label())
    assert discover(tmp_path).cases[0].label.path.name == "W39_1998.09.19_Segm.nii"


def test_a_case_called_seg_still_has_images(tmp_path, write_case):
    case = case_from_folder(write_case(tmp_path / "Segura_01"))
    assert case.sequences == SEQUENCES
    assert case.label.path.name == "Segura_01_seg.nii.gz"


@pytest.mark.parametrize(
    ("folder", "convention"), [("BraTS-GLI-00000-000", "brats2023"), ("BraTS-PED-00001-000", "brats-ped")]
)
def test_brats_2023(tmp_path, write_case, folder, convention):
    write_case(tmp_path / folder, NAMES_2023, "-seg", find_convention(convention).written)
    cohort = discover(tmp_path)
    assert (cohort.layout, cohort.convention.name) == ("brats2023", convention)
    assert cohort.cases[0].sequences == SEQUENCES
    assert cohort.cases[0].load(convention=cohort.convention).target.max() == 3
    assert discover(tmp_path, labels="brats2024-postop").convention.name == "brats2024-postop"


@pytest.mark.parametrize(
    "endings", [("_t1w", "_t1gd"), ("_t1pre", "_t1post"), ("_T1w", "_ce-gadolinium_T1w"), (" T1", ".t1ca")]
)
def test_other_names_give_cases_but_no_convention(tmp_path, write_case, endings):
    write_case(tmp_path / "X", endings)
    cohort = discover(tmp_path)
    assert cohort.cases[0].sequences == (Sequence.T1, Sequence.T1CE)
    assert (cohort.layout, cohort.convention) == ("folders", None)
    assert discover(tmp_path, labels="brats2017").convention.name == "brats2017"


def test_unknown_label_convention(tmp_path, write_case):
    write_case(tmp_path / "X")
    with pytest.raises(SettingError, match="brats2017"):
        discover(tmp_path, labels="brats1999")


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (("A", ("_t1",)), ("B", ("-t1n",)), r"brats2017 \(A\) and brats2023 \(B\)"),
        (("BraTS-GLI-1", ("-t1n",)), ("BraTS-PED-1", ("-t1n",)), r"brats2023 .* and brats-ped"),
    ],
)
def test_mixed_layouts_are_refused(tmp_path, write_case, first, second, found):
    for name, endings in (first, second):
        write_case(tmp_path / name, endings)
    with pytest.raises(InputError, match=f"{found}.* To mend: name one of the folders"):
        discover(tmp_path)


def test_a_case_folder_with_cases_inside_is_refused(tmp_path, write_case):
    folder = write_case(tmp_path / "A")
    write_case(folder / "B")
    with pytest.raises(InputError, match="images of one case and folders with other cases"):
        discover(folder)


def test_doubtful_cases_are_rejected_and_the_others_stay(tmp_path, write_case, write_nifti, make_image):
    write_case(tmp_path / "good")
    write_nifti(write_case(tmp_path / "twice") / "twice_t1n.nii.gz", make_image(9))
    write_nifti(write_case(tmp_path / "labels", label=None) / "a_seg.nii.gz", make_image())
    write_nifti(tmp_path / "labels" / "b_seg.nii.gz", make_image())
    write_case(tmp_path / "blind", ())
    for grade in ("HGG", "LGG"):
        write_case(tmp_path / grade / "same")
    cohort = discover(tmp_path)
    assert _ids(cohort) == ["good"]
    assert list(cohort.rejected) == ["blind", "labels", "same", "twice"]
    assert "twice_t1.nii.gz, twice_t1n.nii.gz where one file for T1" in cohort.rejected["twice"]
    assert "one file for the label" in cohort.rejected["labels"]
    assert "blind_seg.nii.gz" in cohort.rejected["blind"]
    assert "two folders" in cohort.rejected["same"]


def test_the_label_with_the_name_of_the_case_wins(tmp_path, write_case, write_nifti, make_label):
    folder = write_case(tmp_path / "X")
    write_nifti(folder / "X_mindgap_seg.nii.gz", make_label())
    assert case_from_folder(folder).label.path.name == "X_seg.nii.gz"


def test_hidden_files_and_folders_do_not_exist(tmp_path, write_case):
    folder = write_case(tmp_path / "X", ("_t1",))
    shutil.copy(folder / "X_t1.nii.gz", folder / "._X_t1.nii.gz")
    (folder / "._X_t2.nii.gz").write_bytes(b"")
    write_case(tmp_path / ".Trash" / "Y")
    cohort = discover(tmp_path)
    assert _ids(cohort) == ["X"]
    assert cohort.cases[0].sequences == (Sequence.T1,)


def test_nothing_is_opened(tmp_path):
    folder = tmp_path / "X"
    folder.mkdir()
    for ending in ("t1", "flair", "seg"):
        (folder / f"X_{ending}.nii.gz").write_bytes(b"garbage")
    assert discover(tmp_path).cases[0].sequences == (Sequence.T1, Sequence.FLAIR)


def test_when_nothing_is_found_the_message_says_what_was_looked_for(tmp_path, write_case):
    with pytest.raises(InputError, match=r"t1ce.*t2f.*imagesTr.*manifest.*found none of these.* To mend"):
        discover(tmp_path)
    write_case(tmp_path / "blind", ())
    with pytest.raises(InputError, match=r"no usable case \(blind: blind_seg"):
        discover(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        discover(tmp_path / "lost")
    with pytest.raises(InputError, match=r"one NIfTI file.*name the folder"):
        discover(tmp_path / "blind" / "blind_seg.nii.gz")


@pytest.fixture
def msd(tmp_path, write_nifti, make_image, make_label) -> Path:
    for name in ("BRATS_002", "BRATS_001"):
        stack = np.stack([make_image(seed) for seed in range(4)], axis=3)
        write_nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", stack)
    write_nifti(tmp_path / "labelsTr" / "BRATS_001.nii.gz", make_label((1, 2, 3)))
    (tmp_path / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"")
    return tmp_path


def test_msd(msd, make_image):
    cohort = discover(msd)
    assert (cohort.layout, cohort.convention.name) == ("msd", "msd")
    assert _ids(cohort) == ["BRATS_001", "BRATS_002"]
    assert cohort.cases[1].label is None
    case = cohort.cases[0].load(convention=cohort.convention)
    for channel, sequence in enumerate((Sequence.FLAIR, Sequence.T1, Sequence.T1CE, Sequence.T2)):
        np.testing.assert_array_equal(case.images[sequence].array, make_image(channel))


def test_msd_order_is_that_of_its_json(msd):
    names = {"0": "T1w", "1": "FLAIR", "2": "t1gd", "3": "T2w"}
    (msd / "dataset.json").write_text(json.dumps({"modality": names}))
    assert discover(msd).cases[0].images[Sequence.T1].channel == 0
    (msd / "dataset.json").write_text(json.dumps({"modality": {**names, "3": "ADC"}}))
    with pytest.raises(InputError, match=r"dataset.json.*ADC.* To mend"):
        discover(msd)


def test_msd_beside_case_folders_is_refused(msd, write_case):
    write_case(msd / "X")
    with pytest.raises(InputError, match=r"imagesTr .* and case folders \(brats2017\)"):
        discover(msd)


def test_nnunet_needs_its_json(tmp_path, write_nifti, make_image, make_label):
    for channel in (0, 1, 3):
        write_nifti(tmp_path / "imagesTr" / f"A_{channel:04d}.nii.gz", make_image(channel))
    write_nifti(tmp_path / "labelsTr" / "A.nii.gz", make_label((1, 2, 3)))
    with pytest.raises(InputError, match=r"channel_names.* To mend: add dataset.json"):
        discover(tmp_path)
    names = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    cohort = discover(tmp_path)
    assert (cohort.layout, cohort.convention) == ("nnunet", None)
    assert cohort.cases[0].sequences == (Sequence.T1, Sequence.T1CE, Sequence.FLAIR)
    assert cohort.cases[0].label.path.name == "A.nii.gz"


def _manifest(folder: Path, text: str) -> Path:
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_manifest(tmp_path, write_case):
    write_case(tmp_path / "X")
    path = _manifest(
        tmp_path,
        "Case, T1gd,flair,label\n"
        "b,X/X_t1ce.nii.gz,,X/X_seg.nii.gz\n"
        "\n"
        "a,X/X_t1ce.nii.gz, X/X_flair.nii.gz,\n"
        "empty,,,X/X_seg.nii.gz\n"
        "lost,X/none.nii.gz,,\n"
        "same,X/X_t1.nii.gz,X/X_t1.nii.gz,\n",
    )
    cohort = discover(path)
    assert (cohort.layout, cohort.convention) == ("manifest", None)
    assert _ids(cohort) == ["a", "b"]
    assert cohort.cases[0].sequences == (Sequence.T1CE, Sequence.FLAIR)
    assert cohort.cases[0].label is None
    assert discover(path, labels="brats2017").convention.name == "brats2017"
    assert cohort.cases[1].load(convention=discover(path, labels="brats2017").convention).target.max() == 3
    assert list(cohort.rejected) == ["empty", "lost", "same"]
    assert "line 5" in cohort.rejected["empty"]
    assert "none.nii.gz" in cohort.rejected["lost"]
    assert "named for T1ce and for FLAIR" in cohort.rejected["same"]


def test_manifest_with_channels(msd):
    cohort = discover(_manifest(msd, "case,t1,t2\nA,imagesTr/BRATS_001.nii.gz#1,imagesTr/BRATS_001.nii.gz#3\n"))
    assert cohort.cases[0].images[Sequence.T2].channel == 3
    assert cohort.cases[0].load().sequences == (Sequence.T1, Sequence.T2)


def test_manifest_with_links_to_nothing_and_upper_case_extensions(msd):
    (msd / "lost.nii.gz").symlink_to(msd / "annex")
    (msd / "A.NII.GZ").symlink_to(msd / "imagesTr" / "BRATS_001.nii.gz")
    cohort = discover(_manifest(msd, "case,t1,t2\nA,A.NII.GZ#1,A.NII.GZ#3\nB,lost.nii.gz,A.NII.GZ#3\n"))
    assert cohort.cases[0].images[Sequence.T2].channel == 3
    assert _ids(cohort) == ["A"]
    assert "lost.nii.gz" in cohort.rejected["B"]
    assert "datalad get" in cohort.rejected["B"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty file"),
        ("case,t1,adc,age\n", "unknown 'adc', 'age'"),
        ("t1,t2\n", "t1, t2"),
        ("case,label\n", "case, label"),
        ("case,t1ce,t1gd\n", "t1ce, t1gd"),
        ("case,t1,t1\n", "case, t1, t1"),
        ("case,t1\na,x.nii\na,y.nii\n", "line 3.*'a'"),
        ("case,t1\n ,x.nii\n", "line 2.*''"),
        ("case,t1\na\n", "line 2.*2 cells.*found 1"),
        ("case,t1\na,b,c\n", "line 2.*2 cells.*found 3"),
    ],
)
def test_wrong_manifests_are_refused(tmp_path, text, found):
    with pytest.raises(InputError, match=rf"cases.csv.*{found}.* To mend: \w+"):
        discover(_manifest(tmp_path, text))


@pytest.mark.parametrize("name", ["../escaped", "a/b", "..", "a\\b"])
def test_a_name_that_leads_elsewhere_gives_no_case(tmp_path, write_case, name):
    source = next(write_case(tmp_path / "P01").glob("*_t1.nii.gz"))
    cohort = discover(_manifest(tmp_path, f"case,t1\n{name},{source}\nP01,{source}\n"), label=False)
    assert [files.case_id for files in cohort.cases] == ["P01"]
    assert "rename the case" in cohort.rejected[name]


def test_unreadable_manifests_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"lost.csv.* To mend"):
        discover(tmp_path / "lost.csv")
    (tmp_path / "strange.csv").write_bytes(b"case,t1\nM\x81ller,x\n")
    with pytest.raises(InputError, match=r"strange.csv.*UTF-8"):
        discover(tmp_path / "strange.csv")


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8-sig", ";"), ("cp1252", ";"), ("utf-16", "\t")])
def test_manifests_are_read_as_spreadsheets_save_them(tmp_path, write_case, encoding, delimiter):
    source = next(write_case(tmp_path / "P01").glob("*_t1.nii.gz"))
    text = f"case,t1,t2\nMüller,{source},\n".replace(",", delimiter)
    (tmp_path / "cases.csv").write_bytes(text.encode(encoding))
    cohort = discover(tmp_path / "cases.csv", label=False)
    assert [(case.case_id, list(map(str, case.images))) for case in cohort.cases] == [("Müller", ["T1"])]


def test_case_from_folder_refuses_what_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        case_from_folder(tmp_path / "lost")
    with pytest.raises(InputError, match=r"found no NIfTI file. To mend: rename"):
        case_from_folder(tmp_path)


def test_case_from_files(tmp_path, write_case, write_nifti, make_image):
    folder = write_case(tmp_path / "X")
    files = {Sequence.FLAIR: folder / "X_flair.nii.gz", Sequence.T1: folder / "X_t1.nii.gz"}
    case = case_from_files(files)
    assert (case.case_id, case.sequences, case.label) == ("X", (Sequence.T1, Sequence.FLAIR), None)
    assert case_from_files(files, "Y").case_id == "Y"
    odd = write_nifti(tmp_path / "P7" / "series3.nii", make_image())
    assert case_from_files({Sequence.T2: odd}).case_id == "P7"
    for path in (tmp_path / "lost.nii.gz", tmp_path):
        with pytest.raises(InputError, match=r"file for T2.* To mend: correct the path"):
            case_from_files({Sequence.T2: path})
    with pytest.raises(InputError, match="at least one"):
        case_from_files({})


def test_labels_that_are_not_wanted_are_no_hindrance(tmp_path, write_case, write_nifti, make_label):
    write_case(tmp_path / "Brats18_A", label=None)
    write_case(tmp_path / "BraTS-GLI-1", NAMES_2023, label=None)
    write_case(tmp_path / "several")
    write_nifti(tmp_path / "several" / "other_seg.nii.gz", make_label())
    with pytest.raises(InputError, match="one layout"):
        discover(tmp_path)
    cohort = discover(tmp_path, label=False)
    assert _ids(cohort) == ["BraTS-GLI-1", "Brats18_A", "several"]
    assert all(case.label is None for case in cohort.cases)
    assert cohort.rejected == {}


def test_masks_of_an_earlier_segmentation_are_no_cases(tmp_path, write_case):
    write_case(tmp_path / "X", label=None)
    write_case(tmp_path / "masks" / "X", ())
    assert list(discover(tmp_path).rejected) == [str(tmp_path / "masks" / "X")], "not under the name of a good case"
    (tmp_path / "masks" / "cohort.json").write_text("{}")
    (tmp_path / "masks" / "status-1-of-2.jsonl").write_text("")
    cohort = discover(tmp_path)
    assert (_ids(cohort), cohort.rejected) == (["X"], {})


def test_folders_of_labels_beside_folders_of_images_clash_only_where_labels_are_wanted(tmp_path, write_case):
    write_case(tmp_path / "images" / "X", label=None)
    write_case(tmp_path / "labels" / "X", ())
    write_case(tmp_path / "labels" / "Y", ())
    cohort = discover(tmp_path, label=False)
    assert _ids(cohort) == ["X"]
    assert list(cohort.rejected) == ["Y"], "a case without any image is said to be one"


def test_a_lost_label_in_a_manifest_matters_only_where_labels_do(tmp_path, write_case):
    write_case(tmp_path / "X", label=None)
    path = _manifest(tmp_path, "case,t1,label\na,X/X_t1.nii.gz,X/none.nii.gz\n")
    with pytest.raises(InputError, match=r"none.nii.gz"):
        discover(path)
    assert _ids(discover(path, label=False)) == ["a"]


@pytest.mark.real
def test_the_real_tree(brats):
    cohort = discover(brats)
    assert (cohort.layout, cohort.convention.name, len(cohort.cases)) == ("brats2017", "brats2017", 37)
    assert cohort.rejected == {}
    assert all(case.sequences == SEQUENCES and case.label for case in cohort.cases)


def test_folders_of_one_name_are_told_apart_by_their_paths_where_no_split_needs_names(tmp_path, write_case):
    for patient, visit in (("P1", "2019"), ("P1", "2020"), ("P2", "2020")):
        folder = write_case(tmp_path / patient / visit, ("_t1",), label=None)
        (folder / f"{visit}_t1.nii.gz").rename(folder / "t1.nii.gz")
    cohort = discover(tmp_path, label=False)
    assert _ids(cohort) == ["P1_2019", "P1_2020", "P2_2020"]
    assert not cohort.rejected
    assert "two folders carry this name" in discover(tmp_path).rejected["2020"]


def test_a_case_that_cannot_be_used_is_not_hidden_by_one_of_its_name(tmp_path, write_case):
    for patient, name in (("P1", "flair.nii.gz"), ("P2", "AX_FLAIR_3mm.nii.gz")):
        folder = write_case(tmp_path / patient / "nifti", ("_t1",), label=None)
        (folder / "nifti_t1.nii.gz").rename(folder / name)
    cohort = discover(tmp_path, label=False)
    assert _ids(cohort) == ["P1_nifti"]
    assert "AX_FLAIR_3mm" in cohort.rejected["P2_nifti"]


def test_patients_that_give_no_case_are_listed_with_the_reason(tmp_path, write_case):
    write_case(tmp_path / "P1", label=None)
    (tmp_path / "P2").mkdir()
    (tmp_path / "P2" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "P3.zip").write_bytes(b"PK")
    (tmp_path / "P4").mkdir()
    (tmp_path / "P4" / "flair.mgz").write_bytes(b"x")
    write_case(tmp_path / "P5" / "scan" / "nifti" / "x" / "y", label=None)
    (tmp_path / "P6").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.sh").write_text("#")
    cohort = discover(tmp_path, label=False)
    assert _ids(cohort) == ["P1"]
    assert list(cohort.rejected) == ["P2", "P3.zip", "P4", "P5", "P6"]
    reasons = ("holds DICOM", "is a .zip", "flair.mgz is no NIfTI", "5 levels down", "is empty")
    assert all(said in cohort.rejected[name] for said, name in zip(reasons, cohort.rejected, strict=True))
    assert not discover(tmp_path).rejected, "where labels are wanted a data set may hold other things"


def test_a_patient_with_other_folders_beside_the_images_is_one_case(tmp_path, write_case):
    folder = write_case(tmp_path / "P1", label=None)
    (folder / "dicom").mkdir()
    (folder / "dicom" / "IM0001").write_bytes(bytes(128) + b"DICM")
    cohort = discover(folder, label=False)
    assert _ids(cohort) == ["P1"]
    assert not cohort.rejected
