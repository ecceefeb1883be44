"""Whether a case looks like those a network is known on: intensities and brain volume of every sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindgap.data.volume import Volume, volume_of_voxel_ml
from mindgap.sequences import Sequence, Subset

DECILES = tuple(range(10, 100, 10))
FEATURES = (*(f"{decile}th percentile of {{}} brightness" for decile in DECILES), "{} brain volume")
"""With a place for the name of the sequence."""
FEWEST_CASES = 5
_VOXELS = 100_000
_SAME = 2e-5  # what is kept of known cases has five decimals
_SPREAD_AT_LEAST = np.array([0.01] * len(DECILES) + [0.02])  # cases that agree by chance make no case strange

Features = tuple[float, ...]
"""As named by ``FEATURES``."""


@dataclass(frozen=True)
class Strangeness:
    """How far a case lies from known ones.

    Attributes:
        distance: Of its strangest feature, in standard deviations of the known cases.
        limit: The largest such distance of a known case from the others.
        feature: Which it is, such as "T1 brain volume" or "10th percentile of FLAIR brightness".
        n: Number of known cases.
    """

    distance: float
    limit: float
    feature: str
    n: int

    @property
    def is_strange(self) -> bool:
        """Whether the case lies farther out than every known one; of cases like these, about one in n+1 does."""
        return self.distance > self.limit


def describe_image(volume: Volume) -> Features:
    """Features of one skull-stripped image: deciles of its brightness, and the logarithm of its brain volume in mL.

    Brightness is counted as the networks see it, from the 0.5th to the 99.5th percentile of the brain, since scanners
    have no common unit; what is left is the shape of the histogram. Every so many-th of more than 200,000 voxels is
    enough for deciles.

    Args:
        volume: Background 0, brain above.
    """
    inside = volume.array[volume.array > 0]
    seen = inside[:: max(1, len(inside) // _VOXELS)]
    low, *deciles, high = np.percentile(seen, (0.5, *DECILES, 99.5)).tolist()
    scale = max(high - low, 1e-6)
    volume_ml = len(inside) * volume_of_voxel_ml(volume.affine)
    return (*((value - low) / scale for value in deciles), float(np.log(volume_ml)))


def twin(images: Mapping[Sequence, Features], known: Mapping[str, Mapping[Sequence, Features]]) -> str | None:
    """The known case that these images are, by every feature of every sequence; None if they are of another one."""
    for case, features in known.items():
        shared = [sequence for sequence in images if sequence in features]
        if shared and all(np.allclose(images[s], features[s], rtol=0, atol=_SAME) for s in shared):
            return case
    return None


def strangeness(
    images: Mapping[Sequence, Features], known: Mapping[str, Mapping[Sequence, Features]]
) -> Strangeness | None:
    r"""How far a case lies from known cases: $\max_{s,f} |x_{sf}-\mu_{sf}| / (\sigma_{sf}\sqrt{1+1/n})$.

    The limit is the largest distance of a known case from the rest, measured in the same way on the same sequences, so
    that among cases of the same kind about one in n+1 is called strange.

    Args:
        images: Features of the case, of the sequences the network looks at.
        known: Case -> features; cases that lack one of the sequences are left out.

    Returns:
        None where fewer than ``FEWEST_CASES`` are known.

    Reference:
        The limit is that of a conformal test (Vovk et al., 2005) at the highest level n cases allow. We differ: known
        cases are held against n-1 others, new ones against n.
    """
    subset: Subset = tuple(images)
    rows = [[known[case][s] for s in subset] for case in sorted(known) if set(subset) <= set(known[case])]
    if len(rows) < FEWEST_CASES:
        return None
    table = np.array(rows, dtype=np.float64)
    away = _distances(np.array([images[s] for s in subset], dtype=np.float64), table)
    inner = [_distances(table[i], np.delete(table, i, axis=0)).max() for i in range(len(table))]
    place, feature = np.unravel_index(int(away.argmax()), away.shape)
    name = FEATURES[int(feature)].format(subset[int(place)])
    return Strangeness(float(away.max()), float(max(inner)), name, len(table))


def _distances(case: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every sequence and feature (s f) from a table of cases (n s f)."""
    spread = np.maximum(table.std(axis=0, ddof=1), _SPREAD_AT_LEAST) * np.sqrt(1 + 1 / len(table))
    away: NDArray[np.float64] = np.abs(case - table.mean(axis=0)) / spread
    return away
