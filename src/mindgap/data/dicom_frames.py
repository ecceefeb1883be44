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
    """Whether a header is that of an enhanced object, whose functional groups describe each of its images."""
    return bool(header.get(_PER_FRAME))


def frame_headers(header: Any) -> Iterator[Any]:
    """The classic header of every frame, in their order.

    Args:
        header: Of an enhanced object, with or without pixels.

    Raises:
        ValueError: It describes more or fewer frames than it says it has.
    """
    shared = _flat(header.get(_SHARED) or [])
    top = {element.keyword: element.value for element in header if element.keyword and element.VR != "SQ"}
    count = int(top.pop("NumberOfFrames", 1) or 1)
    top.pop("PixelData", None)
    described = header[_PER_FRAME].value
    if len(described) != count:
        raise ValueError(f"{len(described)} of {count} frames are described")
    for groups in described:
        known = {**top, **shared, **_flat([groups])}
        yield _classic(known, header)


def _flat(groups: Sequence[Any]) -> dict[str, Any]:
    """Keyword -> value of the first item of every group; private ones, which may repeat public entries, stay out."""
    found: dict[str, Any] = {}
    for one in groups:
        for macro in one:
            if macro.VR == "SQ" and macro.value and not macro.tag.is_private:
                found |= {element.keyword: element.value for element in macro.value[0] if element.keyword}
    return found


def _classic(known: dict[str, Any], header: Any) -> dict[str, Any]:
    """Entries under the names that classic images have for them."""
    found = dict(known)
    inversions = known.get("InversionTimes")
    renamed = {
        "EchoTime": known.get("EffectiveEchoTime"),
        "InversionTime": inversions[0] if isinstance(inversions, Sequence) and inversions else inversions,
        "ScanningSequence": _scanning(known),
        "ContrastBolusAgent": _agent(known, header),
    }
    found |= {keyword: value for keyword, value in renamed.items() if value is not None and not found.get(keyword)}
    # Of the whole object it is MIXED where frames differ, and what a complex image shows stands apart.
    kinds = known.get("FrameType") or known.get("ImageType") or []
    types = [kinds] if isinstance(kinds, str) else [str(word) for word in kinds]
    found["ImageType"] = [*types, "PHASE"] if known.get("ComplexImageComponent") == "PHASE" else types
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
