"""Figures 1 to 3 of the paper from the teachers of Table IV: t-SNE of latents, masks with errors, maps of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mindgap.data.case import Case
from mindgap.data.preparation import target_on_grid
from mindgap.data.prepared import PreparedCase, slices_of
from mindgap.evaluation.latents import Latents, gap_metrics
from mindgap.evaluation.summary import best_median_worst
from mindgap.inference.opened import OpenedCase
from mindgap.inference.predictor import Predictor
from mindgap.report.gallery import Embedding, draw_embeddings, draw_latent_maps, draw_masks
from mindgap.report.scene import Picture
from mindgap.sequences import SEQUENCES
from mindgap.shapes import Bool, Float
from mindgap.study import grid
from mindgap.study.cohort import open_test_cases
from mindgap.study.grid import ANCHORS, Choice, Run
from mindgap.study.keep import has_network
from mindgap.study.results import AVERAGE, Results
from mindgap.study.scale import Place
from mindgap.study.tables import ANCHOR_NAMES, NOT_RUN, Table

VOXELS, SHOWN, PERPLEXITY, SEED = 1024, 600, 30.0, 0
"""Brain voxels of each case for the measures, voxels in all (times four sequences) for t-SNE, its perplexity, and the
seed of both; the voxels are the same for every anchor."""
MOST_CASES = 12
"""Cases the measures of figure 1 are over, at most."""
_MEASURES = {"paired_gap": "paired gap", "centroid_gap": "centroid gap", "probe_accuracy": "probe", "cka": "CKA"}


@dataclass(frozen=True)
class Drawing:
    """A figure, and its numbers where it has any."""

    figure: Figure
    table: Table | None = None


def draw(preset: str, place: Place, choice: Choice) -> Drawing | None:
    """Draw figure1, figure2 or figure3 with the teachers of seed 0; None if none of their networks is here.

    Their scores are read where the networks lie: what is kept may be of another training.

    Args:
        preset: Name.
        place: Of the study.
        choice: Anchors wanted.
    """
    runs = {anchor: grid.teacher(anchor, 0) for anchor in choice.pick("anchors", ANCHORS)}
    missing = missing_teachers(place, choice)
    there = {anchor: run for anchor, run in runs.items() if anchor not in missing}
    if not there:
        return None
    if preset == "figure1":
        return _figure1(place, there, missing)
    return {"figure2": _figure2, "figure3": _figure3}[preset](place, runs, there)


def missing_teachers(place: Place, choice: Choice) -> dict[str, str]:
    """Anchor -> why its teacher of seed 0 cannot be drawn, in words; those that can are left out."""
    own, anywhere = Results(place.runs), Results(*place.score_folders)
    missing = {}
    for anchor in choice.pick("anchors", ANCHORS):
        run = grid.teacher(anchor, 0)
        if not anywhere.has(run):
            missing[anchor] = NOT_RUN
        elif not (own.has(run) and has_network(place.run(run.name))):
            missing[anchor] = "its network is not here"
    return missing


def _figure1(place: Place, there: dict[str, Run], missing: dict[str, str]) -> Drawing:
    """t-SNE of the latents per anchor; the gap in numbers beside it."""
    table = Table(
        "figure1",
        "Figure 1 in numbers: the gap between the latents of the sequences",
        ["anchor", "cases", *_MEASURES.values()],
        notes=[
            f"{VOXELS} brain voxels of each case, the same for every anchor. Paired gap: mean squared distance of two "
            "sequences at a voxel over twice the variance within sequences; centroid gap: variance of the sequences' "
            "centroids over the variance within; probe: how often a linear probe names the sequence, fitted and tested "
            f"on different cases (chance {1 / len(SEQUENCES):.2f}); CKA: linear, 1 where one is a rotation of the "
            "other."
        ],
    )
    panels: dict[str, Embedding | None] = {}
    for anchor in (anchor for anchor in ANCHORS if anchor in there or anchor in missing):
        panels[ANCHOR_NAMES[anchor]] = None
        if anchor in missing:
            table.rows.append([ANCHOR_NAMES[anchor], missing[anchor], *[""] * len(_MEASURES)])
            continue
        predictor, cases = _open(place, there[anchor])
        cases = cases[:MOST_CASES]
        latents = [_sample(predictor, opened.prepared(SEQUENCES), number) for number, opened in enumerate(cases)]
        found = gap_metrics(latents)
        values = {name: f"{found[key]:.3f}" if key in found else "" for key, name in _MEASURES.items()}
        table.rows.append([ANCHOR_NAMES[anchor], str(len(cases)), *values.values()])
        panels[ANCHOR_NAMES[anchor]] = Embedding(*_tsne(latents), measures=values)
    caption = (
        f"t-SNE of teachers' latents (perplexity {PERPLEXITY:g}, seed {SEED}, the same {SHOWN} test voxels for every "
        "anchor): an illustration. t-SNE keeps neither distances nor scale; read the measures below."
    )
    return Drawing(draw_embeddings(panels, caption=caption), table)


def _figure2(place: Place, runs: dict[str, Run], there: dict[str, Run]) -> Drawing:
    """Masks per anchor of the best, the median and the worst test case."""
    results = Results(place.runs)
    dice = {anchor: results.cases([run], AVERAGE) for anchor, run in there.items()}
    rows: dict[str, dict[str, Picture | None]] = {}
    chosen = _best_median_worst(list(dice.values()))
    predictors = {anchor: _open(place, run) for anchor, run in there.items()}
    for name, case_id in chosen.items():
        row: dict[str, Picture | None] = dict.fromkeys(ANCHOR_NAMES[anchor] for anchor in runs)
        for anchor, (predictor, cases) in predictors.items():
            case = next(opened.case(SEQUENCES) for opened in cases if opened.files.case_id == case_id)
            caption = f"mean Dice {dice[anchor][case_id]:.3f}"
            row[ANCHOR_NAMES[anchor]] = _picture(case, predictor.segment(case).target, caption)
        rows[f"{case_id}\n{name}"] = row
    caption = (
        "Teachers by anchor, all four sequences seen. Fill: prediction, line: reference, on T1ce; below: where they "
        "differ. Cases are chosen by the mean Dice over the anchors."
    )
    return Drawing(draw_masks(rows, background="T1ce", caption=caption))


def _figure3(place: Place, runs: dict[str, Run], there: dict[str, Run]) -> Drawing:
    """Latents of the median case as colours, per anchor and sequence."""
    results = Results(place.runs)
    dice = [results.cases([run], AVERAGE) for run in there.values()]
    chosen = _best_median_worst(dice)
    case_id = next((case for name, case in chosen.items() if name.startswith("median")), next(iter(chosen.values())))
    maps: dict[str, dict[str, NDArray[np.float32]] | None] = dict.fromkeys(ANCHOR_NAMES[anchor] for anchor in runs)
    picture = None
    for anchor, run in there.items():
        predictor, cases = _open(place, run)
        opened = next(opened for opened in cases if opened.files.case_id == case_id)
        prepared = opened.prepared(SEQUENCES)
        picture = _picture_on_crop(opened.case(SEQUENCES), prepared)
        maps[ANCHOR_NAMES[anchor]] = _colours(*predictor.latents(prepared))
    assert picture is not None
    caption = (
        f"{case_id} (median of the test cases): the first three principal components of the latents of all four "
        "sequences together, fitted in\neach row alone, as red, green and blue. In a row the same colour is the same "
        "latent, so without a gap the columns look alike. Lines: reference."
    )
    return Drawing(draw_latent_maps(picture, maps, caption=caption))


def _open(place: Place, run: Run) -> tuple[Predictor, list[OpenedCase]]:
    predictor = Predictor.load(place.run(run.name), device=place.device)
    return predictor, open_test_cases(place, run, predictor.preparation)


def _sample(predictor: Predictor, prepared: PreparedCase, number: int) -> Latents:
    """Latents of a case at brain voxels that depend on the case and its number only (J N C)."""
    latents, brain = predictor.latents(prepared)
    inside = np.flatnonzero(brain)
    rng = np.random.default_rng([SEED, number])
    chosen = rng.choice(inside, min(VOXELS, len(inside)), replace=False)
    sampled: Latents = latents.reshape(*latents.shape[:2], -1)[:, :, chosen].transpose(0, 2, 1)
    return sampled


def _tsne(cases: Sequence[Latents]) -> tuple[NDArray[np.floating], list[str]]:
    from sklearn.manifold import TSNE

    each = max(1, SHOWN // len(cases))
    rows = np.concatenate([latents[:, :each] for latents in cases], axis=1)  # J N C
    points = rows.reshape(-1, rows.shape[-1])
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(points)
    return embedded, [str(sequence) for sequence in SEQUENCES for _ in range(rows.shape[1])]


def _best_median_worst(runs: Sequence[dict[str, float]]) -> dict[str, str]:
    """The cases that are shown, by their mean over runs."""
    shared = set.intersection(*(set(run) for run in runs))
    return best_median_worst({case: float(np.mean([run[case] for run in runs])) for case in shared})


def _picture(case: Case, predicted: NDArray[np.uint8], caption: str) -> Picture:
    images = {str(sequence): volume.array for sequence, volume in case.images.items()}
    seen, affine = tuple(images), case.reference.affine
    return Picture(case.case_id, caption, "teacher", seen, images, case.target, predicted, affine)


def _picture_on_crop(case: Case, prepared: PreparedCase) -> Picture:
    assert case.target is not None
    target = target_on_grid(case.target, prepared.placement)[slices_of(prepared.placement.box)]
    images = dict(zip(map(str, prepared.sequences), prepared.image, strict=True))
    x, y, z = prepared.spacing_mm
    affine = np.diag([-x, -y, z, 1.0])  # left, posterior, superior
    return Picture(case.case_id, "", "teacher", tuple(images), images, target, target, affine)


def _colours(
    latents: Float[NDArray[np.float32], "J C i j k"], inside: Bool[NDArray[np.bool_], "i j k"]
) -> dict[str, NDArray[np.float32]]:
    """Three principal components over all sequences' brain voxels as colours (i j k 3); white outside the brain."""
    rows = latents[:, :, inside].transpose(0, 2, 1)  # J N C
    centred = (rows - rows.mean((0, 1))).reshape(-1, rows.shape[-1])
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores = centred @ axes[:, ::-1][:, :3]
    low, high = np.percentile(scores, (1, 99), axis=0)
    shares = np.clip((scores - low) / np.maximum(high - low, 1e-9), 0, 1).reshape(len(rows), -1, scores.shape[1])
    found = {}
    for sequence, share in zip(SEQUENCES, shares, strict=True):
        colours = np.ones((*inside.shape, 3), dtype=np.float32)
        colours[inside, : share.shape[1]] = share
        found[str(sequence)] = colours
    return found
