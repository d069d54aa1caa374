"""deploy/prefect.yaml, for `prefect deploy`, written from the table in flows/deployments.py: `python -m deploy.prefect_yaml`.

    EXPUNGE_ROOT=/project prefect --no-prompt deploy --prefect-file deploy/prefect.yaml --all

The worker of `make up` and of compose.yaml needs no such file: it reads the table itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger

from components.common.files import write_text
from deploy.place import POOL
from flows.deployments import DEPLOYMENTS, deployments

FILE = Path(__file__).with_name("prefect.yaml")
HEAD = "# Written by `python -m deploy.prefect_yaml` from flows/deployments.py; a test compares them.\n"


def content(root: Path) -> dict[str, Any]:
    """The file's content for the project in `root`."""
    made = deployments(root, work_pool=POOL)
    return {
        "name": "expunge",
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $EXPUNGE_ROOT }}"}}],
        "deployments": [
            _entry(one, listed.flow, cron=listed.cron) for one, listed in zip(made, DEPLOYMENTS, strict=True)
        ],
    }


def _entry(made: RunnerDeployment, flow: str, *, cron: str | None) -> dict[str, Any]:
    module, _, function = flow.rpartition(".")
    limit = made.concurrency_options.collision_strategy if made.concurrency_options else None
    return {
        "name": made.name,
        "version": made.version,
        "description": made.description,
        "tags": made.tags,
        "entrypoint": f"{module.replace('.', '/')}.py:{function}",
        "parameters": {"root": "."},
        "concurrency_limit": {"limit": made.concurrency_limit, "collision_strategy": limit and limit.value},
        "schedules": [{"cron": cron, "timezone": "UTC"}] if cron else [],
        "triggers": [_trigger(one) for one in made.triggers if isinstance(one, DeploymentEventTrigger)],
        "work_pool": {"name": made.work_pool_name},
    }


def _trigger(made: DeploymentEventTrigger) -> dict[str, Any]:
    return {
        "type": "event",
        "expect": sorted(made.expect),
        "threshold": made.threshold,
        "within": made.within.total_seconds(),
        "schedule_after": made.schedule_after.total_seconds(),
    }


def text(root: Path) -> str:
    """The file."""
    return HEAD + yaml.safe_dump(content(root), sort_keys=False, width=120)


if __name__ == "__main__":
    write_text(FILE, text(FILE.parents[1]))
