"""Options, the folder of real cases, and types checked at run time."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook


def pytest_addoption(parser):
    parser.addoption("--brats", type=Path, default=None, help="BraTS 2018 training folder, for tests marked real")


def pytest_configure(config):
    # Before anything imports mindgap: shapes and types of every call are then checked.
    install_import_hook("mindgap", "beartype.beartype")


@pytest.fixture
def brats(request) -> Path:
    """The BraTS 2018 training folder; the test is skipped where it is not named."""
    folder = request.config.getoption("--brats")
    if folder is None:
        pytest.skip("needs --brats FOLDER")
    return folder
