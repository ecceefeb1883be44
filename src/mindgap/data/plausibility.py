"""Whether registrations and fields of view are such as scans of one head have: doubts are said, the rest is refused."""

from __future__ import annotations

from collections.abc import Mapping

from mindgap.data.registration import Registration
from mindgap.errors import InputError
from mindgap.sequences import Sequence

ATLAS = "atlas"
"""Name of the registration of the reference to the template."""
_LARGEST_ROTATION_DEG = 60.0
_GOOD_OVERLAP, _LEAST_OVERLAP = 0.75, 0.5  # Dice of brains; a brain with a tumour and MNI152 reach about 0.9
_GOOD_BETWEEN, _LEAST_BETWEEN = 0.9, 0.7  # Dice of one brain, stripped on two scans
_LEAST_SIMILARITY = 0.1  # of Mattes mutual information
_GOOD_BETWEEN_STRIPPED = 0.5  # 0.67 to 0.88 within one patient, 0.43 to 0.44 between two
_WELL_COVERED, _LEAST_COVERED = 0.9, 0.1  # share of the brain in the field of view of a scan


def judge_registrations(
    case_id: str, registrations: Mapping[str, Registration], overlap: Mapping[str, float], *, force: bool
) -> list[str]:
    """Warnings about registrations that are doubtful.

    Args:
        case_id: Name for messages.
        registrations: Of each scan to the reference, and of the reference to the template, under :data:`ATLAS`.
        overlap: Dice of the brain with that of the reference, or of the template, where each has one.
        force: Warn where else is refused.

    Raises:
        InputError: One is not plausible.
    """
    doubtful: list[str] = []
    hopeless: list[str] = []
    for name, found in registrations.items():
        if found.after < _LEAST_SIMILARITY or found.rotation_deg > _LARGEST_ROTATION_DEG:
            hopeless.append(f"{name}: similarity {found.after:.3f}, rotation {found.rotation_deg:.0f} degrees")
        elif found.after < _GOOD_BETWEEN_STRIPPED and name in overlap and name != ATLAS:
            doubtful.append(f"{name}: similarity {found.after:.2f}; is it of the same patient?")
        elif found.after < _GOOD_BETWEEN_STRIPPED and name not in overlap and found.is_as_found:
            doubtful.append(
                f"{name}: similarity {found.after:.2f}, and no other place was better; do they lie together?"
            )
    for name, value in overlap.items():
        good, least = (_GOOD_OVERLAP, _LEAST_OVERLAP) if name == ATLAS else (_GOOD_BETWEEN, _LEAST_BETWEEN)
        if value < good:
            lines = hopeless if value < least else doubtful
            lines.append(f"{name}: the brain and that of the reference overlap by Dice {value:.2f}")
    if hopeless and not force:
        raise InputError(
            case=case_id,
            expected="scans of one head that can be laid upon each other and upon the atlas",
            found="; ".join(hopeless),
            mend="look at the scans and their headers, name another one with --reference, or take it with --force",
        )
    return [f"the registration is doubtful: {line}" for line in [*hopeless, *doubtful]]


def judge_coverage(names: Mapping[Sequence, str], covered: Mapping[Sequence, float], *, force: bool) -> list[str]:
    """Warnings about scans that cover a part of the brain.

    Args:
        names: Of the scans, for messages.
        covered: Share of the brain in the field of view of each.
        force: Warn where else is refused.

    Raises:
        InputError: One covers next to nothing.
    """
    for sequence, share in covered.items():
        if share < _LEAST_COVERED and not force:
            raise InputError(
                case=names[sequence],
                expected=f"a scan that covers at least {_LEAST_COVERED:.0%} of the brain",
                found=f"{share:.1%} of it in the field of view",
                mend="look at the scan and its header, leave this sequence out, or take it with --force",
            )
    return [
        f"{sequence} covers {share:.0%} of the brain; it was taken as absent outside of its field of view"
        for sequence, share in covered.items()
        if share < _WELL_COVERED
    ]
