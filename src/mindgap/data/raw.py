"""Raw scans to one case on the atlas grid, and results back to the grid of a scan.

Every scan is interpolated once: the registration between scans and that to the atlas are joined before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindgap.data.brain import BrainSource, as_mask, brain_of_stripped, given_brain, strip_with_hd_bet
from mindgap.data.case import MOST_NEGATIVE_FRACTION, Case, check_stripped, refuse_labels
from mindgap.data.plausibility import ATLAS, judge_coverage, judge_registrations
from mindgap.data.registration import Registration, register, resample, to_itk
from mindgap.data.template import ATLAS_SHAPE, atlas_affine, read_template, template_on_atlas
from mindgap.data.volume import Volume, check_head
from mindgap.errors import InputError
from mindgap.progress import Say, mute
from mindgap.sequences import Sequence

_TIES = (Sequence.T1CE, Sequence.T1, Sequence.FLAIR, Sequence.T2)


@dataclass(frozen=True)
class RawOptions:
    """What is done to raw scans.

    Attributes:
        brain: How the brain is found.
        reference: The sequence the others are laid upon; the finest, most isotropic one if None.
        native: The sequence whose grid the result takes; the reference if None.
        n4: Whether the bias field is corrected.
    """

    brain: BrainSource
    reference: Sequence | None = None
    native: Sequence | None = None
    n4: bool = False

    def describe(self) -> str:
        """In one line, for whoever compares."""
        chosen = {"reference": self.reference or "auto", "native": self.native or "reference", "n4": self.n4}
        brain = "already stripped" if self.brain.already_stripped else "mask" if self.brain.mask else "hd-bet"
        return f"brain {brain}, " + ", ".join(f"{name} {value}" for name, value in chosen.items())


@dataclass(frozen=True, eq=False)
class RawCase:
    """Scans on the atlas grid, with the way back.

    Attributes:
        case: The stripped sequences on the atlas grid.
        native: The scan whose grid results take.
        to_atlas: Place in that scan to place on the atlas grid (RAS mm).
        record: For the manifest.
        warnings: What a reader of the result should know.
    """

    case: Case
    native: Volume
    to_atlas: NDArray[np.float64]
    record: Mapping[str, Any]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A scan on the atlas grid.

    Attributes:
        image: Stripped, 0 where the scan saw nothing.
        brain: The whole brain, as far as it is known.
        view: The field of view of the scan.
    """

    image: Volume
    brain: NDArray[np.bool_]
    view: NDArray[np.bool_]


def to_atlas_grid(
    case_id: str,
    images: Mapping[Sequence, Volume],
    options: RawOptions,
    *,
    force: bool = False,
    say: Say = mute,
) -> RawCase:
    """Register, strip and resample raw scans.

    Where one brain stands for all scans, that of a scan ends with its field of view: beyond, the sequence is absent.
    Few negative voxels of the brain (ringing) take its lowest value, more than 1 % are refused: of the brain where it
    is found here, since air may ring as it likes; of the whole scan where brain is what lies above 0.

    Args:
        case_id: Name for messages.
        images: The scans the network looks at, each on a grid of its own.
        options: How.
        force: Let a registration through that is not plausible, and a scan that hardly covers the brain.
        say: Takes lines about what is being done, and what became of each registration.

    Raises:
        InputError: A scan cannot be used, the brain is not found, or a registration is not plausible.
    """
    began = time.perf_counter()
    names = {sequence: f"{case_id}: {sequence} ({volume.path.name})" for sequence, volume in images.items()}
    for sequence, volume in images.items():
        check_head(case_id, volume)
        _check(names[sequence], volume, stripped=options.brain.already_stripped, force=force)
    first = _named(case_id, options.reference, images) or choose_reference(images)
    native = _named(case_id, options.native, images) or first
    given = None if options.brain.mask is None else given_brain(case_id, images, options.brain.mask)
    soft: dict[Sequence, int] = {}
    if options.brain.already_stripped:
        images, soft = _without_rims(images)
    if options.n4:
        say(f"correcting the bias field of {len(images)} scans")
        images = {sequence: _without_bias(case_id, volume) for sequence, volume in images.items()}
    reference, stripped = images[first], options.brain.already_stripped
    others = {s: volume for s, volume in images.items() if s != first}
    between = f"{', '.join(others)} to {first}, and " if others else ""
    say(f"registering {between}{first} to the atlas")
    laid = {s: _lay(case_id, (s, volume), (first, reference), say, stripped=stripped) for s, volume in others.items()}
    ways = {first: np.eye(4)} | {s: found.matrix for s, found in laid.items()}
    together = time.perf_counter()
    say(f"finding the brain: {options.brain.name}")
    brains = _find_brains(case_id, images, ways, first, options.brain, given)
    insides = {s: _on_scan(case_id, volume, ways[s], *brains[s]) for s, volume in images.items()}
    for sequence, volume in images.items():
        _check_negative(names[sequence], volume.array[insides[sequence]], " in the brain")
    found_brain = time.perf_counter()
    inner = replace(reference, array=reference.array * insides[first])
    home = _lay(case_id, (first, inner), (ATLAS, read_template()), say, stripped=True)
    placed = {s: _place(case_id, v, ways[s] @ home.matrix, brains[s], home.matrix) for s, v in images.items()}
    covered = _covered(placed)
    known, way = brains[first]
    overlap = {ATLAS: _overlap(placed[first].brain, template_on_atlas(), _view(case_id, known, way @ home.matrix))}
    if stripped:  # else all have one brain
        overlap |= {
            str(s): _overlap(placed[s].brain, placed[first].brain, placed[s].view & placed[first].view) for s in others
        }
    registrations = {str(s): found for s, found in laid.items()} | {ATLAS: home}
    lines = [
        *judge_registrations(case_id, registrations, overlap, force=force),
        *judge_coverage(names, covered, force=force),
        *(f"the edge of {s} is soft (resampled after stripping?): {n} layers were left out" for s, n in soft.items()),
    ]
    record = {
        "reference": str(first),
        "native": str(native),
        "n4": options.n4,
        "brain": options.brain.name,
        "transforms": {name: _describe(found) for name, found in registrations.items()},
        "soft_layers_left_out": {str(s): layers for s, layers in soft.items()},
        "brain_overlap": {name: round(value, 4) for name, value in overlap.items()},
        "brain_covered": {str(s): round(share, 4) for s, share in covered.items()},
        "seconds": _spent(began, registration=together, brain=found_brain, atlas=time.perf_counter()),
    }
    to_atlas = np.linalg.inv(ways[native] @ home.matrix).astype(np.float64)
    on_atlas = {sequence: found.image for sequence, found in placed.items()}
    return RawCase(Case(case_id, on_atlas, force=force), images[native], to_atlas, record, tuple(lines))


