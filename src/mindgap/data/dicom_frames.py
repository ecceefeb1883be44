"""Enhanced (multi-frame) MR: every frame as if it were a classic image of its own.

An enhanced object keeps what its frames share and what differs in functional groups, one sequence of attributes within
another. Laid flat, they are the entries of a classic image, so that grouping, recognition and geometry need to know of
one kind of image only.

Reference:
    DICOM PS3.3, A.36 (enhanced MR) and C.7.6.16 (functional groups).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_ECHO_PULSES = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}


def has_frames(header: Any) -> bool:
    """Whether a header is that of several images with functional groups that describe each."""
    return int(header.get("NumberOfFrames", 1) or 1) > 1 and bool(header.get(_PER_FRAME))


def frame_headers(header: Any) -> Iterator[Any]:
    """The classic header of every frame, in their order.

    Args:
        header: Of an enhanced object, with or without pixels.
    """
    shared = _flat(header.get(_SHARED) or [])
    top = {element.keyword: element.value for element in header if element.keyword and element.VR != "SQ"}
    del top["NumberOfFrames"]
    top.pop("PixelData", None)
    for groups in header[_PER_FRAME].value:
        known = {**top, **shared, **_flat([groups])}
        yield _classic(known, header)


def _flat(groups: Sequence[Any]) -> dict[str, Any]:
    """Keyword -> value of the first item of every group."""
    found: dict[str, Any] = {}
    for one in groups:
        for macro in one:
            if macro.VR == "SQ" and macro.value:
                found |= {element.keyword: element.value for element in macro.value[0] if element.keyword}
    return found


def _classic(known: dict[str, Any], header: Any) -> dict[str, Any]:
    """Entries under the names that classic images have for them."""
    found = dict(known)
    inversions = known.get("InversionTimes")
    renamed = {
        "EchoTime": known.get("EffectiveEchoTime"),
        "InversionTime": inversions[0] if isinstance(inversions, Sequence) and inversions else inversions,
        "ImageType": known.get("FrameType"),
        "ScanningSequence": _scanning(known),
        "ContrastBolusAgent": _agent(known, header),
    }
    for keyword, value in renamed.items():
        if value is not None and not found.get(keyword):
            found[keyword] = value
    return found


def _scanning(known: dict[str, Any]) -> list[str] | None:
    words = [*_ECHO_PULSES.get(str(known.get("EchoPulseSequence", "")), [])]
    words += ["IR"] if known.get("InversionRecovery") == "YES" else []
    words += ["EP"] if known.get("EchoPlanarPulseSequence") == "YES" else []
    return words or None


def _agent(known: dict[str, Any], header: Any) -> str | None:
    """The contrast agent, unless the frame says that none was given yet."""
    agents = header.get("ContrastBolusAgentSequence") or []
    usage = known.get("ContrastBolusAgentAdministered")
    if not agents or usage == "NO":
        return None
    return str(agents[0].get("CodeMeaning") or agents[0].get("CodeValue") or "unnamed")
