"""Links, folders that may not be read, and labels, as cohorts meet them."""

from pathlib import Path

import pytest

from mindgap.data.cohort import case_from_files, case_from_folder, discover
from mindgap.data.folders import is_label, visible
from mindgap.errors import InputError
from mindgap.sequences import SEQUENCES, Sequence


def _ids(cohort):
    return [case.case_id for case in cohort.cases]


def _link(place: Path, target: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
    return place


@pytest.fixture
def closed(monkeypatch):
    """Folders that may not be listed: root, who may run the tests, can read what chmod has closed."""
    names: set[str] = set()
    iterdir = Path.iterdir

    def listing(folder):
        if {folder.name, str(folder)} & names:
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listing)
    return names


def test_cases_are_called_as_the_links_to_them(tmp_path, write_case):
    for name in "AB":
        _link(tmp_path / "farm" / f"P{name}", write_case(tmp_path / "archive" / name / "scan"))
    cohort = discover(tmp_path / "farm")
    assert (_ids(cohort), cohort.rejected) == (["PA", "PB"], {})
    assert cohort.cases[0].images[Sequence.T1].path == tmp_path / "farm" / "PA" / "scan_t1.nii.gz"
    assert case_from_folder(tmp_path / "farm" / "PB").case_id == "PB"
    assert _ids(discover(tmp_path / "farm" / ".." / "farm" / "PB")) == ["PB"]


def test_a_file_named_by_its_sequence_is_called_as_the_folder_of_its_link(tmp_path, write_case):
    scan = write_case(tmp_path / "RealName") / "RealName_t1.nii.gz"
    assert case_from_files({Sequence.T1: _link(tmp_path / "P01" / "scan.nii.gz", scan)}).case_id == "P01"


def test_paths_lose_dots_but_keep_links(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    _link(tmp_path / "link", tmp_path / "real")
    assert visible(tmp_path / "link" / "." / "x" / "..") == tmp_path / "link"
    monkeypatch.chdir(tmp_path)
    assert visible(Path()) == tmp_path
    monkeypatch.chdir(tmp_path / "link")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    assert visible(Path("x")) == tmp_path / "link" / "x", "as the shell says"
    monkeypatch.setenv("PWD", str(tmp_path))
    assert visible(Path()) == tmp_path / "real", "another program went elsewhere since"


@pytest.mark.parametrize("label", [True, False])
def test_links_to_nothing_are_no_absent_sequences(tmp_path, write_case, label):
    write_case(tmp_path / "good")
    folder = write_case(tmp_path / "P1", ("_t1", "_flair"))
    _link(folder / "P1_t1ce.nii.gz", tmp_path / "annex" / "MD5E-s1")
    _link(tmp_path / "P2" / "P2_flair.nii.gz", tmp_path / "annex" / "MD5E-s2")
    cohort = discover(tmp_path, label=label)
    assert _ids(cohort) == ["good"]
    assert list(cohort.rejected) == ["P1", "P2"]
    assert "P1_t1ce.nii.gz (a link to nothing)" in cohort.rejected["P1"]
    assert "fetch it, for example with `datalad get`, or remove the link" in cohort.rejected["P1"]
    with pytest.raises(InputError, match=r"P2: .*P2_flair.nii.gz \(a link to nothing\). To mend: fetch it"):
        case_from_folder(tmp_path / "P2", label=label)
    with pytest.raises(InputError, match=r"a link to nothing.*datalad get"):
        case_from_files({Sequence.T1CE: folder / "P1_t1ce.nii.gz"})


def test_a_link_to_nothing_matters_only_where_the_file_would(tmp_path, write_case):
    folder = write_case(tmp_path / "P1", label=None)
    _link(folder / "P1_dwi.nii.gz", tmp_path / "lost")
    _link(tmp_path / "other" / "dwi.nii.gz", tmp_path / "lost")
    assert (_ids(discover(tmp_path)), discover(tmp_path).rejected) == (["P1"], {})
    _link(folder / "P1_seg.nii.gz", tmp_path / "lost")
    assert _ids(discover(tmp_path, label=False)) == ["P1"]
    with pytest.raises(InputError, match=r"P1_seg.nii.gz \(a link to nothing\)"):
        discover(tmp_path)


def test_links_to_nothing_among_numbered_channels(tmp_path, write_nifti, make_image):
    for case in "AB":
        write_nifti(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", make_image())
    write_nifti(tmp_path / "imagesTr" / "C_0000.nii.gz", make_image())
    _link(tmp_path / "imagesTr" / "A_0001.nii.gz", tmp_path / "lost")
    _link(tmp_path / "labelsTr" / "C.nii.gz", tmp_path / "lost")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "T2"}}')
    cohort = discover(tmp_path)
    assert (_ids(cohort), list(cohort.rejected)) == (["B"], ["A", "C"])
    assert "A_0001.nii.gz (a link to nothing)" in cohort.rejected["A"]
    assert _ids(discover(tmp_path / "imagesTr", label=False)) == ["B", "C"]


