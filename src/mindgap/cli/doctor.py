"""mindgap doctor: what is installed, which processor and precision will be used, what is missing for what."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence

_PACKAGES = {
    "torch": "training, and every engine but a network that OpenVINO has already",
    "accelerate": "training",
    "numpy": "everything",
    "safetensors": "reading and writing networks",
    "nibabel": "reading and writing NIfTI",
    "isal": "reading and writing NIfTI quickly",
    "SimpleITK": "raw scans (registration, N4)",
    "nilearn": "phantoms (their anatomy), raw scans (MNI152)",
    "monai": "HD95",
    "scipy": "phantoms, HD95",
    "scikit-learn": "figure 1 of the paper (t-SNE)",
    "threadpoolctl": "phantoms",
    "matplotlib": "pictures of the report",
    "jinja2": "the report page",
    "rich": "tables at the terminal",
    "tyro": "the command line",
}

_OPTIONAL = {
    "dcm2niix": ("DICOM in", "dicom"),
    "pydicom": ("DICOM in", "dicom"),
    "highdicom": ("DICOM SEG out", "dicom"),
    "submitit": ("jobs on SLURM", "cluster"),
    "openvino": ("a faster engine on CPUs", "cpu"),
    "nncf": ("int8 networks for it", "int8"),
}
"""Package -> what it is for, and the extra of mindgap that brings it."""


_HELP = """usage: mindgap doctor

Say what is installed, which device and precision will be used, and what is missing for which feature.
"""


def run(words: Sequence[str]) -> int:
    """Run the verb; it needs no package itself, so that it can say which one is missing."""
    if words:
        print(_HELP, end="")
        if {*words} <= {"-h", "--help"}:
            raise SystemExit(0)
        return 2
    print(f"mindgap {importlib.metadata.version('mindgap')}, Python {platform.python_version()}, {platform.platform()}")
    missing = []
    for package, purpose in _PACKAGES.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
            missing.append(f"{package} is missing, so there is no: {purpose}. Install it: pip install {package}")
        print(f"  {package:<14} {version:<14} {purpose}")
    print("optional:")
    for package, (purpose, extra) in _OPTIONAL.items():
        print(f"  {package:<14} {_version_or_remedy(package, extra):<14} {purpose}")
    try:
        import torch  # noqa: F401  # what has no metadata amiss may still not load

        _print_processor()
    except ImportError as error:
        missing.append(f"torch cannot be loaded ({error}): install it again.")
    print("\n".join(missing) if missing else "nothing is missing.")
    return 1 if missing else 0


def _version_or_remedy(package: str, extra: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        known = importlib.metadata.metadata("mindgap").get_all("Provides-Extra") or []
        return f"not installed: pip install {repr(f'mindgap[{extra}]') if extra in known else package}; for"


def _box_has_int8() -> bool:
    from mindgap.inference.exported import quantised_sha256, read_exported
    from mindgap.inference.shipped import model_folder
    from mindgap.networks.card import read_card

    folder = model_folder(None)
    exported = read_exported(folder, read_card(folder)[1])
    if exported is None or exported.int8 is None:
        return False
    return exported.int8.passed and exported.int8_sha256 == quantised_sha256(folder)


def _print_processor() -> None:
    from mindgap.processor import choose_precision, cpu_count, detect_processor

    processor = detect_processor("auto")
    print(f"device     {processor.device} ({processor.name})")
    print(f"class      {processor.kind}, {cpu_count()} processors usable")
    precision = choose_precision("auto", processor)
    reason = "native bf16" if processor.native_bf16 else "no native bf16, where bf16 would be hundreds of times slower"
    print(f"training   torch, {precision} ({reason})")
    from mindgap.inference.engines import choose_engine

    for name, int8 in (("the box", _box_has_int8()), ("a run", False)):
        choice = choose_engine("auto", "auto", processor, int8=int8)
        print(f"segmenting by {name}: {choice.name}, {choice.precision} ({choice.reason})")
