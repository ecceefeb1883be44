"""Brain-tumour segmentation when MRI sequences are missing.

What most verbs of the command line do, as functions: ``mindgap.prepare``, ``train`` (of an ``Experiment``), ``segment``
(with ``load``), ``segment_cohort``, ``evaluate``, ``cite``; a report is written by ``mindgap.api.report``, since
``mindgap.report`` is the package of the pages. They are imported when first used, so that importing the package is fast
and ``train`` needs no NIfTI library.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "mindgap.experiment",
    "train": "mindgap.session",
    "prepare": "mindgap.api",
    "load": "mindgap.inference.images",
    "segment": "mindgap.inference.images",
    "segment_cohort": "mindgap.api",
    "evaluate": "mindgap.api",
    "cite": "mindgap.api",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mindgap' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return list(__all__)
