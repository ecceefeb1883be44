"""What a series is taken for, why, and when the user is asked instead."""

from pathlib import Path

import pytest

from mindgap.data.dicom import DicomSeries, Slice
from mindgap.data.dicom_sequence import propose, propose_one, rivals
from mindgap.errors import SettingError
from mindgap.sequences import Sequence, read_filenames

T1, T2, T1CE, FLAIR = Sequence.T1, Sequence.T2, Sequence.T1CE, Sequence.FLAIR
SE, IR, GR = ("SE",), ("SE", "IR"), ("GR",)


def _series(name="", scanning=SE, echo=None, repetition=None, inversion=None, **more):
    slices = tuple(
        Slice(Path("x"), (0.0, 0.0, float(z)), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 1.0), (8, 8)) for z in range(8)
    )
    plain = {"uid": "1.2.3", "number": 4, "protocol": "", "sequence_name": "", "contrast": "", "diffusion": False}
    plain |= {"image_type": ("ORIGINAL", "PRIMARY", "M"), "slices": slices} | more
    echo, repetition, inversion = (None if ms is None else float(ms) for ms in (echo, repetition, inversion))
    return DicomSeries(
        description=name, scanning=scanning, echo_ms=echo, repetition_ms=repetition, inversion_ms=inversion, **plain
    )


PROTOCOLS = [
    # what clinics run, by the times in their headers: (series, what it is)
    (_series("t1_se_tra", SE, 8.9, 550), T1),
    (_series("AX T1", SE, 12, 640, contrast="Dotarem"), T1CE),
    (_series("t1_mprage_sag_p2_iso", ("GR", "IR"), 2.98, 2300, 900), T1),
    (_series("t1_mprage_sag_p2_iso_km", ("GR", "IR"), 2.98, 2300, 900), T1CE),
    (_series("SAG 3D BRAVO +C", GR, 3.2, 8.2, 450), T1CE),
    (_series("AX 3D SPGR", GR, 2.1, 6.0), T1),
    (_series("AX T1 FLAIR", IR, 10, 2500, 860), T1),
    (_series("Ax T1 FLAIR POST GD", IR, 10, 2500, 860), T1CE),
    (_series("AX T2", SE, 100, 5000, 0), T2),
    (_series("t2_space_sag", SE, 408, 3200), T2),
    (_series("AX T2 FLAIR", IR, 125, 9000, 2500), FLAIR),
    (_series("t2_tirm_tra_dark-fluid", IR, 87, 9000, 2500, contrast="Gadovist"), FLAIR),
    (_series("3D FLAIR SPACE", IR, 388, 4800, 1650), FLAIR),
    (_series("", SE, 9, 500), T1),
    (_series("", IR, 120, 9000, 2500), FLAIR),
    (_series("", SE, 95, 4500, protocol="Kopf"), T2),
    (_series("AX T1 without contrast", SE, 9, 500), T1),
    (_series("AX T1 POST", SE, 9, 500), T1CE),
    (_series("T1 pre Gd", SE, 9, 500), T1),
    (_series("T1 post-op", SE, 9, 500), T1),
    (_series("T1 posterior fossa", SE, 9, 500), T1),
    (_series("T1GAD", SE, 9, 500), T1CE),
    (_series("T1 sans gado", SE, 9, 500), T1),
    (_series("AX T2", SE, 95, 4500, protocol="BRAIN W/WO PERFUSION"), T2),  # of the whole examination at GE
    (_series("T1+C", SE, 9, 500), T1CE),
    (_series("FLAIR", (), None, None), FLAIR),  # anonymised headers without times
    (_series("AX T1 SE", SE, 9, 500, contrast="NONE"), T1),
]


@pytest.mark.parametrize(("series", "sequence"), PROTOCOLS, ids=lambda value: getattr(value, "description", ""))
def test_usual_protocols_are_recognised(series, sequence):
    proposal = propose_one(series)
    assert proposal.sequence is sequence, proposal.reason
    assert proposal.reason


WORDS = [
    # what stands beside T1 in a description and in a file name: what both have to read of it
    ("", T1),
    ("enhanced", T1CE),
    ("contrast enhanced", T1CE),
    ("post", T1CE),
    ("post gd", T1CE),
    ("postcontrast", T1CE),
    ("gad", T1CE),
    ("gadovist", T1CE),
    ("km", T1CE),
    ("ce", T1CE),
    ("injected", T1CE),
    ("post op", T1),
    ("postop", T1),
    ("post RT", T1),
    ("post radiation", T1),
    ("post treatment", T1),
    ("post chemo", T1),
    ("post RT gd", T1CE),
    ("pre", T1),
    ("pre contrast", T1),
    ("native", T1),
    ("unenhanced", T1),
    ("non contrast", T1),
    ("nongd", T1),
    ("no gd", T1),
    ("without contrast", T1),
    ("ohne km", T1),
    ("sans gado", T1),
    ("pre post", None),
    ("c", None),
]


@pytest.mark.parametrize(("words", "sequence"), WORDS)
def test_descriptions_and_file_names_are_read_alike(words, sequence):
    for name in (f"AX {words} T1", f"{words.upper()}-T1"):
        assert propose_one(_series(name, SE, 9, 500)).sequence is sequence
    stem = f"P1_{words} T1".replace(" ", "_").replace("__", "_")
    assert read_filenames([stem, "P1_T2"], "P1")[stem].sequence is sequence


@pytest.mark.parametrize(
    ("name", "sequence"),
    [
        ("T1 w/o", T1),
        ("T1 w/o c", T1),
        ("T1 no c", T1),
        ("T1 without", T1),
        ("T1 ohne FS gd", T1CE),
        ("T1 +Gd", T1CE),
        ("t1_se_c+", T1CE),
        ("AX T1 W/WO", None),
        ("T1 with and without contrast", None),
    ],
)
def test_short_forms_of_descriptions(name, sequence):
    assert propose_one(_series(name, SE, 9, 500)).sequence is sequence


