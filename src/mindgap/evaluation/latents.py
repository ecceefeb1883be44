"""The modality gap in numbers: how far apart the latents of the sequences lie, whatever their scale. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Latents = NDArray[np.floating]
"""Latents of one case at the same brain voxels in all sequences (J, N, C); NaN for a sequence the case lacks."""


def gap_metrics(cases: Sequence[Latents]) -> dict[str, float]:
    """All measures of the gap; those that cannot be computed (one case, one sequence) are left out.

    Args:
        cases: Latents of each case.
    """
    found = {
        "paired_gap": paired_gap(cases),
        "centroid_gap": centroid_gap(cases),
        "probe_accuracy": probe_accuracy(cases),
        "cka": linear_cka(cases),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def paired_gap(cases: Sequence[Latents]) -> float:
    r"""Mean squared distance of two sequences at the same voxel over twice the variance within sequences.

    $\overline{\lVert z_j - z_k\rVert^2} / (2\overline{\sigma^2})$ over pairs of present sequences: 1 for unrelated
    latents of one distribution, 0 for identical ones, above 1 where centroids lie apart too.

    Args:
        cases: Latents of each case.

    Returns:
        At least 0; NaN where no case has two sequences.
    """
    distances, variances = [], []
    for latents in cases:
        shown = _present(latents)
        for a in range(len(shown)):
            variances.append(shown[a].var(0).mean())
            distances += [np.square(shown[a] - shown[b]).mean() for b in range(a + 1, len(shown))]
    return float(np.mean(distances) / (2 * np.mean(variances))) if distances else float("nan")


def centroid_gap(cases: Sequence[Latents]) -> float:
    r"""Variance of the sequences' centroids over the variance within sequences; 0 where centroids agree.

    Args:
        cases: Latents of each case; centroids are over all cases.

    Returns:
        At least 0; NaN with fewer than two sequences.
    """
    pooled = [rows for rows in _pooled(cases) if len(rows)]
    if len(pooled) < 2:
        return float("nan")
    centroids = np.stack([rows.mean(0) for rows in pooled])
    within = np.mean([rows.var(0).mean() for rows in pooled])
    return float(centroids.var(0).mean() / within)


def probe_accuracy(cases: Sequence[Latents], *, ridge: float = 1e-3) -> float:
    r"""How often a linear probe names the sequence of a latent, fitted on every other case and tested on the rest.

    Linear discriminant analysis: the largest of $x^T S^{-1}\mu_c - \tfrac12\mu_c^T S^{-1}\mu_c$ with the mean of each
    sequence and the covariance within sequences, both ways round. Chance is 1/J; a probe fitted and tested on the same
    cases could know them by heart.

    Args:
        cases: Latents of each case.
        ridge: Share of the mean variance added to the diagonal of the covariance.

    Returns:
        0 to 1; NaN with fewer than two cases or sequences.
    """
    halves = [cases[0::2], cases[1::2]]
    if len(cases) < 2 or min(sum(len(r) > 0 for r in _pooled(half)) for half in halves) < 2:
        return float("nan")
    hits, total = 0, 0
    for fitted, tested in (halves, halves[::-1]):
        known = [(j, rows) for j, rows in enumerate(_pooled(fitted)) if len(rows)]
        means = np.stack([rows.mean(0) for _, rows in known])
        within = np.mean([np.cov(rows.T, ddof=0).reshape(2 * rows.shape[1:]) for _, rows in known], axis=0)
        within += (ridge * np.trace(within) / len(within) + 1e-12) * np.eye(len(within))
        directions = np.linalg.solve(within, means.T)  # C classes
        offsets = 0.5 * (means * directions.T).sum(1)
        for j, rows in enumerate(_pooled(tested)):
            answers = (rows @ directions - offsets).argmax(1) if len(rows) else np.empty(0, dtype=int)
            hits += sum(known[answer][0] == j for answer in answers.tolist())
            total += len(answers)
    return hits / total


def linear_cka(cases: Sequence[Latents]) -> float:
    r"""Linear centred kernel alignment of two sequences' latents at the same voxels, mean over pairs and cases.

    $\lVert X^TY\rVert_F^2 / (\lVert X^TX\rVert_F\,\lVert Y^TY\rVert_F)$ of centred X, Y (N, C): 1 where one is a
    rotation of the other, 0 where unrelated. It does not see centroids or scale.

    Args:
        cases: Latents of each case.

    Returns:
        0 to 1; NaN where no case has two sequences.

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019.
    """
    values = []
    for latents in cases:
        shown = [rows - rows.mean(0) for rows in _present(latents)]
        for a in range(len(shown)):
            for b in range(a + 1, len(shown)):
                joint = np.square(shown[a].T @ shown[b]).sum()
                own = [np.sqrt(np.square(rows.T @ rows).sum()) for rows in (shown[a], shown[b])]
                values.append(joint / max(own[0] * own[1], 1e-12))
    return float(np.mean(values)) if values else float("nan")


def _present(latents: Latents) -> list[NDArray[np.float64]]:
    return [rows.astype(np.float64) for rows in latents if len(rows) > 1 and not np.isnan(rows).any()]


def _pooled(cases: Sequence[Latents]) -> list[NDArray[np.float64]]:
    """For each sequence its latents of all cases (rows, C)."""
    columns: list[list[NDArray[np.float64]]] = [[] for _ in range(len(cases[0]) if cases else 0)]
    for latents in cases:
        for j, rows in enumerate(latents):
            if len(rows) and not np.isnan(rows).any():
                columns[j].append(rows.astype(np.float64))
    return [np.concatenate(rows) if rows else np.empty((0, 1)) for rows in columns]