def test_links_to_nothing_among_images_of_four_channels(tmp_path, write_nifti, make_image):
    write_nifti(tmp_path / "imagesTr" / "A.nii.gz", make_image())
    _link(tmp_path / "imagesTr" / "B.nii.gz", tmp_path / "lost")
    cohort = discover(tmp_path)
    assert (cohort.layout, _ids(cohort), list(cohort.rejected)) == ("msd", ["A"], ["B"])


@pytest.mark.parametrize("name", ["lost+found", "P2"])
def test_a_closed_folder_is_listed_and_the_others_stay(tmp_path, write_case, closed, name):
    for place in ("P1", "P3", f"deep/{name}"):
        write_case(tmp_path / place)
    closed.add(name)
    cohort = discover(tmp_path)
    assert _ids(cohort) == ["P1", "P3"]
    assert list(cohort.rejected) == [name]
    assert "permission denied" in cohort.rejected[name]
    with pytest.raises(InputError, match=r"found permission denied. To mend: ask"):
        case_from_folder(tmp_path / "deep" / name)
    with pytest.raises(InputError, match="permission denied"):
        discover(tmp_path / "deep" / name, label=False)


def test_a_closed_folder_with_the_name_of_a_case_is_listed_by_its_path(tmp_path, write_case, closed):
    write_case(tmp_path / "a" / "P1")
    closed.add(str(write_case(tmp_path / "b" / "P1")))
    cohort = discover(tmp_path)
    assert (_ids(cohort), set(cohort.rejected)) == (["P1"], closed)


def test_a_folder_that_may_be_listed_but_not_entered_is_listed(tmp_path, write_case, monkeypatch):
    for name in ("P1", "P2"):
        write_case(tmp_path / name)
    is_file = Path.is_file

    def stat(path):
        if path.parent.name == "P2":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", stat)
    cohort = discover(tmp_path)
    assert (_ids(cohort), list(cohort.rejected)) == (["P1"], ["P2"])


def test_a_link_into_a_closed_place_does_not_end_the_cohort(tmp_path, write_case, monkeypatch):
    write_case(tmp_path / "P1")
    place = _link(tmp_path / "P2", tmp_path / "closed")
    is_dir = Path.is_dir

    def stat(path):
        if path == place:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", stat)
    cohort = discover(tmp_path)
    assert (_ids(cohort), list(cohort.rejected)) == (["P1"], ["P2"])


