"""mindgap doctor: what is installed, which processor and precision will be used, what is missing for what."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from mindgap.cli.terminal import parse, print_table, say

_PACKAGES = {
    "torch": "everything",
    "accelerate": "training",
    "numpy": "everything",
    "safetensors": "reading and writing networks",
    "nibabel": "reading and writing NIfTI",
    "nilearn": "phantoms (their anatomy)",
    "monai": "HD95",
    "scipy": "phantoms, HD95",
    "threadpoolctl": "phantoms",
    "matplotlib": "pictures of the report",
    "jinja2": "the report page",
    "rich": "tables at the terminal",
    "tyro": "the command line",
}


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, which device and precision will be used, and what is missing for which feature."""


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    parse(Doctor, words, verb="doctor")
    rows, missing = [], []
    for package, purpose in _PACKAGES.items():
        try:
            rows.append([package, importlib.metadata.version(package), purpose])
        except importlib.metadata.PackageNotFoundError:
            rows.append([package, "missing", purpose])
            missing.append(f"{package} is missing, so there is no: {purpose}. Install it with `pip install {package}`.")
    say(f"mindgap {importlib.metadata.version('mindgap')}, Python {platform.python_version()}, {platform.platform()}")
    print_table(["package", "version", "needed for"], rows)
    if "torch" not in " ".join(missing):
        _print_processor()
    for line in missing:
        say(line)
    if not missing:
        say("nothing is missing.")
    return 0 if not missing else 1


def _print_processor() -> None:
    from mindgap.processor import choose_precision, cpu_count, detect_processor

    processor = detect_processor("auto")
    say(f"device     {processor.device} ({processor.name})")
    say(f"class      {processor.kind}, {cpu_count()} processors usable")
    precision = choose_precision("auto", processor)
    reason = "native bf16" if processor.native_bf16 else "no native bf16, where bf16 would be hundreds of times slower"
    say(f"precision  {precision} ({reason})")
