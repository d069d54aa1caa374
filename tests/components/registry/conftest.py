import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toyrelease import write_project


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def project(evaluated: Path, tmp_path: Path) -> Path:
    """A project of one request that was evaluated and committed, to do as you like with."""
    return Path(shutil.copytree(evaluated, tmp_path / "project", symlinks=True))


@pytest.fixture
def make_project(tmp_path: Path) -> Callable[..., Path]:
    """Makes another such project under a name; further arguments are those of `write_project`."""
    return lambda name, **how: write_project(tmp_path / name, **how)