def test_the_reason_names_times_and_agent():
    assert propose_one(_series("AX T1", SE, 12, 640, contrast="Dotarem")).reason == (
        "called T1, short TE and TR (TE 12, TR 640 ms); agent Dotarem"
    )


UNCLEAR = [
    # what contradicts itself, or does not tell
    (_series("AX FLAIR", SE, 9, 500), "called FLAIR, but it has short TE and TR"),
    (_series("AX T1", SE, 100, 5000), "called T1, but it has long TE"),
    (_series("AX T2", SE, 45, 1000), "unusual"),
    (_series("AX", SE, 45, 1000), "neither name nor times tell"),
    (_series("", (), None, None), "neither name nor times tell (no times)"),
    (_series("T1 and T2", SE, 9, 500), "T1 and T2"),
    (_series("AX T1 pre", SE, 9, 500, contrast="Gadovist"), "header names the agent Gadovist"),
    (_series("T1 pre and post", SE, 9, 500), 'also "post"'),
    (_series("T1-C", SE, 9, 500), "with or without"),
    (_series("AX T2", SE, 60, 4000, 160), "short TI"),
    (_series("t1_mprage", GR, 2.9, 2300), "unusual"),
]


@pytest.mark.parametrize(("series", "said"), UNCLEAR, ids=lambda value: getattr(value, "description", ""))
def test_what_is_unclear_is_asked_and_never_guessed(series, said):
    proposal = propose_one(series)
    assert proposal.sequence is None
    assert not proposal.aside
    assert said in proposal.reason
    assert proposal.reason.endswith(": ask")


ASIDE = [
    (_series("localizer", GR, 5, 20), "localizer"),
    (_series("AX T1", SE, 9, 500, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")), "localizer"),
    (_series("ADC (10^-6 mm2/s)", ("EP",), 80, 5000), "diffusion"),
    (_series("ep2d_diff_b1000", ("EP",), 80, 5000), "diffusion"),
    (_series("AX", ("EP",), 80, 5000, diffusion=True), "b value"),
    (_series("AX", ("EP",), 80, 5000), "echo planar"),
    (_series("Perfusion DSC", ("EP",), 30, 1500), "perfusion"),
    (_series("SWI_Images", GR, 20, 28), "susceptibility"),
    (_series("AX T2* GRE", GR, 20, 600), "susceptibility"),
    (_series("AX", GR, 20, 600), "T2*"),
    (_series("TOF MRA", GR, 4, 22), "angiography"),
    (_series("t1 sub", SE, 9, 500), "subtraction"),
    (_series("AX T2", SE, 95, 4500, image_type=("DERIVED", "SECONDARY", "MPR")), "derived"),
    (_series("AX", SE, 15, 3000), "proton density"),
    (_series("AX T1", SE, 9, 500, slices=_series().slices[:3]), "only 3 images"),
]


@pytest.mark.parametrize(("series", "said"), ASIDE, ids=lambda value: getattr(value, "description", ""))
def test_localizers_and_maps_are_put_aside_with_the_reason(series, said):
    proposal = propose_one(series)
    assert proposal.sequence is None
    assert proposal.aside
    assert said in proposal.reason


def _examination():
    return [
        _series("AX T1", SE, 9, 500, uid="1", number=1),
        _series("SAG T1", SE, 9, 500, uid="2", number=2),
        _series("AX FLAIR", IR, 120, 9000, 2500, uid="3", number=3),
        _series("AX ADC", ("EP",), 80, 5000, uid="4", number=4),
    ]


def _mapping(proposals):
    return {proposal.series.number: proposal.sequence for proposal in proposals}


def test_two_series_for_one_sequence_are_left_to_the_user():
    proposals = propose(_examination())
    assert _mapping(proposals) == {1: None, 2: None, 3: FLAIR, 4: None}
    assert "so is series 2 (SAG T1)" in proposals[0].reason
    assert {sequence: [one.number for one in found] for sequence, found in rivals(proposals).items()} == {T1: [1, 2]}


@pytest.mark.parametrize(
    ("named", "mapping"),
    [
        ({T1: "2"}, {1: None, 2: T1, 3: FLAIR, 4: None}),
        ({T1: "none"}, {1: None, 2: None, 3: FLAIR, 4: None}),
        ({T1CE: "2"}, {1: T1, 2: T1CE, 3: FLAIR, 4: None}),
        ({T2: "4", T1: "1"}, {1: T1, 2: None, 3: FLAIR, 4: T2}),
        ({T1: "3", FLAIR: "none"}, {1: None, 2: None, 3: T1, 4: None}),
    ],
)
def test_what_the_user_names_counts(named, mapping):
    chosen = propose(_examination(), named)
    assert _mapping(chosen) == mapping
    assert not rivals(chosen)


def test_a_series_may_be_named_by_uid_where_numbers_repeat():
    series = [_series("a", uid="1.5", number=1), _series("b", uid="1.6", number=1)]
    assert propose(series, {T1: "1.6"})[1].sequence is T1
    with pytest.raises(SettingError, match=r"2 series have the number 1.*1\.5, 1\.6"):
        propose(series, {T1: "1"})


def test_names_that_cannot_be_are_refused():
    with pytest.raises(SettingError, match=r"there is no series 9 .*one of 1, 2, 3, 4"):
        propose(_examination(), {T1: "9"})
    with pytest.raises(SettingError, match="named for T1 and for T2"):
        propose(_examination(), {T1: "1", T2: "1"})
