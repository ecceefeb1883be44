import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mindgap.data.prepared import Preparation
from mindgap.data.store import Store, StoredCase
from mindgap.errors import SettingError
from mindgap.experiment import (
    PRESETS,
    Experiment,
    build_method,
    citations_before,
    course_hash,
    describe_teacher,
    from_plain,
    to_plain,
)
from mindgap.files import sha256_of, write_json
from mindgap.methods import METHODS
from mindgap.methods.anysubset import AnySubsetRecipe
from mindgap.methods.compact import CompactRecipe
from mindgap.methods.dropout import DropoutRecipe, DynUNetRecipe
from mindgap.methods.kdnet import KdNetRecipe
from mindgap.methods.pmkl import PmklRecipe
from mindgap.methods.protokd import ProtoKdRecipe
from mindgap.methods.smunet import SmuNetRecipe
from mindgap.methods.teacher import TeacherRecipe
from mindgap.methods.unimodal import UnimodalRecipe
from mindgap.networks.build import build_network
from mindgap.networks.card import WEIGHTS, ModelCard
from mindgap.networks.weights import save_network
from mindgap.runfiles import MANIFEST
from mindgap.sequences import Sequence, format_subset, parse_subset
from mindgap.training.loop import Schedule

DATA = Path("data") / "prepared"
RECIPES = {
    "teacher": TeacherRecipe(anchor="k", k=Sequence.FLAIR, anchor_gradient=True, alignment_weight=0.3, incomplete=True),
    "unimodal": UnimodalRecipe(),
    "pmkl": PmklRecipe(teacher=Path("runs") / "teacher", pixel_weight=0.1, temperature=4.0),
    "kdnet": KdNetRecipe(teacher=Path("runs") / "teacher", segmentation_share=0.5, temperature=4.0),
    "protokd": ProtoKdRecipe(teacher=Path("runs") / "teacher", prototype_weight=0.2),
    "smunet": SmuNetRecipe(teacher=Path("runs") / "teacher", anchor="k", k=Sequence.T2, dropout=0.1),
    "dropout": DropoutRecipe(full_share=0.3, maps=False),
    "anysubset": AnySubsetRecipe(alignment_weight=0.5, full_share=0.1),
    "dynunet": DynUNetRecipe(full_share=0.3),
    "compact": CompactRecipe(distillation_weight=0.5, each=False, full_share=0.1, single_share=0.2, loss="classes"),
}


def make_store(subset: str = "all", spacing_mm: float | None = 2.0) -> Store:
    sequences = parse_subset(subset)
    box = ((0, 16), (0, 16), (0, 16))
    case = StoredCase("a", sequences, (box,) * len(sequences), (16, 16, 16), (2.0, 2.0, 2.0), "", "")
    split = {"train": ["a"], "validation": [], "test": []}
    return Store(DATA, Preparation(spacing_mm=spacing_mm), {"a": case}, {}, split, "nowhere", "brats2017")


def save_teacher(folder: Path, subset: str = "all", spacing_mm: float | None = 2.0) -> Path:
    sequences = parse_subset(subset)
    arguments = {"sequences": len(sequences), "latent_channels": 2, "width": 1, "weighted": True}
    preparation = dataclasses.asdict(Preparation(spacing_mm=spacing_mm))
    card = ModelCard("aligned", arguments, sequences, preparation, crop=16, method="teacher")
    save_network(folder, build_network("aligned", arguments), card)
    return folder


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_a_file_for_every_method_and_preset(preset, name):
    experiment = dataclasses.replace(
        PRESETS[preset](DATA, RECIPES[name]), subset="T1ce+FLAIR", seed=7, start=Path("run")
    )
    text = json.dumps(to_plain(experiment))
    assert json.loads(text)["method"]["name"] == name
    again = from_plain(json.loads(text))
    assert again == experiment
    assert type(again.method) is METHODS[name]
    assert to_plain(again) == to_plain(experiment)
    assert course_hash(again, data="d") == course_hash(experiment, data="d")


def test_every_method_has_an_example_here():
    assert {name: type(recipe) for name, recipe in RECIPES.items()} == METHODS


def test_enumerations_and_paths_come_back_as_such():
    assert from_plain(to_plain(PRESETS["small"](DATA, RECIPES["teacher"]))).method.k is Sequence.FLAIR
    assert from_plain(to_plain(PRESETS["small"](DATA, RECIPES["pmkl"]))).method.teacher == Path("runs") / "teacher"
    assert from_plain(to_plain(PRESETS["small"](DATA, PmklRecipe()))).method.teacher is None


def test_settings_of_an_old_run_are_read_although_its_anchor_made_no_use_of_some():
    recipe = TeacherRecipe(anchor="none", k=Sequence.T2, anchor_gradient=True, alignment_weight=0.5, align_over="all")
    assert from_plain(to_plain(PRESETS["small"](DATA, recipe))).method == recipe


def spoil(*path: str, value="?"):
    plain = json.loads(json.dumps(to_plain(PRESETS["small"](DATA))))
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return plain


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("method", "name"), "method '\\?' is unknown: choose one of teacher, unimodal, pmkl"),
        (("colour",), "colour"),
        (("method", "colour"), "TeacherRecipe has no colour"),
        (("schedule", "colour"), "Schedule has no colour"),
        (("optimisation", "colour"), "Optimisation has no colour"),
        (("augmentation", "colour"), "Augmentation has no colour"),
        (("method", "anchor"), "'\\?' is none of none, normal, k, mixture"),
        (("method", "k"), "'\\?' is not a valid Sequence"),
        (("optimisation", "schedule"), "'\\?' is none of poly, onecycle, constant"),
    ],
)
def test_what_this_version_does_not_know_is_refused(path, words):
    with pytest.raises(SettingError, match=words):
        from_plain(spoil(*path))


