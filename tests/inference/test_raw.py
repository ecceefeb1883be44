"""From the atlas grid to the grid of a scan: volumes and intervals are those of the mask that is written."""

from pathlib import Path

import numpy as np
import pytest

from mindgap.data.raw import RawCase
from mindgap.data.volume import Volume, volume_of_voxel_ml
from mindgap.evaluation.calibration import Temperature
from mindgap.evaluation.conformal import volume_interval
from mindgap.inference.confidence import POOLED, Confidence, Observed
from mindgap.inference.raw import RawReading, find_raw
from mindgap.inference.record import Reading, warnings_about
from mindgap.regions import REGIONS, Region, region_mask
from mindgap.sequences import SEQUENCES, format_subset


@pytest.fixture
def known(anything) -> Confidence:
    """Nine invented cases whose volumes were off by at most a factor 1.5."""
    rows = tuple(
        Observed(f"K{n}", format_subset(SEQUENCES), str(region), 0.5, 0.5, 10.0, 8.0 + 0.5 * n)
        for n in range(9)
        for region in REGIONS
    )
    temperatures = {POOLED: Temperature(1.0, 1.0, 1.0, 9)}
    return Confidence(anything.sha256, "whole", "all", 0.8, 0.1, rows, temperatures, {POOLED: {}}, {})


def _given(study, slices: slice) -> RawReading:
    """A case that lies on the atlas, so to speak, and some slices of it as the native grid."""
    case = study.cases[0].load()
    whole = case.reference
    affine = whole.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (slices.start or 0)
    native = Volume(np.ascontiguousarray(whole.array[:, :, slices]), affine, Path("flair"), None)
    raw = RawCase(case, native, np.eye(4), {"native": "FLAIR"}, ())
    return RawReading(Reading(study.cases[0], case, {}, 0.0, raw.record, ("said before",)), raw, 0.0)


def test_a_grid_that_holds_the_mask_says_nothing(study, anything, known) -> None:
    found = find_raw(anything, _given(study, slice(None)), known)
    assert warnings_about(found) == ["said before"]
    on_atlas = found.reading.raw["volumes_on_atlas_ml"]
    for region, ml in found.segmentation.volumes_ml.items():
        assert ml == pytest.approx(on_atlas[str(region)], abs=1e-2)
        assert found.segmentation.confidence.volumes[region].low_ml < ml


def test_a_grid_that_cuts_the_mask_is_said_and_its_rows_speak_of_one_mask(study, anything, known, monkeypatch) -> None:
    monkeypatch.setattr("mindgap.inference.raw._CUT_ML", 0.1)  # the case is small
    given = _given(study, slice(8, None))
    found = find_raw(anything, given, known)
    native_ml, on_atlas_ml = found.segmentation.volumes_ml, found.reading.raw["volumes_on_atlas_ml"]
    voxel_ml = volume_of_voxel_ml(given.raw.native.affine)
    for region in REGIONS:
        assert native_ml[region] == pytest.approx(region_mask(found.segmentation.target, region).sum() * voxel_ml)
    assert native_ml[Region.WT] < 0.8 * on_atlas_ml["WT"]
    before, line = warnings_about(found)
    assert before == "said before"
    assert line.startswith("the grid of FLAIR cuts the mask: it holds WT ")
    assert f"WT {native_ml[Region.WT]:.1f} of {on_atlas_ml['WT']:.1f} mL" in line
    told = found.segmentation.confidence
    assert told.volumes[Region.WT] is None
    assert any(note.startswith("no volume interval of WT") for note in told.notes)


def test_intervals_are_those_of_the_volumes_beside_them(study, anything, known, monkeypatch) -> None:
    monkeypatch.setattr("mindgap.inference.raw._CUT_ML", 1e6)
    found = find_raw(anything, _given(study, slice(8, None)), known).segmentation
    for region, ml in found.volumes_ml.items():
        wanted = volume_interval(ml, known.residuals(format_subset(SEQUENCES), str(region)), known.level)
        assert found.confidence.volumes[region] == wanted
