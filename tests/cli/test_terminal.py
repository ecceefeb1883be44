"""What a user sees while something takes long."""

import pytest

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


@pytest.mark.parametrize(("seconds", "said"), [(41.6, "42 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
