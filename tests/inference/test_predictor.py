from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mindgap.batch import Output
from mindgap.data.case import Case
from mindgap.data.masks import write_label
from mindgap.data.nifti import read_volume
from mindgap.data.preparation import prepare_case
from mindgap.data.prepared import Preparation
from mindgap.data.volume import Volume, orientation_of, spacing_of
from mindgap.errors import InputError, MindgapError
from mindgap.inference.decision import classes_from_regions
from mindgap.inference.predictor import Predictor
from mindgap.inference.tiling import pad_to, predict_tiled, predict_whole
from mindgap.networks.build import build_network
from mindgap.networks.card import ModelCard
from mindgap.networks.weights import save_network
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS, Region, find_convention, region_mask
from mindgap.sequences import SEQUENCES, Sequence

T1, T2, T1CE, FLAIR = SEQUENCES
ORIENTATIONS = ("LPS", "RAS", "PIR", "SAL", "ILA")
OBLIQUE = np.array([[-0.9, 0.3, 0.1, 5], [-0.3, -1.1, 0.2, 8], [0.1, 0.2, 1.6, -3], [0, 0, 0, 1.0]])
SHAPE = (26, 22, 17)


def _save(folder, architecture, arguments, sequences, preparation):
    """An untrained network whose answer has every class."""
    torch.manual_seed(1)
    network = build_network(architecture, arguments)
    head = (network.predictor if architecture == "aligned" else network).head
    image = prepare_case(_case(sequences, _straight()), preparation).image
    padded, _ = pad_to(image, [32, 32, 32])
    with torch.no_grad():
        present = torch.ones(1, len(sequences), dtype=torch.bool)
        logits = network.eval()(torch.from_numpy(padded)[None], present).logits[0]
        spread = logits.flatten(1).std(1)
        head.bias.sub_(logits.flatten(1).mean(1)).div_(spread)
        head.weight.div_(spread[:, None, None, None, None])
    save_network(folder, network, ModelCard(architecture, arguments, sequences, asdict(preparation), 16, "unimodal"))
    return folder


@pytest.fixture(scope="module")
def aligned(tmp_path_factory) -> Path:
    """A network on T1ce and FLAIR that works on the grid of the files."""
    arguments = {"sequences": 2, "latent_channels": 2, "width": 2, "weighted": True}
    return _save(tmp_path_factory.mktemp("aligned"), "aligned", arguments, (T1CE, FLAIR), Preparation())


@pytest.fixture(scope="module")
def coarse(tmp_path_factory) -> Path:
    """A network on FLAIR that works at 1.6 mm."""
    arguments = {"channels_in": 1, "width": 2}
    return _save(tmp_path_factory.mktemp("vnet"), "vnet", arguments, (FLAIR,), Preparation(spacing_mm=1.6))


def _load(folder, coverage="tiles"):
    return Predictor.load(folder, device="cpu", precision="fp32", coverage=coverage)


def _volume(array, affine, name):
    image = nib.Nifti1Image(array.astype(np.float32), affine)
    return Volume(image.get_fdata(dtype=np.float32), affine, Path(f"{name}.nii.gz"), image.header)


