"""What a retraining needs, checked before its first stage, so that a problem costs seconds and not hours."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.common.closure import ROOT
from components.common.errors import ArtifactError, StageError, TransientError, UserError
from components.common.preflight import check_disk, check_git, preflight
from components.common.sections import PARAMS, read_section
from components.diffusion.folder import check_folder
from components.diffusion.params import BaseParams
from components.registry.working import check_note
from components.requests.requests import REQUESTS, load_requests
from components.worlds.params import JudgeParams

_PORTS = {"http": 80, "https": 443}
_SECONDS = 5.0


def check_ready(root: Path, *more: Callable[[], object]) -> None:
    """`PreflightError` lists all that would make a retraining in `root` fail, by these checks and `more`; it changes nothing."""
    preflight(
        [
            *more,
            lambda: load_requests(root / REQUESTS),
            lambda: check_disk(root),
            lambda: check_git(root),
            lambda: check_note(root / read_section("base", BaseParams, root / PARAMS).path),
            lambda: check_folder(root / read_section("base", BaseParams, root / PARAMS).path),
            lambda: check_judges(root),
            lambda: check_registry(root),
            lambda: check_ledger(root),
        ]
    )


def ask_inputs(root: Path, *, pending: bool = False) -> None:
    """The refusal of `components.registry.inputs` in `root`, an error of its kind, which a process of its own finds: a flow would keep torch's memory for hours.

    It takes seconds, and matters where stages are to run. Where requests are `pending`, requests.yaml may hold none yet.
    """
    if not load_requests(root / REQUESTS) and pending:  # its faults need no process
        return
    code = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "components.registry.inputs"], cwd=root, env=os.environ | {"PYTHONPATH": code},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1].removeprefix("expunge: ")
        fact, _, remedy = said.rpartition("; ")
        kind = {UserError.exit_code: UserError, ArtifactError.exit_code: ArtifactError}.get(done.returncode, StageError)
        raise kind(fact or said, remedy or "run: python -m components.registry.inputs")


def check_judges(root: Path) -> None:
    """`UserError` for a judge's file that does not exist or cannot be read."""
    params = read_section("judge", JudgeParams, root / PARAMS).model_dump()
    for path in sorted({*_paths(params)}):
        files = [p for p in (root / path).rglob("*") if p.is_file()] if (root / path).is_dir() else [root / path]
        if not files or not all(os.access(file, os.R_OK) for file in files):
            raise UserError(f"the judge's {path} does not exist or cannot be read", "mend judge in params.yaml")


def _paths(value: Any) -> Iterator[Path]:  # noqa: ANN401 - a section's plain content
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict | list | tuple):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _paths(below)


def check_registry(root: Path) -> None:
    """`StageError` unless the model registry answers within seconds, can be written, and the experiment is alive."""
    if run := os.environ.get("MLFLOW_RUN_ID"):
        raise UserError(f"MLFLOW_RUN_ID is {run!r}, so that MLflow would write into that run", "unset MLFLOW_RUN_ID")
    from components.registry.registry import MODEL  # noqa: PLC0415 - slow to import
    from components.registry.tracking import asking, never_used, shown_uri, tracking_uri  # noqa: PLC0415

    uri = tracking_uri(root)
    where = f"the model registry at {shown_uri(uri)}"
    _check_reachable(uri, where)
    if never_used(uri):
        return
    with asking(uri) as client:
        found = client.get_experiment_by_name(MODEL)
        if found is not None and found.lifecycle_stage != "active":
            raise StageError(f"the experiment {MODEL!r} of {where} is deleted", f"restore it: mlflow experiments restore -x {found.experiment_id}")  # fmt: skip
        if found is not None:
            client.set_experiment_tag(found.experiment_id, "expunge.checked", "writable")
        client.search_registered_models(max_results=1)


def check_ledger(root: Path) -> None:
    """The ledger's own refusal of a URL or a database that it cannot use; `StageError` for a file that cannot be written."""
    from components.ledger.database import NoLedgerError, database_file, ledger_url  # noqa: PLC0415 - slow to import
    from components.ledger.events import Ledger  # noqa: PLC0415
    from components.ledger.params import LedgerParams  # noqa: PLC0415

    url = ledger_url(read_section("ledger", LedgerParams, root / PARAMS).url, root)
    with suppress(NoLedgerError):  # registering makes one
        Ledger(url, must_exist=True).close()
    if file := database_file(url):
        if not file.parent.is_dir():
            raise UserError(f"the folder of the ledger {file} does not exist", "make it, or mend ledger.url")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise StageError(f"the ledger {file} cannot be written", "give this account the right to write there")


def _check_reachable(uri: str, where: str) -> None:
    """Asks a server for a connection, and a SQLite file for permission, before MLflow waits minutes for them."""
    parts = urlsplit(uri)
    if parts.scheme in _PORTS:
        try:
            socket.create_connection((parts.hostname or "", parts.port or _PORTS[parts.scheme]), _SECONDS).close()
        except (OSError, ValueError) as error:
            raise TransientError(
                f"{where} cannot be reached ({error})", "start it, or mend MLFLOW_TRACKING_URI"
            ) from error
    elif parts.scheme == "sqlite":
        path = Path(uri.removeprefix("sqlite:///"))
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise StageError(f"{where} cannot be written", "give this account the right to write there")
