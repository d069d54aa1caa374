"""Flows `promote` and `rollback`: components/registry/promotion.py, with tries, a time limit, an artifact and a notification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task

from components.registry.promotion import Act
from flows.common import HOOKS, MINUTE, RETRIES, act_rows, publish, registrar
from flows.notify import notify


@task(name="promote-release", **RETRIES)
def promote_release(root: Path, version: int, digest: str, by: str) -> Act:
    """Checks and promotes."""
    return registrar(root, by).promote(version, digest)


@task(name="roll-back-release", **RETRIES)
def roll_back_release(root: Path, version: int | None, by: str) -> Act:
    """Checks and rolls back."""
    return registrar(root, by).rollback(version)


@task(name="mend-aliases", **RETRIES)
def mend_aliases(root: Path, by: str) -> None:
    """Makes the aliases follow an act whose event was written before the registry went away."""
    registrar(root, by).repair()


@flow(name="promote", flow_run_name="promote-{version}", timeout_seconds=30 * MINUTE, **HOOKS)
def promote(version: int, digest: str, by: str, root: str = ".") -> dict[str, Any]:
    """Makes an approved version champion; `digest` is that of the release that was approved."""
    folder = Path(root).resolve()
    return _report("promoted", promote_release(folder, version, digest, by), by, folder)


@flow(name="rollback", flow_run_name="rollback", timeout_seconds=30 * MINUTE, **HOOKS)
def rollback(by: str, version: int | None = None, root: str = ".") -> dict[str, Any]:
    """Makes the champion before, or an earlier version, the champion again."""
    folder = Path(root).resolve()
    return _report("rolled_back", roll_back_release(folder, version, by), by, folder)


def _report(kind: str, act: Act, by: str, root: Path) -> dict[str, Any]:
    if act.lagging:
        mend_aliases(root, by)
    facts = {name: value for name, value in act._asdict().items() if name != "lagging"}
    get_run_logger().info("%s version %d", act.did, act.version)
    title = f"Version {act.version} {kind.replace('_', ' ')}"
    publish(f"expunge-{kind.replace('_', '-')}", title, act_rows(facts | {"by": by}), header=["what", "value"])
    notify(f"release.{kind}", facts | {"by": by})
    return facts


if __name__ == "__main__":
    raise SystemExit("expunge: this flow is for a server; on a machine of your own use expunge release promote VERSION")