@pytest.mark.parametrize(
    ("stem", "case_id", "label"),
    [
        ("P1_seg", "P1", True),
        ("P1-SEG", "P1", True),
        ("W39_1998.09.19_Segm", "BraTS20_Training_355", True),
        ("UCSF-PDGM-0004_tumor_segmentation", "UCSF-PDGM-0004", True),
        ("P1_autoseg", "P1", True),
        ("P1_seg2", "P1", True),
        ("P1_t1_seg", "P1", True),
        ("seg_01_seg", "seg_01", True),
        ("GBMSEG-042_t1", "042", False),
        ("Segura_01_t1", "042", False),
        ("seg_01_t1", "seg_01", False),
        ("P1_t1", "P1", False),
    ],
)
def test_labels_by_their_words(stem, case_id, label):
    assert is_label(Path(f"{stem}.nii.gz"), case_id) is label


def test_a_study_with_seg_in_its_name_has_images(tmp_path, write_nifti, make_image):
    for ending in ("t1", "t2", "seg"):
        write_nifti(tmp_path / "042" / f"GBMSEG-042_{ending}.nii.gz", make_image(len(ending)))
    case = case_from_folder(tmp_path / "042")
    assert case.sequences == (Sequence.T1, Sequence.T2)
    assert case.label.path.name == "GBMSEG-042_seg.nii.gz"


@pytest.mark.parametrize("folder", ["POST_01", "GD-17", "gd", "scan"])
def test_words_of_contrast_in_the_name_of_a_case_say_nothing(tmp_path, write_case, folder):
    case = write_case(tmp_path / ("POST_01" if folder == "scan" else folder))
    if folder == "scan":
        case = case.rename(tmp_path / folder)
    cohort = discover(tmp_path)
    assert cohort.cases[0].sequences == SEQUENCES
    assert (cohort.layout, cohort.rejected) == ("brats2017", {})


def test_contrast_behind_and_before(tmp_path, write_case):
    write_case(tmp_path / "P1", ("_T1", "_T1_GD", "_T2_FLAIR", "_T2"))
    write_case(tmp_path / "P2", ("_T1", "_post_T1", "_T2"))
    write_case(tmp_path / "P3", ("_T1_FLAIR", "_CT1"))
    cohort = discover(tmp_path)
    assert cohort.cases[0].sequences == SEQUENCES
    assert cohort.cases[1].sequences == (Sequence.T1, Sequence.T2, Sequence.T1CE)
    assert cohort.cases[1].images[Sequence.T1CE].path.name == "P2_post_T1.nii.gz"
    assert cohort.cases[2].sequences == (Sequence.T1, Sequence.T1CE)
    assert (cohort.layout, cohort.convention) == ("folders", None)


def test_t1_and_t1ce_are_not_guessed(tmp_path, write_case):
    write_case(tmp_path / "P1", ("_pre_post_T1", "_T2"))
    write_case(tmp_path / "P2", ("_post_T1", "_post_T2"))  # after contrast, or after the operation?
    write_case(tmp_path / "P3", ("_t1",))
    cohort = discover(tmp_path)
    assert _ids(cohort) == ["P3"]
    assert "P1_pre_post_T1.nii.gz (may be either)" in cohort.rejected["P1"]
    assert "let it end in _t1, _t1ce" in cohort.rejected["P2"]
    with pytest.raises(InputError, match="expected a name that tells its sequence"):
        case_from_folder(tmp_path / "P1")


def test_one_file_is_no_folder(tmp_path, write_case):
    path = write_case(tmp_path / "P1") / "P1_t1.nii.gz"
    with pytest.raises(InputError, match=r"found one NIfTI file\. To mend: name .* --t1, --t1ce, --t2 or --flair"):
        case_from_folder(path)


def test_upper_case_extensions(tmp_path, write_case):
    folder = write_case(tmp_path / "P1", ("_t1", "_flair"), label="_SEG")
    for path in sorted(folder.iterdir()):
        path.rename(folder / path.name.replace(".nii.gz", ".NII.GZ"))
    case = case_from_folder(folder)
    assert case.sequences == (Sequence.T1, Sequence.FLAIR)
    assert case.label.path.name == "P1_SEG.NII.GZ"
