"""What the flows share: a project's ledger and registrar, when to try again, hooks, and the Markdown of an artifact."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.flows import Flow
from prefect.tasks import Task

from components.common.errors import TransientError
from components.common.sections import read_section
from components.ledger.database import NoLedgerError, ledger_url
from components.ledger.events import Ledger
from components.ledger.params import LedgerParams
from components.registry.promotion import Registrar, read_policy
from components.registry.registry import MODEL, Registry
from components.registry.tracking import is_server, shown_uri
from flows.notify import notify

MINUTE, HOUR = 60, 3600


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a task that failed may succeed if it is tried again: for locks, networks, databases and registries alone."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


def report_end(_flow: Flow[..., Any], run: FlowRun, state: State[Any]) -> None:
    """Notifies of a run that failed, crashed or was cancelled."""
    notify(
        f"flow.{state.type.value.lower()}", {"flow": _flow.name, "run": str(run.id)}
    )  # its message may hold a target


class Hooks(TypedDict):
    """Arguments of every flow."""

    on_failure: list[Any]
    on_crashed: list[Any]
    on_cancellation: list[Any]


class Retries(TypedDict):
    """Arguments of every task that has an effect."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Any
    cache_policy: Any
    tags: list[str]


HOOKS: Hooks = {"on_failure": [report_end], "on_crashed": [report_end], "on_cancellation": [report_end]}
RETRIES: Retries = {
    "retries": 3,
    "retry_delay_seconds": [5, 30, 120],
    "retry_condition_fn": is_transient,
    "cache_policy": NO_CACHE,
    "tags": ["expunge"],
}


def open_project_ledger(root: Path, *, must_exist: bool = True) -> tuple[Ledger, LedgerParams]:
    """The ledger of the project in `root`, and its section of params.yaml."""
    params = read_section("ledger", LedgerParams, root / "params.yaml")
    return Ledger(ledger_url(params.url, root), must_exist=must_exist), params


def registrar(root: Path, actor: str, *, empty: bool = False) -> Registrar:
    """Acts of an account on the releases of the project in `root`; `empty` imagines a ledger where there is none."""
    try:
        ledger, _ = open_project_ledger(root)
    except NoLedgerError:
        if not empty:
            raise
        ledger = Ledger("sqlite://")
    return Registrar(ledger, Registry(root), read_policy(root), actor)


def publish(key: str, title: str, rows: Sequence[Sequence[object]], *, header: Sequence[str], note: str = "") -> None:
    """Keeps a Markdown artifact of a run: a title, a table, and where to look further."""
    create_markdown_artifact(markdown(title, rows, header=header, note=note), key=key)


def markdown(title: str, rows: Sequence[Sequence[object]], *, header: Sequence[str], note: str = "") -> str:
    """Title, note and table as Markdown; with the registry's page where it has one."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (header, ["---"] * len(header), *rows)]
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    link = f"[Releases in MLflow]({shown_uri(server).rstrip('/')}/#/models/{MODEL})" if is_server(server) else ""
    return "\n\n".join(part for part in (f"# {title}", note, "\n".join(lines) if rows else "", link) if part)


def act_rows(facts: Mapping[str, object]) -> list[list[object]]:
    """What an act did, as rows."""
    return [[name, "—" if value in (None, "") else value] for name, value in facts.items()]


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