def _arrays(sequences):
    """A round brain with smooth texture, another one for every sequence."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    brain = sum(axis**2 for axis in axes) < 0.8
    arrays = {}
    for sequence in sequences:
        rng = np.random.default_rng(SEQUENCES.index(sequence))
        waves = sum(np.sin(rng.uniform(3, 9) * axis + rng.uniform(0, 6)) for axis in axes)
        arrays[sequence] = ((waves + 4 + rng.uniform(0, 0.5, SHAPE)) * 100 * brain).astype(np.float32)
    return arrays


def _case(sequences, affine, codes=None):
    """The case, its axes stored in the order of ``codes``."""
    images = {}
    for sequence, array in _arrays(sequences).items():
        stored, grid = array, affine
        if codes is not None:
            turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
            stored = np.ascontiguousarray(nib.apply_orientation(array, turn))
            grid = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
        images[sequence] = _volume(stored, grid, sequence)
    return Case("P01", images)


def _straight(spacing=(1.0, 1.0, 1.0)):
    return np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])


@pytest.mark.parametrize("coverage", ["tiles", "whole"])
@pytest.mark.parametrize("model", ["aligned", "coarse"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_mask_has_the_grid_of_the_input(request, tmp_path, model, codes, coverage):
    predictor = _load(request.getfixturevalue(model), coverage)
    case = _case((T1CE, FLAIR), _straight((1.0, 0.75, 1.5)), codes)
    found = predictor.segment(case)
    assert found.target.shape == case.reference.array.shape
    assert found.probabilities.shape == (3, *found.target.shape)
    write_label(tmp_path / "mask.nii.gz", found.target, like=found.like, convention=find_convention("brats2017"))
    mask = read_volume(tmp_path / "mask.nii.gz", case="P01")
    assert orientation_of(mask.affine) == codes
    np.testing.assert_array_equal(mask.affine, case.reference.affine)
    np.testing.assert_array_equal(mask.array > 0, region_mask(found.target, Region.WT))


@pytest.mark.parametrize("model", ["aligned", "coarse"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_mask_does_not_depend_on_how_the_axes_are_stored(request, model, codes):
    predictor = _load(request.getfixturevalue(model))
    affine = _straight((1.0, 0.75, 1.5))
    straight = predictor.segment(_case((T1CE, FLAIR), affine))
    turned = predictor.segment(_case((T1CE, FLAIR), affine, codes))
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    np.testing.assert_array_equal(nib.apply_orientation(straight.target, turn), turned.target)
    assert turned.volumes_ml == pytest.approx(straight.volumes_ml)


@pytest.mark.parametrize("coverage", ["tiles", "whole"])
@pytest.mark.parametrize("model", ["aligned", "coarse"])
def test_regions_are_nested_and_none_is_trivial(request, model, coverage):
    found = _load(request.getfixturevalue(model), coverage).segment(_case((T1CE, FLAIR), _straight()))
    assert set(np.unique(found.target)) == {0, ET_CLASS, NCR_CLASS, ED_CLASS}
    masks = {region: region_mask(found.target, region) for region in Region}
    assert not (masks[Region.ET] & ~masks[Region.TC]).any()
    assert not (masks[Region.TC] & ~masks[Region.WT]).any()
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities.min() >= 0
    assert found.probabilities.max() <= 1 + 1e-6
    assert (np.diff(found.probabilities, axis=0) <= 1e-6).all()


def test_nothing_is_found_outside_the_brain_box(aligned):
    case = _case((T1CE, FLAIR), _straight())
    found = _load(aligned).segment(case)
    brain = np.argwhere(case.images[FLAIR].array > 0)
    inside = tuple(slice(a, b + 1) for a, b in zip(brain.min(0), brain.max(0), strict=True))
    outside = np.ones(SHAPE, bool)
    outside[inside] = False
    assert outside.any()
    assert (found.probabilities[:, outside] == 0).all()
    assert (found.target[outside] == 0).all()


@pytest.mark.parametrize(
    ("available", "named", "found"),
    [((T1, T1CE), "FLAIR", r"T1\+T1ce"), ((T2, FLAIR), "T1ce", r"T2\+FLAIR"), ((T1,), r"T1ce\+FLAIR", "T1")],
)
def test_a_case_that_lacks_a_sequence_is_refused_by_name(aligned, available, named, found):
    predictor = _load(aligned)
    with pytest.raises(InputError, match=rf"P01: expected T1ce\+FLAIR.*found {found}\..*add {named}[, ]"):
        predictor.segment(_case(available, _straight()))


def test_extra_sequences_are_not_looked_at(aligned):
    predictor = _load(aligned)
    alone = predictor.segment(_case((T1CE, FLAIR), _straight()))
    everything = _case(SEQUENCES, _straight())
    for sequence in (T1, T2):
        everything.images[sequence].array[:] = np.nan
    beside = predictor.segment(everything)
    np.testing.assert_array_equal(beside.probabilities, alone.probabilities)
    np.testing.assert_array_equal(beside.target, alone.target)
    assert beside.subset == alone.subset == (T1CE, FLAIR)
    assert beside.volumes_ml == alone.volumes_ml
    assert beside.like.path.name == "T1ce.nii.gz"


def test_affines_that_were_accepted_once_are_accepted_here(aligned):
    images = dict(_case(SEQUENCES, _straight()).images)
    images[T1] = replace(images[T1], affine=_straight((2.0, 2.0, 2.0)))
    images[FLAIR] = replace(images[FLAIR], affine=_straight((1.0, 1.0, 1.01)))
    found = _load(aligned).segment(Case("P01", images, None, force=True))
    plain = _load(aligned).segment(_case((T1CE, FLAIR), _straight()))
    np.testing.assert_array_equal(found.target, plain.target)
    assert found.volumes_ml == plain.volumes_ml  # of the grid the mask goes home in, not of T1's


@pytest.mark.parametrize("affine", [_straight((0.9, 1.1, 2.0)), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("model", ["aligned", "coarse"])
def test_volumes_are_voxels_times_their_size(request, model, affine):
    found = _load(request.getfixturevalue(model)).segment(_case((T1CE, FLAIR), affine))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    if affine is not OBLIQUE:
        assert voxel_ml == pytest.approx(np.prod(spacing_of(affine)) / 1000)
    for region in Region:
        count = region_mask(found.target, region).sum()
        assert count > 0
        assert found.volumes_ml[region] == pytest.approx(count * voxel_ml)


@pytest.mark.parametrize("coverage", ["tiles", "whole"])
def test_probabilities_are_the_networks_own(aligned, coverage):
    predictor = _load(aligned, coverage)
    prepared = prepare_case(_case((T1CE, FLAIR), _straight()), Preparation())

    def run(images):
        with torch.no_grad():
            present = torch.ones(images.shape[:2], dtype=torch.bool)
            return predictor.network(torch.from_numpy(images), present).region_probabilities().numpy()

    if coverage == "tiles":
        expected = predict_tiled(prepared.image, run, window=16)
    else:
        expected = predict_whole(prepared.image, run, multiple=16)
    np.testing.assert_allclose(predictor.probabilities(prepared), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out of memory."])
def test_where_one_pass_does_not_fit_after_all_tiles_are_taken_or_named(aligned, said, monkeypatch):
    predictor, case = _load(aligned, "auto"), _case((T1CE, FLAIR), _straight())
    tiles = _load(aligned, "tiles").segment(case)
    compute = predictor.probabilities

    lines = [said]

    def short(prepared, *, coverage):
        if coverage == "whole":
            raise RuntimeError(lines[-1])
        return compute(prepared, coverage=coverage)

    monkeypatch.setattr(predictor, "coverage_of", lambda prepared: "whole")
    monkeypatch.setattr(predictor, "probabilities", short)
    found = predictor.segment(case)
    assert found.coverage == "tiles"
    np.testing.assert_array_equal(found.target, tiles.target)
    predictor.coverage = "whole"
    with pytest.raises(MindgapError, match=r"P01: memory ran out .*--coverage tiles"):
        predictor.segment(case)
    lines.append("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        predictor.segment(case)


def test_predicting_twice_gives_the_same_and_trains_nothing(aligned):
    predictor, case = _load(aligned), _case((T1CE, FLAIR), _straight())
    before = {name: value.clone() for name, value in predictor.network.state_dict().items()}
    first, second = predictor.segment(case), predictor.segment(case)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    for name, value in predictor.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_classes_from_regions_are_the_most_probable_classes():
    logits = torch.randn(1, 4, 12, 13, 14, generator=torch.Generator().manual_seed(0)) * 3
    classes = classes_from_regions(Output(logits).region_probabilities()[0].numpy())
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, logits[0].argmax(0))


def test_a_damaged_model_is_refused(tmp_path, coarse):
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((coarse / name).read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(MindgapError, match="damaged"):
        _load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MindgapError, match="missing"):
        _load(tmp_path)
    with pytest.raises(MindgapError, match="no trained model"):
        _load(tmp_path / "nowhere")


def test_the_card_carries_all_that_prediction_needs(coarse):
    predictor = _load(coarse)
    assert predictor.preparation == Preparation(spacing_mm=1.6)
    assert predictor.card.sequences == (Sequence.FLAIR,)
    assert predictor.serve("P01", SEQUENCES) == (FLAIR,)
