"""Flow `drain`: takes every pending request of the queue, retrains once, registers a candidate and notes the requests as drained.

The queue is the truth, an event only a hint: a lost or doubled one changes nothing. Nothing pending ends at once. A run that was killed
anywhere is taken up by the next: written requests stay, finished stages are not run again, an unchanged tree registers no second version.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.states import Cancelled, State

from components.cli.params import read_params
from components.common.errors import UserError
from components.common.lock import writing
from components.common.sections import PARAMS, read_section
from components.ledger.database import NoLedgerError
from components.ledger.drain import Written, read_pending, write_pending
from components.ledger.queue import mark_drained
from components.registry.lock import guard_lock
from components.registry.preflight import ask_inputs, check_ready
from components.requests.requests import Request
from components.worlds.load import load_world
from flows.common import HOOKS, HOUR, RETRIES, open_project_ledger, publish
from flows.dag import stages_to_run
from flows.lifecycle import FlowCancelledError, close_killed, flow_run_id, run_program
from flows.notify import notify
from flows.retrain import register, reproduce

ACTOR = "expunge-drain"


@task(name="read-queue", **RETRIES)
def read_waiting(root: Path) -> dict[str, Request]:
    """What is pending; nothing where nobody has submitted a request yet."""
    try:
        ledger, params = open_project_ledger(root)
    except NoLedgerError:
        return {}
    return read_pending(ledger, timedelta(hours=params.withdrawal_hours))


@task(name="drain-queue", **RETRIES)
def drain_pending(root: Path, run: str) -> tuple[Written, str]:
    """Writes, trains, registers and notes what is pending, alone in the working tree; the verdict is empty if nothing was written."""
    ledger, params = open_project_ledger(root)
    window, world = timedelta(hours=params.withdrawal_hours), read_section("world", str, root / PARAMS)
    with writing(root, run) as last:
        close_killed(root, last, run)
        check_ready(root, lambda: read_params(root / PARAMS), lambda: ask_inputs(root, pending=True))
        written = write_pending(ledger, window, root / "requests.yaml", check=load_world(world).check)
        if not written.ids:
            return written, ""
        guard_lock(root)
        for stage in stages_to_run(root):
            reproduce(stage, root)
        verdict = register(root)
        mark_drained(ledger, written.ids, ACTOR, run, window)
    return written, verdict


@flow(name="drain", flow_run_name="drain", timeout_seconds=12 * HOUR, **HOOKS)
def drain(root: str = ".") -> dict[str, Any] | State:
    """Drains the queue of the project in `root`; `UserError` at the end if a request clashes with what requests.yaml says."""
    folder = Path(root).resolve()
    if not read_waiting(folder):
        get_run_logger().info("nothing is pending")
        return {"drained": [], "verdict": "", "refused": {}}
    try:
        written, verdict = drain_pending(folder, flow_run_id())
    except FlowCancelledError as error:
        return Cancelled(message=error.fact)
    facts = {"drained": list(written.ids), "verdict": verdict, "refused": written.refused}
    rows = [[request_id, "drained"] for request_id in written.ids] + [[i, why] for i, why in written.refused.items()]
    note = f"{len(written.ids)} requests drained into one candidate, verdict {verdict}." if verdict else ""
    publish("expunge-drain", "Queue drained", rows, header=["request", "what became of it"], note=note)
    notify("queue.drained", facts | {"refused": sorted(written.refused)})
    if written.refused:
        first, why = next(iter(written.refused.items()))
        raise UserError(
            f"{len(written.refused)} of the queue's requests cannot be written, {first} first ({why})",
            "mend requests.yaml; they stay in the queue",
        )
    return facts


if __name__ == "__main__":
    run_program(drain)