@pytest.mark.parametrize("missing", ["method", "schedule", "data"])
def test_settings_that_lack_a_part_are_refused(missing):
    plain = to_plain(PRESETS["small"](DATA))
    del plain[missing]
    with pytest.raises(SettingError, match=f"'{missing}' is missing"):
        from_plain(plain)


def test_from_plain_leaves_its_input_alone():
    plain = to_plain(PRESETS["quick"](DATA))
    before = json.dumps(plain)
    from_plain(plain)
    assert json.dumps(plain) == before


def test_the_hash_of_the_course_ignores_paths_and_how_often_it_saves():
    experiment = PRESETS["small"](DATA, RECIPES["pmkl"])
    elsewhere = dataclasses.replace(
        experiment,
        data=Path("other"),
        save_every=7,
        device="cpu",
        method=dataclasses.replace(RECIPES["pmkl"], teacher=Path("moved") / "teacher"),
    )
    assert course_hash(elsewhere, data="d") == course_hash(experiment, data="d")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"subset": "T1"},
        {"width": 4},
        {"validate_every": 11},
        {"method": PmklRecipe(pixel_weight=0.2)},
        {"schedule": Schedule(steps=9)},
        {"precision": "fp32"},
    ],
)
def test_the_hash_of_the_course_knows_every_other_setting(changes):
    experiment = PRESETS["small"](DATA, RECIPES["pmkl"])
    assert course_hash(dataclasses.replace(experiment, **changes), data="d") != course_hash(experiment, data="d")
    assert course_hash(experiment, data="e") != course_hash(experiment, data="d")
    assert course_hash(experiment, data="d", teacher="t") != course_hash(experiment, data="d")


@pytest.mark.parametrize("changes", [{"width": 0}, {"latent_channels": 0}, {"validate_every": 0}, {"save_every": 0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(SettingError):
        Experiment(data=DATA, **changes)


def test_all_means_every_sequence_the_data_has():
    experiment = Experiment(data=DATA, width=1)
    assert format_subset(build_method(experiment, make_store("T1+FLAIR")).subset) == "T1+FLAIR"
    assert format_subset(build_method(experiment, make_store()).subset) == "T1+T2+T1ce+FLAIR"


def test_a_subset_the_data_lacks_is_refused():
    experiment = Experiment(data=DATA, width=1, subset="T1+T1ce")
    with pytest.raises(SettingError, match=r"T1\+T1ce asks for T1ce, but the data in .* has only T1\+T2"):
        build_method(experiment, make_store("T1+T2"))


def test_a_student_gets_its_teacher_frozen(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    experiment = Experiment(data=DATA, width=2, subset="T1ce", method=PmklRecipe(teacher=teacher))
    method = build_method(experiment, make_store())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert not any(module.training for module in method.teacher.modules())
    assert format_subset(method.subset) == "T1ce"


def test_a_student_without_teacher_is_refused():
    with pytest.raises(SettingError, match="name its run folder with --teacher"):
        build_method(Experiment(data=DATA, subset="T1ce", method=PmklRecipe()), make_store())


def test_a_teacher_of_sequences_the_data_lacks_is_refused(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    experiment = Experiment(data=DATA, width=1, subset="T1ce", method=PmklRecipe(teacher=teacher))
    with pytest.raises(SettingError, match=r"sees T1\+T2\+T1ce\+FLAIR, but the data has no T2"):
        build_method(experiment, make_store("T1+T1ce+FLAIR"))


@pytest.mark.parametrize("spacing_mm", [1.0, None])
def test_a_teacher_of_another_preparation_is_refused(tmp_path, spacing_mm):
    teacher = save_teacher(tmp_path / "teacher", spacing_mm=spacing_mm)
    experiment = Experiment(data=DATA, width=1, subset="T1ce", method=PmklRecipe(teacher=teacher))
    with pytest.raises(SettingError, match="use the same preparation for both"):
        build_method(experiment, make_store())


def test_a_student_cites_what_its_teacher_is_made_of_and_knows_its_machine(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    experiment = Experiment(data=DATA, method=PmklRecipe(teacher=teacher), start=save_teacher(tmp_path / "start"))
    sha256 = sha256_of(teacher / WEIGHTS)
    assert citations_before(experiment) == []
    assert describe_teacher(teacher) == {"weights_sha256": sha256, "processor": None, "precision": None}
    manifest = {"citations": ["mindgap"], "processor": {"kind": "AVX2"}, "precision": "fp32"}
    write_json(teacher / MANIFEST, manifest)
    write_json(tmp_path / "start" / MANIFEST, {"citations": ["kdnet"]})
    assert citations_before(experiment) == ["mindgap", "kdnet"]
    assert describe_teacher(teacher) == {"weights_sha256": sha256, "processor": "AVX2", "precision": "fp32"}


def test_the_seed_decides_the_start():
    def start(seed):
        torch.manual_seed(seed)
        return build_method(Experiment(data=DATA, width=1), make_store()).networks["segmenter"].state_dict()

    one, again, other = start(0), start(0), start(1)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in one.items())
