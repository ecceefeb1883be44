"""What a user sees while something takes long."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pytest

from mindgap.cli import VERBS, main, terminal
from mindgap.cli.terminal import ProgressLine, duration


def test_an_end_is_said_once_even_if_it_is_reported_again(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("study")
    for done in (1, 2, 2, 2):  # scores are still being taken, which counts no steps
        line(done, 2, "a run")
    assert [text.split("  ")[0] for text in capsys.readouterr().err.splitlines()] == ["study: 2/2"]
    for done in (1, 2):  # more has come to do, then it ends again
        line(done, 3, "a run")
    line(3, 3, "a run")
    assert capsys.readouterr().err.splitlines()[-1].startswith("study: 3/3")


def test_time_left_is_told_once_there_is_something_to_tell_it_by(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(terminal, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    line = ProgressLine("study")
    for seconds, done in ((1015.0, 600), (1030.0, 604), (1090.0, 640), (1230.0, 3600)):  # 600 were finished before
        now[0] = seconds
        line(done, 3600, "a run")
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["study: 600/3600  a run", "study: 604/3600  a run"]
    assert said[2] == "study: 640/3600  1 h 32 min left  a run"  # 40 in 75 s since the first call
    assert said[3] == "study: 3600/3600  done in 3 min 35 s  a run"


@pytest.mark.parametrize(("seconds", "said"), [(41.6, "42 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.skipif(os.name == "nt", reason="pipes and terminals of POSIX")
@pytest.mark.parametrize("what", ["pipe", "openpty"])
def test_work_goes_on_when_nobody_listens_any_more(tmp_path: Path, what: str) -> None:
    words = ["phantom", str(tmp_path / "ph"), "--cases", "2", "--spacing-mm", "4", "--seed", "1"]
    read_end, write_end = getattr(os, what)()
    os.close(read_end)  # as `| head` leaves it, or a window that was closed
    done = subprocess.run([sys.executable, "-m", "mindgap", *words], stdout=write_end, stderr=write_end, check=False)
    os.close(write_end)
    assert done.returncode == 0
    assert len(list((tmp_path / "ph").glob("*GG/Phantom_*"))) == 2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_nothing_in_the_temporary_folder(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []
    before = signal.signal(getattr(signal, kind), signal.SIG_DFL)  # `nohup` ignores SIGHUP

    def run(words: list[str]) -> int:
        with tempfile.TemporaryDirectory() as name:
            made.append(Path(name))
            os.kill(os.getpid(), getattr(signal, kind))
            time.sleep(10)
        return 0

    verb = types.ModuleType("mindgap.cli.fake")
    verb.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mindgap.cli.fake", verb)
    monkeypatch.setitem(VERBS, "fake", "")
    code = main(["fake"])
    after = signal.signal(getattr(signal, kind), before)
    assert code == 128 + getattr(signal, kind)
    assert made
    assert not made[0].exists()
    assert after == signal.SIG_DFL
    assert "interrupted" in capsys.readouterr().err
