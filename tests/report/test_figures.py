from dataclasses import replace

import numpy as np
import pytest

from mindgap.errors import MindgapError
from mindgap.evaluation.scores import Score
from mindgap.report.figures import Picture, draw_learning, draw_overlay, draw_scores, save_png, to_png
from mindgap.report.overlay import unseen_for_reader
from mindgap.report.scene import VIEWS, slice_of, to_ras

AXIAL, CORONAL, SAGITTAL = VIEWS
SHAPE = (16, 20, 10)  # right-left, posterior-anterior, inferior-superior
SPACING = (1.0, 1.0, 3.0)
RAS = np.diag([*SPACING, 1.0])
LPS = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
LPS[:2, 3] = SHAPE[0] - 1, SHAPE[1] - 1
PNG = b"\x89PNG\r\n\x1a\n"


def stored(ras, affine):
    """The same patient, as a file with that affine holds it."""
    flips = tuple(slice(None, None, -1) if affine[axis, axis] < 0 else slice(None) for axis in range(3))
    return np.ascontiguousarray(ras[flips])


def make_picture(affine=RAS, *, seen=("T1",), reference=True, names=("T1", "FLAIR"), case_id="case"):
    brain = np.zeros(SHAPE, dtype=np.float32)
    brain[1:-1, 1:-1, 1:-1] = 100 + np.arange(SHAPE[2] - 2)
    target = np.zeros(SHAPE, dtype=np.uint8)
    target[2:6, 12:17, 6:8] = 3  # small x: patient's left; large y: anterior; above the middle
    target[3:5, 13:15, 6:8] = 1
    predicted = np.roll(target, 1, axis=1)
    return Picture(
        case_id=case_id,
        caption="best of 1",
        model="m",
        seen=seen,
        images={name: stored(brain, affine) for name in names},
        reference=stored(target, affine) if reference else None,
        predicted=stored(predicted, affine),
        affine=affine,
    )


def paint_of_panel(figure, panel, layer):
    """What an image layer of a panel shows, as the viewer sees it (row 0 on top, column 0 on the left)."""
    axes = figure.axes[panel]
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert left < right
    assert bottom > top, "row 0 must be on top"
    image = axes.images[layer]
    assert image.origin == "upper"
    return np.asarray(image.get_array())


@pytest.mark.parametrize("affine", [RAS, LPS], ids=["RAS", "LPS"])
def test_a_lesion_at_patient_left_is_on_the_right_of_the_screen(affine):
    figure = draw_overlay(make_picture(affine))
    for panel, view in enumerate((AXIAL, CORONAL)):
        fill = paint_of_panel(figure, panel, 1)[..., 3] > 0
        rows, columns = np.nonzero(fill)
        assert columns.mean() > fill.shape[1] / 2
        assert rows.mean() < fill.shape[0] / 2, "anterior, or superior, is on top"
        letters = {text.get_text(): text.get_position()[0] for text in figure.axes[panel].texts}
        assert letters["R"] < 0.5 < letters["L"], view.name
    rows, columns = np.nonzero(paint_of_panel(figure, 2, 1)[..., 3] > 0)
    assert columns.mean() < SHAPE[1] / 2, "anterior is on the left of the sagittal panel"
    letters = {text.get_text(): text.get_position()[0] for text in figure.axes[2].texts}
    assert letters["A"] < 0.5 < letters["P"]


@pytest.mark.parametrize("affine", [RAS, LPS], ids=["RAS", "LPS"])
def test_the_outline_lies_on_the_lesion(affine):
    axes = draw_overlay(make_picture(affine)).axes[0]
    width = axes.get_xlim()[1]
    outlines = [path.vertices for drawn in axes.collections for path in drawn.get_paths() if len(path.vertices)]
    assert outlines
    xs, ys = np.concatenate(outlines).T
    # Cut to content with a margin of two voxels: brain 1..14 of 16 stays 16 wide; x 2..5 mirrors to 10..13.
    assert width == SHAPE[0]
    assert xs.min() == pytest.approx(10.0, abs=0.2)
    assert xs.max() == pytest.approx(14.0, abs=0.2)
    assert ys.min() == pytest.approx(SHAPE[1] - 17, abs=0.2)
    assert ys.max() == pytest.approx(SHAPE[1] - 12, abs=0.2)


def test_stored_orders_of_axes_give_one_picture():
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    np.testing.assert_array_equal(to_ras(stored(volume, LPS), LPS), volume)
    swapped = RAS[:, [2, 0, 1, 3]]
    np.testing.assert_array_equal(to_ras(volume.transpose(2, 0, 1), swapped), volume)


def test_slices_put_right_on_the_left_and_superior_on_top():
    volume = np.zeros(SHAPE)
    volume[-1, -1, -1] = 1  # right, anterior, superior
    assert slice_of(volume, AXIAL, SHAPE[2] - 1)[0, 0] == 1
    assert slice_of(volume, CORONAL, SHAPE[1] - 1)[0, 0] == 1
    assert slice_of(volume, SAGITTAL, SHAPE[0] - 1)[0, 0] == 1


def test_voxels_keep_their_proportions():
    axes = draw_overlay(make_picture()).axes[1]
    assert axes.get_aspect() == 1.0
    assert axes.get_xlim()[1] == pytest.approx(SHAPE[0] * SPACING[0])
    assert axes.get_ylim()[0] == pytest.approx(SHAPE[2] * SPACING[2])


def test_the_axial_plane_has_the_largest_reference_area():
    picture = make_picture()
    picture.reference[1:15, 1:19, 3] = 3
    background = paint_of_panel(draw_overlay(picture), 0, 0)
    assert background.max() == pytest.approx(100 + 2)  # slice 3 of the stored brain


