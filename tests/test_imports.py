"""What may be imported where: a training machine has torch and little else, a report needs no torch."""

import importlib.metadata
import importlib.util
import os
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mindgap
from mindgap.data.codes import decode
from mindgap.data.prepared import Placement, Preparation, PreparedCase
from mindgap.data.store import Store, write_case, write_index
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS
from mindgap.sequences import SEQUENCES

ON_A_TRAINING_MACHINE = ("torch", "accelerate", "numpy", "safetensors", "rich")
"""And what these need themselves."""
WITHOUT_TORCH = (
    "mindgap",
    "mindgap.sequences",
    "mindgap.regions",
    "mindgap.files",
    "mindgap.citations",
    "mindgap.errors",
    "mindgap.runfiles",
    "mindgap.evaluation.metrics",
    "mindgap.evaluation.lesions",
    "mindgap.evaluation.presets",
    "mindgap.evaluation.rules",
    "mindgap.evaluation.scores",
    "mindgap.evaluation.statistics",
    "mindgap.evaluation.summary",
    "mindgap.data.nifti",
    "mindgap.data.masks",
    "mindgap.data.case",
    "mindgap.data.cohort",
    "mindgap.data.splits",
    "mindgap.data.dicom_convert",
    "mindgap.data.dicom_seg",
    "mindgap.data.dicom_sequence",
    "mindgap.data.store",
    "mindgap.networks.card",
    "mindgap.inference.cohort",
    "mindgap.inference.evaluate",
    "mindgap.inference.images",
    "mindgap.inference.openvino_engine",
    "mindgap.api",
    "mindgap.cli.segment",
    "mindgap.cli.segment_cohort",
    "mindgap.cli.advise",
    "mindgap.cli.dicom_input",
    "mindgap.cli.convert",
    "mindgap.data.conversion",
    "mindgap.data.survey",
    "mindgap.cli.raw_input",
    "mindgap.cli.picture",
    "mindgap.training.stopping",
    "mindgap.study.execute",
)

_HIDE = """
import sys
for name in {absent!r}:
    sys.modules[name] = None  # as if it were not installed
"""

_TRAIN = """
import sys
from pathlib import Path
import mindgap, mindgap.training.loop, mindgap.data.store, mindgap.methods, mindgap.experiment, mindgap.session
from mindgap.experiment import Experiment
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.runfiles import read_lines
from mindgap.training.loop import Schedule

folder = Path(sys.argv[1])
schedule = Schedule(steps=2, batch=2, crop=16)
plain = dict(data=folder / "store", width=2, latent_channels=2, schedule=schedule, device="cpu", precision="fp32")
recipes = {"teacher": TeacherRecipe(), "student": PmklRecipe(teacher=folder / "teacher")}
for name, recipe in recipes.items():
    subset = "all" if name == "teacher" else "T1ce"
    mindgap.train(Experiment(method=recipe, subset=subset, **plain), folder / name)
    assert [line["step"] for line in read_lines(folder / name / "terms.jsonl")] == [1, 2], name
    (validation,) = read_lines(folder / name / "validations.jsonl")
    assert set(validation) >= {"WT", "TC", "ET", "mean"}, name
    assert (folder / name / "model.json").is_file(), name
print("trained")
"""


def _python(program, *arguments):
    """Run a program in an interpreter of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def _case(case_id, seed):
    shape = (18, 17, 16)
    codes = np.random.default_rng(seed).integers(1, 256, (4, *shape)).astype(np.uint8)
    target = np.zeros(shape, np.uint8)
    target[4:12, 4:12, 4:12] = ED_CLASS
    target[5:10, 5:10, 5:10] = NCR_CLASS
    target[6:8, 6:8, 6:8] = ET_CLASS
    box = tuple((0, n) for n in shape)
    placement = Placement(shape, (0, 1, 2), (False, False, False), shape, box)
    return PreparedCase(
        case_id, decode(torch.from_numpy(codes)).numpy(), SEQUENCES, (box,) * 4, target, placement, (2.0, 2.0, 2.0)
    )


def _absent_on_a_training_machine():
    """Every installed top-level module that is not the project's and not of the five packages or what they need."""
    needed, waiting = set(), [canonicalize_name(name) for name in ON_A_TRAINING_MACHINE]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        try:
            found = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    owners = importlib.metadata.packages_distributions()
    kept = {module for module, names in owners.items() if {canonicalize_name(name) for name in names} & needed}
    return sorted(set(owners) - kept - {"mindgap"} - set(sys.stdlib_module_names))


def test_the_list_of_what_is_absent_is_long_enough():
    absent = set(_absent_on_a_training_machine())
    assert absent >= {"nibabel", "monai", "nilearn", "tyro", "matplotlib", "scipy", "sklearn", "beartype", "pydicom"}
    assert not absent & {"torch", "accelerate", "numpy", "safetensors", "rich", "sympy", "mindgap"}


def test_training_from_a_store_needs_no_imaging_plotting_or_command_line_package(tmp_path):
    folder = tmp_path / "store"
    names = ("P01", "P02", "P03")
    entries = {name: write_case(folder, _case(name, n), fingerprint="none") for n, name in enumerate(names)}
    split = {
        "name": "lists",
        "sha256": "",
        "train": ["P01", "P02"],
        "validation": ["P03"],
        "test": [],
        "unassigned": [],
    }
    write_index(Store(folder, Preparation(), entries, {}, split, "nowhere", "brats2017"))
    done = _python(_HIDE.format(absent=_absent_on_a_training_machine()) + _TRAIN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("trained\n")


def test_what_is_hidden_cannot_be_imported():
    done = _python(_HIDE.format(absent=("nibabel",)) + "import mindgap.data.nifti")
    assert done.returncode != 0
    assert "nibabel" in done.stderr


def test_dicom_packages_are_imported_only_when_they_are_used():
    names = [name for name in WITHOUT_TORCH if "dicom" in name]
    program = "import importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    done = _python(_HIDE.format(absent=("pydicom", "highdicom", "dcm2niix")) + program, *names)
    assert done.returncode == 0, done.stderr


def test_reading_segmenting_scoring_and_reporting_import_no_torch():
    names = list(WITHOUT_TORCH)
    if importlib.util.find_spec("mindgap.report") is not None:
        places = importlib.util.find_spec("mindgap.report").submodule_search_locations
        names += sorted(_modules_in("mindgap.report", places))
    program = "import importlib\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n    print(name)\n"
    done = _python(_HIDE.format(absent=("torch",)) + program, *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names


def _modules_in(package, places):
    return [package, *(f"{package}.{module.name}" for module in pkgutil.iter_modules(places))]


@pytest.mark.parametrize("name", ["mindgap", "mindgap.sequences", "mindgap.runfiles"])
def test_the_first_import_is_light(name):
    heavy = ("torch", "numpy", "nibabel", "monai", "scipy", "matplotlib")
    program = f"import sys, {name}\nprint(*(name for name in {heavy!r} if name in sys.modules))"
    done = _python(program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_who_segments_waits_for_nothing_of_training():
    code = (
        "import sys, mindgap.api, mindgap.cli.segment\n"
        "print([name for name in ('accelerate', 'mindgap.session', 'mindgap.training') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_no_public_function_has_the_name_of_a_package():
    """Whoever imports ``mindgap.report`` would find the module in the place of the function."""
    inside = {module.name for module in pkgutil.iter_modules(mindgap.__path__)}
    assert not inside & set(mindgap.__all__)
