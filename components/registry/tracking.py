"""The one way to MLflow: settings before it is imported, a client that shares no state with others, and errors in one sentence."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from components.common.errors import ExpungeError, StageError, TransientError, UserError

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # else a server on S3 sends its clients to the store itself
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Environment variables that MLflow reads when it is imported or called; one that is set already stays."""
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402 - after its settings
from mlflow.exceptions import MlflowException  # noqa: E402

for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)

SERVER = ("http", "https")
_SQLITE = "sqlite:///"


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def never_used(uri: str) -> bool:
    """Whether a tracking URI names a SQLite file that does not exist, or is empty: nothing was ever registered, and asking would write it."""
    path = Path(uri.removeprefix(_SQLITE))
    return uri.startswith(_SQLITE) and not (path.exists() and path.stat().st_size)


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server, which alone decides where artifacts lie."""
    return urlsplit(uri).scheme in SERVER


def shown_uri(uri: str) -> str:
    """A tracking URI without its account and password; any other text that quotes one."""
    return re.sub(r"//[^/\s]*@", "//", uri)


@contextmanager
def asking(uri: str) -> Iterator[MlflowClient]:
    """A client of the tracking server, or database, at `uri`; whatever goes wrong inside is one sentence with its address.

    `TransientError` for a server that cannot be reached or answers with an error, `StageError` where it refuses, `UserError` where credentials are missing.
    """
    where = f"the model registry at {shown_uri(uri)}"
    if never_used(uri) and not os.access(
        Path(uri.removeprefix(_SQLITE)).parent, os.W_OK
    ):  # MLflow would try for minutes
        raise StageError(f"{where} cannot be written", "give this account the right to write there")
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
    except ExpungeError:
        raise
    except Exception as error:  # its stores raise whatever their libraries do: requests, sqlalchemy, alembic, boto
        raise _explained(where, error) from error


def code_of(error: MlflowException) -> str:
    """MLflow's name of an error, such as RESOURCE_DOES_NOT_EXIST."""
    return str(error.error_code)


def _explained(where: str, error: Exception) -> ExpungeError:  # noqa: PLR0911 - one return for each thing that goes wrong
    text, code = str(error), code_of(error) if isinstance(error, MlflowException) else ""
    if code == "UNAUTHENTICATED" or re.search(r"\b(error code )?401\b", text):
        return UserError(f"{where} asks for credentials", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if code == "PERMISSION_DENIED" or re.search(r"\b(error code )?403\b", text):
        return UserError(f"{where} does not allow this", "use an account that may edit the model and its experiment")
    if "timed out" in text.lower():
        return TransientError(
            f"{where} does not answer in time", "look at its log, or raise MLFLOW_HTTP_REQUEST_TIMEOUT"
        )
    if "error responses" in text:
        return TransientError(f"{where} answers with errors", "look at its log")
    if any(sign in text for sign in ("Max retries", "Connection", "Failed to resolve")):
        return TransientError(f"{where} cannot be reached", "start it, or mend MLFLOW_TRACKING_URI")
    line = shown_uri(text.strip() or type(error).__name__).partition("\n")[0][:200]
    if re.search(r"No space left|is full|quota exceeded", text, re.IGNORECASE):
        return StageError(
            f"{where} has no space left ({line})", "free some, there or where this machine keeps temporary files"
        )
    return StageError(f"{where} refuses ({line})", "look at its log, and at MLFLOW_TRACKING_URI")
