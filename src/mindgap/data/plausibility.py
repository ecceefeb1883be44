"""Whether registrations and fields of view are such as scans of one head have: doubts are said, the rest is refused."""

from __future__ import annotations

from collections.abc import Mapping

from mindgap.data.registration import Registration
from mindgap.errors import InputError
from mindgap.sequences import Sequence

ATLAS = "atlas"
"""Name of the registration of the reference to the template."""
_LARGEST_ROTATION_DEG = 60.0
_LARGE_ROTATION_DEG = 30.0  # heads seldom lie so; a registration to the atlas that went astray may end here
_GOOD_OVERLAP, _LEAST_OVERLAP = 0.75, 0.5  # Dice of brains; a brain with a tumour and MNI152 reach about 0.9
_GOOD_BETWEEN, _LEAST_BETWEEN = 0.9, 0.7  # Dice of one brain, stripped on two scans
_LEAST_SIMILARITY = 0.1  # of Mattes mutual information
_GOOD_SIMILARITY = 0.5
"""Stripped, 0.67 to 0.88 within one patient and 0.43 to 0.44 between two; phantoms with a skull 0.87 to 1.18, slices of
6 mm and slabs of 4 cm included, and 0.36 to 0.41 where registration failed."""
_WELL_COVERED, _LEAST_COVERED = 0.9, 0.1  # share of the brain in the field of view of a scan


def judge_registrations(
    case_id: str, registrations: Mapping[str, Registration], overlap: Mapping[str, float], *, force: bool
) -> list[str]:
    """Warnings about registrations that are doubtful.

    Low similarity of two scans is a doubt and no proof. That to the template tells little, since it depends on patient
    and sequence more than on the pose, and brains overlap as well 40 degrees off: what is left is to say when a head
    was turned far.

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
            continue
        if found.after < _GOOD_SIMILARITY and name != ATLAS:
            doubtful.append(f"{name}: similarity {found.after:.2f}{_asked_of(found, stripped=name in overlap)}")
        if found.rotation_deg > _LARGE_ROTATION_DEG:
            doubtful.append(f"{name}: turned by {found.rotation_deg:.0f} degrees; look at the picture (--picture)")
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


def _asked_of(found: Registration, *, stripped: bool) -> str:
    """What is to be asked where two scans are little alike; of stripped ones the overlap tells whether they meet."""
    if stripped:
        return "; is it of the same patient?"
    where = (
        "no other place was better" if found.is_as_found else f"that after a turn by {found.rotation_deg:.0f} degrees"
    )
    return f", and {where}; do they lie together? (look at the picture, --picture)"


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
