"""What is odd about series that can be used all the same, for a person to look at."""

from __future__ import annotations

from collections.abc import Collection

from mindgap.data.dicom import DicomSeries


def doubts_about_series(series: Collection[DicomSeries], *, registered: bool) -> tuple[str, ...]:
    """Lines about frames of reference that differ, and about images that are not there.

    Args:
        series: Those a mask is made from.
        registered: Whether they are laid upon each other afterwards, so that their frames do not matter.
    """
    lines = [
        f"the headers of {one.name} speak of {one.announced} images in the acquisition, and {len(one.slices)} are here"
        for one in series
        if one.announced is not None and one.announced > len(one.slices)
    ]
    frames: dict[str, str] = {}
    for one in series:
        if one.frame_of_reference:
            frames.setdefault(one.frame_of_reference, one.name)
    if len(frames) > 1 and not registered:
        lines.append(
            f"{' and '.join(frames.values())} have frames of reference of their own (FrameOfReferenceUID): nothing "
            "says that they lie upon each other; raw scans are registered with --raw"
        )
    return tuple(lines)
