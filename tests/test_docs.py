"""Every command in the documents exists, with the flags it is shown with."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from mindgap.cli import VERBS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line.split("#")[0].strip()) for line in joined.splitlines() if "mindgap " in line]
    return found


@cache
def _help(words: tuple[str, ...]) -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([*words, "--help"])
    return text.getvalue()


@pytest.mark.parametrize(("page", "command"), _commands())
def test_documented_commands_exist(page: str, command: str) -> None:
    words = shlex.split(command)
    words = words[words.index("mindgap") + 1 :]
    verb = words[0]
    assert verb in VERBS
    text = _help(("train", words[1])) if verb == "train" else _help((verb,))
    for flag in (word for word in words if word.startswith("-")):
        if flag != "--preset":
            assert flag in text, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"\b[A-Z]+_TABLE\b|TODO|TBD", page.read_text())
