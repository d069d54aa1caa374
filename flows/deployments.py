"""All deployments of the flows, from one table: `python -m flows.deployments` serves them from this machine.

A run of `drain` starts for every burst of accepted requests, once the withdrawal window of the last of them is over, and four times an
hour in case an event was lost. No two runs of one deployment overlap: a second waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events import DeploymentEventTrigger

from components.common.sections import read_section
from components.ledger.announce import ACCEPTED
from components.ledger.params import LedgerParams

NAME = "expunge"
BURST = timedelta(seconds=10)
"""Events of so short a time start one run together, which waits for the last of them."""


class Deployed(NamedTuple):
    """One flow and when it runs."""

    flow: str
    """module.function."""
    description: str
    cron: str | None = None
    """In UTC; None for a flow that somebody starts."""
    event: str | None = None
    """Event that starts a run once the withdrawal window is over."""


DEPLOYMENTS = (
    Deployed("flows.drain.drain", "Trains every pending request of the queue.", "*/15 * * * *", ACCEPTED),
    Deployed("flows.recheck.recheck", "Evaluates the champion again on fresh seeds.", "0 3 * * 1"),
    Deployed("flows.retrain.retrain", "Reproduces every stage and registers a candidate."),
    Deployed("flows.promote.promote", "Makes an approved version the champion."),
    Deployed("flows.promote.rollback", "Makes an earlier champion the champion again."),
)


def deployments(
    root: Path = Path(),
    *,
    work_pool: str | None = None,
    job_variables: Mapping[str, Any] | None = None,
    burst: timedelta = BURST,
) -> list[RunnerDeployment]:
    """A deployment of every flow on the project in `root`, each named flow/expunge with the package's version."""
    window = timedelta(hours=read_section("ledger", LedgerParams, root / "params.yaml").withdrawal_hours)
    return [
        getattr(import_module(one.flow.rpartition(".")[0]), one.flow.rpartition(".")[2]).to_deployment(
            NAME,
            cron=one.cron,
            triggers=[] if one.event is None else [_trigger(one.event, window, burst)],
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE),
            parameters={"root": str(root.resolve())},
            description=one.description,
            tags=["expunge"],
            version=version("expunge"),
            work_pool_name=work_pool,
            job_variables=dict(job_variables or {}),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for one in DEPLOYMENTS
    ]


def _trigger(event: str, window: timedelta, burst: timedelta) -> DeploymentEventTrigger:
    return DeploymentEventTrigger(expect={event}, threshold=1, within=burst, schedule_after=window + burst)


if __name__ == "__main__":
    serve(*deployments())  # type: ignore[arg-type]