def _lay(
    case_id: str,
    moving: tuple[Sequence, Volume],
    fixed: tuple[str, Volume],
    say: Say,
    *,
    stripped: bool,
) -> Registration:
    """Register a named scan to another one, or to the atlas, and say how that went."""
    began = time.perf_counter()
    found = register(case_id, fixed[1], moving[1], stripped=stripped)
    say(
        f"{moving[0]!s:>6}  to {fixed[0]} in {time.perf_counter() - began:.1f} s: turned by {found.rotation_deg:.0f} "
        f"degrees, similarity {found.before:.2f} before and {found.after:.2f} after"
    )
    return found


def _spent(began: float, **ends: float) -> dict[str, float]:
    """Seconds of each stage, from the times at which they ended."""
    starts = [began, *ends.values()]
    return {name: round(end - start, 2) for (name, end), start in zip(ends.items(), starts, strict=False)}


def bring_back(raw: RawCase, maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo :func:`to_atlas_grid` for maps on the atlas grid: linearly onto the native grid, 0 outside.

    Args:
        raw: The case.
        maps: Probabilities (R i j k).
    """
    shape = _three(raw.native.array.shape)
    like = raw.case.reference
    return np.stack(
        [
            resample(
                raw.case.case_id, Volume(part, like.affine, like.path, None), raw.to_atlas, shape, raw.native.affine
            )
            for part in maps
        ]
    )


def choose_reference(images: Mapping[Sequence, Volume]) -> Sequence:
    """The scan with the thinnest thick edge, then the smallest voxel; T1ce, T1, FLAIR, T2 among equals."""
    return min(
        images,
        key=lambda s: (
            round(max(images[s].spacing_mm), 2),
            round(float(np.prod(images[s].spacing_mm)), 2),
            _TIES.index(s),
        ),
    )


def _named(case_id: str, sequence: Sequence | None, images: Mapping[Sequence, Volume]) -> Sequence | None:
    if sequence is None or sequence in images:
        return sequence
    raise InputError(
        case=case_id,
        expected=f"a scan {sequence} that the network uses, as --reference or --native says",
        found=", ".join(str(one) for one in images),
        mend="name one of these",
    )


def _check(case: str, volume: Volume, *, stripped: bool, force: bool) -> None:
    if stripped:
        check_stripped(case, volume, force=force)
        return
    array = volume.array
    if not (array.size and np.isfinite(array).all() and array.min() < array.max()):
        raise InputError(
            case=case,
            expected="a scan with finite voxels that differ",
            found="NaN or infinite voxels, or the same value everywhere",
            mend="convert the scan again, or leave the sequence out",
        )
    if array.max() <= 0:
        _check_negative(case, array)
        raise InputError(
            case=case,
            expected="background 0 and brain above it",
            found="no voxel above 0",
            mend="give the right file, or leave this sequence out",
        )
    refuse_labels(case, array)


def _check_negative(case: str, voxels: NDArray[np.float32], where: str = "") -> None:
    fraction = float((voxels < 0).mean()) if voxels.size else 0.0
    if fraction <= MOST_NEGATIVE_FRACTION:
        return
    raise InputError(
        case=case,
        expected="background 0 and brain above it",
        found=f"{fraction:.1%} negative voxels{where}",
        mend="give the scan as it was before any normalisation; normalisation is done here, so z-scored images are not "
        "needed",
    )


def _without_rims(images: Mapping[Sequence, Volume]) -> tuple[dict[Sequence, Volume], dict[Sequence, int]]:
    """Stripped scans with nothing but brain above 0, and how many soft layers some of them lost."""
    cut, soft = {}, {}
    for sequence, volume in images.items():
        inside, layers = brain_of_stripped(volume.array)
        cut[sequence] = replace(volume, array=volume.array * inside)
        if layers:
            soft[sequence] = layers
    return cut, soft


def _without_bias(case_id: str, volume: Volume) -> Volume:
    """N4 on a coarse copy; its smooth field is then divided out of the scan."""
    import SimpleITK as sitk

    image = to_itk(case_id, volume)
    factors = [max(1, int(4 / mm + 0.5)) for mm in image.GetSpacing()]
    coarse = sitk.Shrink(image, factors)
    mask = sitk.OtsuThreshold(coarse, 0, 1)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50, 50, 30])
    corrector.Execute(coarse, mask)
    field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    return Volume((volume.array / np.exp(field)).astype(np.float32), volume.affine, volume.path, volume.header)


def _find_brains(
    case_id: str,
    images: Mapping[Sequence, Volume],
    ways: Mapping[Sequence, NDArray[np.float64]],
    first: Sequence,
    source: BrainSource,
    given: tuple[Volume, Sequence] | None,
) -> dict[Sequence, tuple[Volume, NDArray[np.float64]]]:
    """Per sequence, the brain as a volume of 0 and 1 and the way from the reference to its grid."""
    if source.already_stripped:
        return {s: (as_mask(volume, volume.array > 0), ways[s]) for s, volume in images.items()}
    if given is not None:
        return dict.fromkeys(images, (given[0], ways[given[1]]))
    assert source.hd_bet is not None
    brain = as_mask(images[first], strip_with_hd_bet(case_id, source.hd_bet, images[first]))
    return dict.fromkeys(images, (brain, ways[first]))


def _on_scan(
    case_id: str, volume: Volume, way: NDArray[np.float64], brain: Volume, brain_way: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """The brain on the grid of a scan; both ways begin at the reference."""
    there = brain_way @ np.linalg.inv(way)
    return resample(case_id, brain, there, _three(volume.array.shape), volume.affine) >= 0.5


def _place(
    case_id: str,
    volume: Volume,
    way: NDArray[np.float64],
    known: tuple[Volume, NDArray[np.float64]],
    home: NDArray[np.float64],
) -> _Placed:
    """A scan laid upon the atlas by its way from there, with its brain, whose way begins at the reference.

    The cut around a brain that was stripped before neither dims nor rings. Beyond its field of view a scan knows
    nothing: it is background there, not the darkest tissue.
    """
    brain, brain_way = known
    affine = atlas_affine()
    inside = resample(case_id, brain, brain_way @ home, ATLAS_SHAPE, affine) >= 0.5
    if brain.array.shape == volume.array.shape and np.array_equal(brain.array > 0, volume.array > 0):
        volume = replace(volume, array=_continued(volume.array))
    view = _view(case_id, volume, way)
    image = resample(case_id, volume, way, ATLAS_SHAPE, affine, cubic=True)
    low = volume.array[volume.array > 0].min()
    placed = np.where(inside & view, np.maximum(image, low), 0).astype(np.float32)
    return _Placed(Volume(placed, affine, volume.path, None), inside, view)


def _view(case_id: str, volume: Volume, way: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where on the atlas grid a volume has voxels."""
    return resample(case_id, as_mask(volume, np.ones(volume.array.shape, bool)), way, ATLAS_SHAPE, atlas_affine()) > 0.5


def _covered(placed: Mapping[Sequence, _Placed]) -> dict[Sequence, float]:
    """Share of the brain in the field of view of each scan; the brain is what any of them knows of it."""
    brain = np.any([found.brain for found in placed.values()], axis=0)
    whole = max(1, int(brain.sum()))
    return {sequence: int((brain & found.view).sum()) / whole for sequence, found in placed.items()}


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_], view: NDArray[np.bool_]) -> float:
    """Dice of two brains where both were imaged."""
    return _dice(one & view, other & view)


def _continued(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """An image whose background near the brain repeats the nearest brain voxel."""
    from scipy.ndimage import distance_transform_edt

    empty = array <= 0
    nearest = distance_transform_edt(empty, return_distances=False, return_indices=True)
    continued: NDArray[np.float32] = array[tuple(nearest)]
    return continued


def _describe(found: Registration) -> dict[str, Any]:
    return {
        "matrix_ras_mm": np.round(found.matrix, 6).tolist(),
        "similarity_before": round(found.before, 4),
        "similarity_after": round(found.after, 4),
    }


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * int((one & other).sum()) / max(1, int(one.sum()) + int(other.sum()))


def _three(values: Any) -> tuple[int, int, int]:
    a, b, c = (int(value) for value in values)
    return a, b, c
