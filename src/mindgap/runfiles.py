"""The files of a run folder and of a segmented cohort by name, and how logs are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS = "experiment.json"
MANIFEST = "manifest.json"
TERMS = "terms.jsonl"
VALIDATIONS = "validations.jsonl"
THRESHOLDS = "thresholds.json"
CONFIDENCE = "confidence.json"
RELIABILITY = "reliability.png"
MODELS = "models.json"
MEMBERS = "members"
SCORES = "scores.csv"
EVALUATION = "evaluation.json"
PREDICTIONS = "predictions"
CHECKPOINTS = "checkpoint"
LOCK = ".training.lock"
REPORT = "report.html"
COHORT = "cohort.json"
STATUS = "status.jsonl"
SUMMARY = "summary.csv"
OVERLAYS = "overlays.png"


def holds_masks(folder: Path) -> bool:
    """Whether a folder holds the masks of a cohort, as `mindgap segment` leaves them."""
    return (folder / COHORT).is_file() and any(folder.glob(f"{Path(STATUS).stem}*.jsonl"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a .jsonl log; half a line at the end, left by a kill, is ignored."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
