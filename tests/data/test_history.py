import pytest

from mindgap.data.history import History, cases_of, history_of, together
from mindgap.errors import MindgapError
from mindgap.files import write_json
from mindgap.inference.shipped import model_folder
from mindgap.runfiles import MANIFEST


def test_a_network_has_learnt_what_those_before_it_have(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_json(first / MANIFEST, {"cases": {"train": ["a", "b"], "validation": ["v"], "test": ["t"]}})
    before = history_of(first)
    assert before == History(frozenset("ab"), frozenset("v"))
    cases = {"train": ["c"], "validation": ["w"], "test": ["t"], "before": before.to_plain()}
    write_json(second / MANIFEST, {"cases": cases})
    assert history_of(second) == History(frozenset("abc"), frozenset("vw"))
    assert history_of(second).known == frozenset("abcvw")
    assert together([first, second]) == history_of(second)
    assert together([]) == history_of(tmp_path / "elsewhere") == History()


@pytest.mark.parametrize("manifest", [{}, {"cases": None}, []])
def test_a_manifest_without_cases_says_how_to_mend_it(tmp_path, manifest):
    write_json(tmp_path / MANIFEST, manifest)
    for reader in (cases_of, history_of):
        with pytest.raises(MindgapError, match=r"manifest\.json does not say which cases.*copy the whole folder"):
            reader(tmp_path)


def test_the_network_in_the_box_has_learnt_the_cases_of_its_cross_validation():
    history = history_of(model_folder("box"))
    assert len(history.learnt) == 28
    assert "Brats18_2013_11_1" in history.learnt
    assert not history.chose
