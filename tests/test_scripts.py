"""Scripts and benchmarks run now and then only: what they take from the package has to be there all the same."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def _taken(path: Path) -> list[tuple[str, str]]:
    """Modules of the package and the names a program takes from them, at its top and inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "mindgap":
            found += [(node.module, alias.name) for alias in node.names]
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "mindgap"]
    return found


def _is_there(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    if not name or hasattr(found, name):
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_a_program_imports_of_the_package_is_there(path: Path) -> None:
    missing = [f"from {module} import {name}" for module, name in _taken(path) if not _is_there(module, name)]
    assert not missing


def test_a_name_that_moved_away_is_found() -> None:
    assert not _is_there("mindgap.networks", "build_network")
    assert _is_there("mindgap.networks.build", "build_network")
    assert sum(len(_taken(path)) for path in PROGRAMS) > 100
