"""What an earlier call has left beside a mask and belongs to it no more: removed or set aside, where it is ours."""

from __future__ import annotations

from pathlib import Path

from mindgap.data.masks import is_own_mask, is_own_probabilities
from mindgap.data.nifti import stem_of
from mindgap.inference.layout import Layout, probability_files

STALE = ".stale"
"""Behind the name of a file that was set aside: nothing takes it for an image any more."""


def remove_probabilities(mask: Path) -> None:
    """Remove the probabilities of the mask that stood here before; files of others stay.

    Args:
        mask: The mask that is about to be written, in either layout.
    """
    for path in (*_own_probabilities(mask, "folders"), *_own_probabilities(mask, "bids")):
        path.unlink()


def remove_mask(mask: Path, layout: Layout) -> None:
    """Remove a mask of mindgap's and what accompanies it; what somebody changed or put in its place stays."""
    for path in _own_files(mask, layout):
        path.unlink()


def set_aside(mask: Path, layout: Layout) -> bool:
    """Rename a mask of mindgap's and what accompanies it, so that nobody takes it for that of the case as it is now.

    Returns:
        Whether there was one; what somebody changed or put in its place stays.
    """
    files = _own_files(mask, layout)
    for path in files:
        path.replace(path.with_name(path.name + STALE))
    return bool(files)


def _own_files(mask: Path, layout: Layout) -> list[Path]:
    """The mask, last, and what accompanies it; nothing where the mask is not as it was written."""
    if not mask.exists() or not is_own_mask(mask):
        return []
    marks = {".json": "LabelConvention", ".tsv": "index\tname", ".manifest.json": '"mask"'}
    about = {mask.with_name(f"{stem_of(mask)}{ending}"): mark for ending, mark in marks.items()}
    return [*_own_probabilities(mask, layout), *_with_marks(about), mask]


def _own_probabilities(mask: Path, layout: Layout) -> list[Path]:
    """The probabilities beside a mask that are ours, with their sidecars."""
    own = [path for path in probability_files(mask, layout) if path.exists() and is_own_probabilities(path)]
    return [*_with_marks({path.with_name(f"{stem_of(path)}.json"): '"Values"' for path in own}), *own]


def _with_marks(about: dict[Path, str]) -> list[Path]:
    """Texts that hold what ours of that name do."""
    return [p for p, mark in about.items() if p.is_file() and mark in p.read_text("utf-8", errors="replace")]
