import hashlib

import pytest

from mindgap.errors import MindgapError
from mindgap.files import read_json, sha256_of, write_aside, write_json, write_text


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail():
        with write_aside(path) as aside:
            aside.write_text("half of the n")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_block_that_ends_well_replaces_it(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with write_aside(path) as aside:
        assert aside.parent == path.parent
        assert aside.name.startswith(".")
        assert aside.name.endswith(".nii.gz")
        assert not path.exists()
        aside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_writers_with_one_process_number_do_not_meet(tmp_path):
    """Containers number their processes alike; two writers of one file in one process are the same to the folder."""
    with write_aside(tmp_path / "a.json") as one, write_aside(tmp_path / "a.json") as other:
        one.write_text("first")
        other.write_text("second")
        assert one != other
    assert (tmp_path / "a.json").read_text() == "first", "the last to end"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MindgapError, match="could not be written"):
        write_text(tmp_path / "file" / "below", "text")
    with pytest.raises(MindgapError, match="could not be written"), write_aside(tmp_path / "never"):
        pass


def test_json_goes_and_comes_home(tmp_path):
    value = {"name": "Ödem", "list": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Ödem" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_that_is_none_is_explained(tmp_path):
    with pytest.raises(MindgapError, match="does not exist"):
        read_json(tmp_path / "a.json")
    for content in (b"{half", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(MindgapError, match="not readable JSON"):
            read_json(tmp_path / "a.json")


def test_hash(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
