"""Flow `retrain`: reproduces every stage of dvc.yaml and registers what came out as a candidate.

It runs the stages one by one as `dvc repro --single-item`, so that its outputs are those of a plain `dvc repro`, byte by
byte, and each stage has a task run of its own name with its log.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled, State

from components.cli.ledger import account
from components.cli.params import read_params
from components.common.errors import StageError
from components.common.lock import writing
from components.common.process import stream
from components.common.sections import PARAMS
from components.registry.lock import guard_lock
from components.registry.preflight import ask_inputs, check_ready
from components.registry.register import register_tree
from flows.dag import stages_to_run
from flows.lifecycle import (
    FlowCancelledError,
    cancellation,
    check_not_cancelled,
    close_killed,
    complete_late,
    flow_run_id,
    run_program,
)


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def reproduce(stage: str, root: Path) -> None:
    """Runs one stage if anything that it depends on has changed; `StageError` if it fails or the flow run is cancelled."""
    guard_lock(root)
    cancelled = cancellation()
    status = stream(["dvc", "repro", "--single-item", "--", stage], root, get_run_logger().info, ended=cancelled)
    if cancelled():
        raise FlowCancelledError
    if status != 0:
        raise StageError(f"stage {stage} ended with exit status {status}", "its log above says why")


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(root: Path) -> str:
    """Registers a candidate, whatever the verdict, with the verdict as a tag.

    `FlowCancelledError` if the run was cancelled before the version was made, `TransientError` if nobody can say.
    """
    check_not_cancelled()
    version = register_tree(root, account(None), last_look=check_not_cancelled)
    get_run_logger().info("version %d of the model has the verdict %s", version.version, version.verdict)
    if complete_late():
        get_run_logger().warning("the cancellation came after version %d was made", version.version)
    return version.verdict


@flow(name="retrain", flow_run_name="retrain")
def retrain(root: str = ".") -> str | State:
    """Reproduces the project in `root`, registers a candidate and returns its verdict, `pass` or `fail`.

    A run that is cancelled registers nothing and ends as Cancelled. One that is cancelled after its version was made has done
    everything, and ends as Completed.
    """
    folder = Path(root).resolve()
    with writing(folder, flow_run_id()) as last:
        close_killed(folder, last, flow_run_id())
        check_ready(folder, lambda: read_params(folder / PARAMS))
        if guard_lock(folder):
            get_run_logger().warning("dvc.lock was cut short by a kill; it is that of before the last stage again")
        try:
            if stages := stages_to_run(folder):
                ask_inputs(folder)
            for stage in stages:
                reproduce(stage, folder)
            return register(folder)
        except FlowCancelledError as error:
            return Cancelled(message=error.fact)


if __name__ == "__main__":
    run_program(retrain)
