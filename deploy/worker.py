"""The worker: makes the deployments, runs their flows in this machine's processes, and tells Prefect about runs that died.

    EXPUNGE_ROOT=PROJECT python -m deploy.worker POOL

A run whose process was killed together with its worker would count as running for ever and hold its place: `sweep` finds it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

PREFECT = str(Path(sys.executable).parent / "prefect")
SWEEP_SECONDS = 30.0
QUERY_SECONDS = 2.0
"""How often it asks for runs that are due."""
READY = "EXPUNGE_READY"
"""Variable that names a file to make once the worker runs."""
Ending = Literal["CRASHED", "CANCELLED"]


class Run(NamedTuple):
    """One flow run as Prefect knows it."""

    id: str
    state: str
    """PENDING, RUNNING or CANCELLING: those that a process should stand behind."""


def stale(runs: Iterable[Run], alive: Collection[str], before: Collection[str]) -> dict[str, Ending]:
    """What becomes of runs without a process, `alive` being those that have one: they crashed, or their cancellation is done.

    Only runs that had none at the look `before` either are touched, for a process takes a moment to start.
    """
    gone = [run for run in runs if run.id not in alive and run.id in before]
    return {run.id: "CANCELLED" if run.state == "CANCELLING" else "CRASHED" for run in gone}


def processes() -> set[str]:
    """Ids of the flow runs that a process of this machine works on."""
    found = set()
    for process in psutil.process_iter():
        try:
            run = process.environ().get("PREFECT__FLOW_RUN_ID")
        except (psutil.Error, OSError):
            continue
        if run and process.status() != psutil.STATUS_ZOMBIE:
            found.add(run)
    return found


def sweep(pool: str, before: Collection[str] | None) -> set[str]:
    """One look at the pool's runs; returns those without a process. `before` None: nothing can be starting, all of them died."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - slow to import
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter  # noqa: PLC0415
    from prefect.states import Cancelled, Crashed  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(
                {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
            ),
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
        )
        runs = [Run(str(run.id), run.state_type.value if run.state_type else "") for run in found]
        alive = processes()
        lost = {run.id for run in runs if run.id not in alive}
        for run_id, ending in stale(runs, alive, lost if before is None else before).items():
            state = Cancelled if ending == "CANCELLED" else Crashed
            client.set_flow_run_state(run_id, state(message="its process is gone"), force=True)
            sys.stderr.write(f"flow run {run_id}: its process is gone, {ending}\n")
    return lost


def deploy(pool: str, root: Path) -> None:
    """Makes the work pool and every deployment of flows/deployments.py, or updates them."""
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - slow to import
    from prefect.client.schemas.actions import WorkPoolCreate  # noqa: PLC0415
    from prefect.exceptions import ObjectAlreadyExists  # noqa: PLC0415

    from flows.deployments import deployments  # noqa: PLC0415

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    for deployment in deployments(root, work_pool=pool, job_variables={"working_dir": str(root)}):
        deployment.apply()


def main(pool: str) -> int:
    """Serves until it is ended, and the worker below it with it."""
    root = Path(os.environ.get("EXPUNGE_ROOT", ".")).resolve()
    subprocess.run([sys.executable, "-m", "deploy.worker", pool, "deploy"], cwd=root, check=True)
    lost = sweep(pool, None)
    often = os.environ | {"PREFECT_WORKER_QUERY_SECONDS": f"{QUERY_SECONDS:g}"}
    worker = subprocess.Popen([PREFECT, "worker", "start", "--pool", pool, "--type", "process"], cwd=root, env=often)
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda number, _frame: worker.send_signal(number))
    if READY in os.environ:
        Path(os.environ[READY]).touch()
    while True:
        try:
            return worker.wait(SWEEP_SECONDS)
        except subprocess.TimeoutExpired:
            lost = _swept(pool, lost)


def _swept(pool: str, lost: set[str]) -> set[str]:
    try:
        return sweep(pool, lost)
    except Exception as error:  # noqa: BLE001 - the server is down: look again later
        sys.stderr.write(f"could not look for dead runs: {type(error).__name__}\n")
        time.sleep(1)
        return set()


if __name__ == "__main__":
    if sys.argv[2:] == ["deploy"]:  # in a process of its own, whose memory ends with it
        deploy(sys.argv[1], Path.cwd())
    else:
        raise SystemExit(main(sys.argv[1]))
