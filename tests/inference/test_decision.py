import numpy as np
import pytest
import torch

from mindgap.errors import MindgapError
from mindgap.inference.decision import LEVELS, Curves, Decision, read_decision, write_decision
from mindgap.regions import ED_CLASS, ET_CLASS, NCR_CLASS
from mindgap.sequences import parse_subset

FLAIR = parse_subset("FLAIR")


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def faint_case(seed, *, peak=0.3):
    """A tumour that a network shows faintly: 0.1 to ``peak`` inside, less outside."""
    rng = np.random.default_rng(seed)
    target = np.zeros((12, 12, 12), dtype=np.uint8)
    target[3:9, 3:9, 3:9] = ED_CLASS
    target[4:8, 4:8, 4:8] = NCR_CLASS
    target[5:7, 5:7, 5:7] = ET_CLASS
    noise = rng.random((3, 12, 12, 12)) * 0.09
    regions = np.stack([target > 0, (target == ET_CLASS) | (target == NCR_CLASS), target == ET_CLASS])
    return torch.from_numpy(np.where(regions, 0.1 + noise / 0.09 * (peak - 0.1), noise)).float(), target


def test_what_the_most_probable_class_leaves_empty_is_found():
    curves = Curves()
    for number in range(4):
        curves.add(f"case{number}", FLAIR, *faint_case(number))
    decision = curves.fit(without=frozenset({"case0"}))
    probabilities, target = faint_case(0)
    assert decision.cases == 3
    assert float(probabilities.max()) < 0.5, "argmax would find nothing"
    found = decision.classes(probabilities, FLAIR).numpy()
    assert dice(found > 0, target > 0) > 0.95
    assert curves.at("FLAIR", "WT", "case0", decision) == pytest.approx(dice(found > 0, target > 0), abs=1e-9)


def test_curves_are_dice_at_thresholds():
    probabilities, target = faint_case(1)
    curves = Curves()
    curves.add("a", FLAIR, probabilities, target)
    for level in (2, 7, 11):
        mask = probabilities[0].numpy() >= (level + 0.5) / LEVELS
        assert curves.dice["FLAIR"]["WT"]["a"][level] == pytest.approx(dice(mask, target > 0), abs=1e-6)


def test_regions_stay_nested_and_unknown_subsets_are_left_alone():
    decision = Decision({"FLAIR": {"WT": 0.5, "TC": 0.2, "ET": 0.1}}, 3)
    columns = torch.tensor([[0.6, 0.4, 0.6, 0.9], [0.3, 0.3, 0.1, 0.8], [0.2, 0.2, 0.1, 0.05]])
    classes = decision.classes(columns.reshape(3, 4, 1, 1), FLAIR)
    assert classes.flatten().tolist() == [ET_CLASS, 0, ED_CLASS, NCR_CLASS]
    assert decision.classes(torch.zeros(3, 1, 1, 1), parse_subset("T1")) is None


def test_it_is_kept_beside_its_weights_and_refused_beside_others(tmp_path):
    assert read_decision(tmp_path, "a") is None
    decision = Decision({"FLAIR": {"WT": 0.5, "TC": 0.2, "ET": 0.1}}, 3)
    write_decision(tmp_path, "a", decision)
    assert read_decision(tmp_path, "a") == decision
    with pytest.raises(MindgapError, match="other weights"):
        read_decision(tmp_path, "b")
