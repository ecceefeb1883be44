"""How far a mask can be trusted, as mindgap segment prints it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mindgap.cli.terminal import print_table, say

if TYPE_CHECKING:
    from mindgap.evaluation.conformal import VolumeInterval
    from mindgap.inference.predictor import Segmentation


def print_found(found: Segmentation) -> None:
    """Print volumes and, where something is known of the network, expected Dice, intervals and reasons to look."""
    known = found.confidence
    if known is None:
        print_table(["region", "volume mL"], [[str(region), f"{ml:.1f}"] for region, ml in found.volumes_ml.items()])
        return
    print_table(
        ["region", "volume mL", f"{known.level:.0%} interval mL", "expected Dice"],
        (
            [str(region), f"{ml:.1f}", _interval(known.volumes[region]), _dice(known.dice[region])]
            for region, ml in found.volumes_ml.items()
        ),
    )
    say(f"from {known.n} calibration cases on {known.subset}")
    for note in known.notes:
        say(f"note: {note}")
    for reason in known.review:
        say(f"please review: {reason}")


def check_entropy_path(path: Path | None, mask: Path, *, probabilities: bool) -> None:
    """Refuse, before any work, a name that is none of NIfTI's, that of another output, or of a file that is there.

    Raises:
        SettingError: It is one of these.
    """
    from mindgap.data.nifti import NIFTI_SUFFIXES, stem_of
    from mindgap.errors import SettingError
    from mindgap.inference.layout import probability_files

    if path is not None and not path.name.endswith(NIFTI_SUFFIXES):
        raise SettingError(f"{path} has no NIfTI name: let it end in .nii.gz or .nii.")
    if path is None:
        return
    others = {"-o": (mask,), "--probabilities": probability_files(mask) if probabilities else ()}
    for flag, files in others.items():
        if any(path.parent.resolve() == file.parent.resolve() and stem_of(path) == stem_of(file) for file in files):
            raise SettingError(f"--entropy and {flag} would both write {path}: give the entropy map a name of its own.")
    for file in (path, path.with_name(f"{stem_of(path)}.json")):
        if file.exists():
            raise SettingError(f"{file} exists: choose another place for the entropy map, or remove it.")


def write_entropy(path: Path, found: Segmentation) -> None:
    """Write the entropy map in the grid of the mask, and say so."""
    from mindgap.data.masks import write_probabilities
    from mindgap.inference.confidence import entropy_bits

    temperature = 1.0 if found.confidence is None else found.confidence.temperature
    about = {"Values": "entropy of the classes of a voxel in bits, 0 to 2", "Temperature": temperature}
    write_probabilities(path, entropy_bits(found.probabilities, temperature), like=found.like, sidecar=about)
    plain = " (the network was not calibrated)" if found.confidence is None else ""
    say(f"wrote {path} (entropy in bits, 0 to 2, at temperature {temperature:.2f}{plain})")


def _interval(interval: VolumeInterval | None) -> str:
    return "not available" if interval is None else f"{interval.low_ml:.1f} - {interval.high_ml:.1f}"


def _dice(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not available"
