"""Settings of the libraries that our programs use, in one place; a variable that is set already stays as it is.

The programs (command line, stages, flows) apply them. `import expunge` does not: a program of yours keeps its own.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SETTINGS = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}
_FOLDERS = ("PREFECT_HOME", "MPLCONFIGDIR", "DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR")


def apply_settings() -> None:
    """Sets what is not set; where HOME cannot be written, libraries keep their state below the folder for temporary files."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if not _home_is_writable():
        state = Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}"
        os.environ.setdefault("HOME", str(state))
        for name in _FOLDERS:
            os.environ.setdefault(name, str(state / name.lower()))


def _home_is_writable() -> bool:
    """Whether HOME names a folder in which this account can write."""
    home = os.environ.get("HOME", "")
    return bool(home) and os.access(home, os.W_OK | os.X_OK)
