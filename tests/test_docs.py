"""Every command in the documents exists, with the flags it is shown with."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from mindgap.cli import VERBS, main
from mindgap.methods import METHODS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[tuple[str, str]]:
    """In blocks and in running text, where `mindgap VERB` stands for any."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line.split("#")[0].strip()) for line in joined.splitlines() if "mindgap " in line]
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        found += [(page.name, line.replace("\\|", "|")) for line in re.findall(r"`(mindgap [a-z][^`]*)`", prose)]
    return sorted(set(found))


def _scripts() -> list[tuple[str, str, str]]:
    return sorted({
        (page.name, script, flags.strip())
        for page in PAGES
        for script, flags in re.findall(r"python ((?:benchmarks|scripts)/\w+\.py)([^`\n#]*)", page.read_text())
    })  # fmt: skip


@cache
def _help(words: tuple[str, ...]) -> str:
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        main([*words, "--help"])
    return text.getvalue()


def _flags(words: tuple[str, ...]) -> set[str]:
    """Whole flags: "--over" is none of a verb that has "--overlap"."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", _help(words)))


@pytest.mark.parametrize(("page", "command"), _commands())
def test_documented_commands_exist(page: str, command: str) -> None:
    words = shlex.split(command)
    words = words[words.index("mindgap") + 1 :]
    verb = words[0]
    assert verb in VERBS
    shown = {word.split("=")[0] for word in words if re.match("--?[a-z]", word)}
    if verb == "train":  # where no method is named there has to be one with all these flags
        methods = [words[1]] if words[1:] and words[1] in METHODS else list(METHODS)
        offered = [_flags(("train", method)) | {"--preset"} for method in methods]
    else:
        offered = [_flags((verb,))]
    assert any(shown <= flags for flags in offered), (
        f"{page}: {command}: no {min((shown - f for f in offered), key=len)}"
    )


@pytest.mark.parametrize(("page", "script", "flags"), _scripts())
def test_documented_scripts_exist(page: str, script: str, flags: str) -> None:
    assert (ROOT / script).is_file()
    text = "".join(file.read_text() for file in (ROOT / script).parent.glob("*.py"))  # some share their flags
    for flag in re.findall(r"--[a-z0-9-]+", flags):
        assert f'"{flag}"' in text or f'"{flag.replace("--no-", "--")}"' in text, f"{page}: {script} {flags}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"\b[A-Z]+_TABLE\b|TODO|TBD", page.read_text())
