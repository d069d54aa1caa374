"""Settings of libraries stand in code, and places without a usable HOME get one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.settings import SETTINGS, apply_settings

ROOT = Path(__file__).parents[3]


def test_what_is_set_stays(monkeypatch):
    """A user's own variable is kept; everything else is set."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    apply_settings()

    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert all(os.environ[name] == value for name, value in SETTINGS.items() if name != "HF_HUB_OFFLINE")


@pytest.mark.parametrize("home", [None, "/nowhere/at/all"])
def test_without_a_home_libraries_keep_their_state_elsewhere(monkeypatch, home):
    """No HOME, or one that cannot be written: Prefect, matplotlib and dvc get folders below the one for temporary files."""
    for name in ("PREFECT_HOME", "MPLCONFIGDIR", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
    apply_settings()

    assert f"expunge-{os.getuid()}" in os.environ["PREFECT_HOME"]


def test_importing_the_library_sets_nothing():
    """`import expunge` and an `Eraser`'s module leave a program's environment as it was, but for the noise of transformers."""
    program = "import os; before = dict(os.environ); import expunge, components.common.files; print({k for k in os.environ if k not in before})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() in ("set()", "{'TRANSFORMERS_VERBOSITY'}")
