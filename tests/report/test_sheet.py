from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindgap.data.case import Source
from mindgap.regions import find_convention
from mindgap.report.sheet import SheetCase, draw_sheet, write_sheets

LABELS = find_convention("brats2023")
AFFINE = np.diag([-4.0, -4, 4, 1])


@pytest.fixture
def cases(tmp_path: Path) -> list[SheetCase]:
    head = np.zeros((20, 24, 16), np.float32)
    head[3:17, 3:21, 2:14] = np.random.default_rng(0).uniform(50, 100, (14, 18, 12))
    mask = np.zeros(head.shape, np.uint8)
    mask[6:12, 8:15, 5:10] = 2
    mask[8:10, 10:13, 6:9] = 3
    mask[4:13, 6:16, 7] = 2
    made = []
    for name in ("A", "B", "C", "D", "E"):
        image, label = tmp_path / f"{name}_t2.nii.gz", tmp_path / f"{name}_seg.nii.gz"
        nib.save(nib.Nifti1Image(head, AFFINE), image)
        nib.save(nib.Nifti1Image(mask if name != "B" else mask * 0, AFFINE), label)
        made.append(SheetCase(name, label, {"T1": Source(tmp_path / "none.nii"), "T2": Source(image)}, "T1+T2"))
    return made


def _titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_every_case_is_shown_on_what_the_network_saw_best(cases):
    figure = draw_sheet(cases, LABELS, headline="5 cases")
    titles = _titles(figure)[:5]
    assert titles[0] == "A\nWT 16.5 · TC 0.8 · ET 0.8 mL\nsaw T1+T2"
    assert titles[1] == "B\nno tumour found\nsaw T1+T2"
    assert "T2" in [text.get_text() for text in figure.axes[0].texts]
    assert "patient's right on the left" in figure.get_suptitle()


def test_a_tile_to_be_reviewed_is_framed_and_counted(cases):
    figure = draw_sheet([replace(cases[0], review=True), *cases[1:]], LABELS, headline="5 cases")
    assert [len(axes.patches) for axes in figure.axes[:5]] == [1, 0, 0, 0, 0]
    assert ["please review" in title for title in _titles(figure)[:5]] == [True, *[False] * 4]
    assert "1 to be reviewed" in figure.get_suptitle()
    assert "reviewed" not in draw_sheet(cases, LABELS, headline="").get_suptitle()


def test_the_largest_plane_is_shown_with_right_on_the_left(cases):
    axes = draw_sheet(cases[:1], LABELS, headline="").axes[0]
    fill = np.asarray(axes.images[1].get_array())[..., 3] > 0
    # Stored index 0 lies right and in front; the picture begins at index 1, two voxels before the head.
    rows, columns = np.nonzero(fill)
    assert (columns.min(), columns.max()) == (3, 11)
    assert (rows.min(), rows.max()) == (5, 14)


def test_what_is_gone_costs_its_own_tile_only(cases):
    cases[2].mask.write_bytes(b"garbage")
    cases[3].images["T2"].path.unlink()
    titles = _titles(draw_sheet(cases, LABELS, headline=""))
    assert all("cannot be shown" in title for title in titles[2:4])
    assert "WT" in titles[4]


def test_many_cases_go_on_several_pages_and_old_pages_are_removed(cases, tmp_path):
    path, seen = tmp_path / "out" / "overlays.png", []
    pages = write_sheets(
        cases, path, LABELS, per_page=2, progress=lambda done, total, case: seen.append((done, total, case))
    )
    assert [page.name for page in pages] == ["overlays-1.png", "overlays-2.png", "overlays-3.png"]
    assert seen == [(n, 5, case) for n, case in enumerate("ABCDE", start=1)]
    assert all(page.read_bytes()[:4] == b"\x89PNG" for page in pages)
    (path.parent / "overlays-of-mine.png").touch()
    assert write_sheets(cases, path, LABELS) == [path]
    assert sorted(p.name for p in path.parent.iterdir()) == ["overlays-of-mine.png", "overlays.png"]
    assert write_sheets([], path, LABELS) == []
    assert [p.name for p in path.parent.iterdir()] == ["overlays-of-mine.png"]