def test_the_reader_sees_what_the_network_did_not_and_is_told():
    titles = [axes.get_title() for axes in draw_overlay(make_picture()).axes]
    assert titles[3:] == ["T1, seen", "FLAIR, NOT seen by network", "errors"]
    assert unseen_for_reader(make_picture(seen=("T1", "FLAIR"))) is None
    titles = [axes.get_title() for axes in draw_overlay(make_picture(seen=("T1", "FLAIR"))).axes]
    assert titles[3:] == ["FLAIR, seen", "T1, seen", "errors"]


def test_a_case_without_reference_is_its_own_outline_and_has_no_errors():
    figure = draw_overlay(make_picture(reference=False))
    assert figure.axes[0].collections
    beside = draw_overlay(make_picture())
    light, strong = (paint_of_panel(drawn, 0, 1)[..., 3].max() for drawn in (figure, beside))
    assert 0 < light < strong / 2, "what has to be judged is the tumour below"
    (words,) = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert [word.partition(",")[0] for word in words] == ["WT", "TC", "ET"]
    assert [axes.get_title() for axes in figure.axes[3:]] == ["T1, seen", "FLAIR, NOT seen by network"]
    assert make_picture(reference=False).caption in figure.get_suptitle()
    alone = draw_overlay(make_picture(names=(), reference=False))
    assert alone.axes[-1].get_title() == "no reference, so no errors"
    assert to_png(figure, dpi=30).startswith(PNG)


def test_the_planes_are_equally_high_and_what_to_know_stands_above_them():
    reasons = "; ".join(f"reason {number} why this mask should be looked at by a human" for number in range(6))
    figure = draw_overlay(replace(make_picture(reference=False), warning=reasons))
    figure.draw_without_rendering()
    heights = [axes.get_window_extent().height for axes in figure.axes[:3]]
    assert heights == pytest.approx([heights[0]] * 3, rel=0.02)
    said = figure.get_suptitle()
    assert "research use only" in said
    assert reasons in " ".join(said.split("\n"))
    (headline,) = (text for text in figure.texts if text.get_text() == said)
    assert headline.get_window_extent().x1 < figure.bbox.width, "long reasons are wrapped"
    assert "please review" not in draw_overlay(make_picture(reference=False)).get_suptitle()


def test_empty_masks_missing_images_and_nan_are_drawn():
    picture = make_picture(names=("T1",), case_id="a $\\frac$ b")
    picture.reference[:] = 0
    picture.predicted[:] = 0
    picture.images["T1"][0, 0, 1] = np.nan
    assert to_png(draw_overlay(picture), dpi=30).startswith(PNG)
    assert to_png(draw_overlay(make_picture(names=())), dpi=30).startswith(PNG)


def test_learning_shows_what_was_logged():
    terms = [{"step": step, "lr": 0.1, "loss": 2.0 / step, "dice": 1.0 / step} for step in range(1, 60)]
    validations = [
        {"step": step, "WT": 0.5, "TC": 0.4, "ET": 0.3, "mean": 0.4, "anchor_weight/T1": 0.9} for step in (20, 40)
    ]
    figure = draw_learning(terms, validations)
    assert len(figure.axes) == 4
    assert "not a measure of information" in figure.axes[3].get_title(loc="left")
    assert len({axes.get_xlim() for axes in figure.axes}) == 1, "the same steps everywhere"
    assert len(draw_learning(terms, []).axes) == 2
    assert len(draw_learning([], validations).axes) == 2
    assert to_png(draw_learning([], []), dpi=30).startswith(PNG)


def test_three_panels_leave_no_place_empty():
    terms = [{"step": step, "lr": 0.1, "loss": 1.0} for step in (1, 2)]
    figure = draw_learning(terms, [{"step": 2, "WT": 0.5, "TC": 0.4, "ET": 0.3, "mean": 0.4}])
    spans = [axes.get_subplotspec() for axes in figure.axes]
    assert [(span.rowspan.start, *span.colspan) for span in spans] == [(0, 0, 1), (1, 0), (1, 1)]


def test_smoothing_keeps_a_constant_and_terms_may_be_negative_or_nan():
    terms = [{"step": step, "loss": float("nan") if step == 3 else -1.0} for step in range(1, 200)]
    raw, smooth = draw_learning(terms, []).axes[0].lines
    assert np.isnan(raw.get_ydata()).sum() == 1
    np.testing.assert_allclose(smooth.get_ydata(), -1.0)


def test_every_case_is_a_dot():
    scores = [
        Score(model, case, "T1", region, 0.5, 1.0, 1.0, 1.0)
        for model in ("m", "threshold")
        for case in "abc"
        for region in ("WT", "TC", "ET")
    ]
    figure = draw_scores(scores)
    assert [axes.get_title() for axes in figure.axes] == ["WT", "TC", "ET"]
    assert [len(drawn.get_offsets()) for drawn in figure.axes[0].collections] == [3, 3]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["m · T1", "baseline: threshold · T1"]
    assert to_png(draw_scores([]), dpi=30).startswith(PNG)
    assert [line.get_marker() for line in figure.axes[0].lines if line.get_marker() != "None"] == ["D", "D"]
    alone = draw_scores([score for score in scores if score.case == "a"])
    assert not alone.axes[0].lines, "the mean of one case would hide its dot"


def test_png_is_written_atomically(tmp_path):
    path = tmp_path / "new" / "scores.png"
    save_png(draw_scores([]), path)
    assert path.read_bytes().startswith(PNG)
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("x")
    with pytest.raises(MindgapError):
        save_png(draw_scores([]), tmp_path / "file" / "x.png")
