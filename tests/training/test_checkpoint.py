import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mindgap.errors import MindgapError, SettingError
from mindgap.training import checkpoint
from mindgap.training.checkpoint import (
    TrainingState,
    has_checkpoint,
    load_newest,
    random_state,
    refuse_existing,
    save_checkpoint,
    seed_everything,
    set_random_state,
)


def make_state(step: int, settings: str = "one") -> TrainingState:
    return TrainingState(
        step=step,
        networks={"segmenter": {"w": torch.full((3,), float(step))}},
        optimisers={"segmenter": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}},
        average={"state": {"w": torch.zeros(3)}, "updates": step},
        best={"score": 0.5, "step": step},
        random=random_state(),
        settings=settings,
    )


def names(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_state_comes_home(tmp_path):
    save_checkpoint(tmp_path, make_state(7))
    state, warnings = load_newest(tmp_path, settings="one")
    assert warnings == []
    assert (state.step, state.best, state.average["updates"]) == (7, {"score": 0.5, "step": 7}, 7)
    assert torch.equal(state.networks["segmenter"]["w"], torch.full((3,), 7.0))


def test_only_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 15, 200):
        save_checkpoint(tmp_path, make_state(step))
    assert names(tmp_path) == [f"step_{step:08d}.{end}" for step in (15, 200) for end in ("pt", "sha256")]
    assert load_newest(tmp_path, settings="one")[0].step == 200


def test_a_folder_without_checkpoints_gives_none(tmp_path):
    assert load_newest(tmp_path / "nothing", settings="one") == (None, [])
    assert not has_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["flipped", "halved", "unhashed"])
def test_a_damaged_newest_one_is_passed_over_with_a_line(tmp_path, damage):
    save_checkpoint(tmp_path, make_state(1))
    newest = save_checkpoint(tmp_path, make_state(2))
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "halved":
        newest.write_bytes(content[: len(content) // 2])
    else:
        newest.with_suffix(".sha256").unlink()
    state, warnings = load_newest(tmp_path, settings="one")
    assert state.step == 1
    assert len(warnings) == 1
    assert "step_00000002.pt is damaged" in warnings[0]


def test_damage_everywhere_gives_none_and_a_line_each(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(step)).write_bytes(b"")
    state, warnings = load_newest(tmp_path, settings="one")
    assert state is None
    assert len(warnings) == 2


def test_a_damaged_one_does_not_push_out_a_whole_one(tmp_path):
    for step in (4, 8):
        save_checkpoint(tmp_path, make_state(step))
    (tmp_path / "step_00000008.pt").write_bytes(b"half")
    save_checkpoint(tmp_path, make_state(6))  # the run went on from 4
    save_checkpoint(tmp_path, make_state(7))
    assert [n for n in names(tmp_path) if n.endswith(".pt")] == ["step_00000006.pt", "step_00000007.pt"]


def test_other_settings_are_refused(tmp_path):
    save_checkpoint(tmp_path, make_state(3, settings="one"))
    with pytest.raises(SettingError, match=r"step_00000003\.pt was made with other settings\. Resume with"):
        load_newest(tmp_path, settings="two")


def test_a_crash_while_writing_leaves_the_old_ones(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(step))
    before = names(tmp_path)
    whole = Path.write_bytes

    def half(self, data):
        whole(self, bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(MindgapError, match="could not be written: No space left on device"):
        save_checkpoint(tmp_path, make_state(3))
    assert names(tmp_path) == before
    state, warnings = load_newest(tmp_path, settings="one")
    assert (state.step, warnings) == (2, [])


def test_a_crash_between_file_and_hash_leaves_the_old_ones(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, make_state(step))

    def crash(path, text):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_state(3))
    state, warnings = load_newest(tmp_path, settings="one")
    assert state.step == 2
    assert "step_00000003.pt" in warnings[0]


def test_generators_go_on_where_they_stood():
    seed_everything(5)

    def numbers():
        return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    numbers()
    state = random_state()
    expected = [numbers() for _ in range(3)]
    seed_everything(6)
    assert [numbers() for _ in range(3)] != expected
    set_random_state(state)
    assert [numbers() for _ in range(3)] == expected


def test_random_states_survive_the_file(tmp_path):
    seed_everything(1)
    state = make_state(1)
    expected = (random.random(), float(torch.rand(())))
    save_checkpoint(tmp_path, state)
    seed_everything(2)
    set_random_state(load_newest(tmp_path, settings="one")[0].random)
    assert (random.random(), float(torch.rand(()))) == expected


def test_a_new_run_is_refused_where_one_lies(tmp_path):
    refuse_existing(tmp_path)
    save_checkpoint(tmp_path / "checkpoint", make_state(1))
    with pytest.raises(MindgapError, match="holds a run already: continue it with --resume"):
        refuse_existing(tmp_path)
