"""One finished run for all tests of recorded runs, made when first asked for."""

import pytest
from tiny import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An uninterrupted run: its folder, and what it returned."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(folder)
