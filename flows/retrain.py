"""Flow `retrain`: reproduces every stage of dvc.yaml and registers what came out as a candidate.

It runs the stages one by one as `dvc repro --single-item`, so that its outputs are those of a plain `dvc repro`, byte by
byte, and each stage has a task run of its own name with its log.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from components.cli.ledger import account
from components.common.errors import StageError
from components.common.lock import writing
from components.common.process import stream
from components.registry.register import register_tree
from flows.dag import stage_order


@task(task_run_name="{stage}", cache_policy=NO_CACHE)
def reproduce(stage: str, root: Path) -> None:
    """Runs one stage if anything that it depends on has changed; `StageError` if it fails."""
    logger = get_run_logger()
    status = stream(["dvc", "repro", "--single-item", stage], root, logger.info)
    if status != 0:
        raise StageError(f"stage {stage} ended with exit status {status}", "its log above says why")


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(root: Path) -> str:
    """Registers a candidate, whatever the verdict, with the verdict as a tag."""
    version = register_tree(root, account(None))
    get_run_logger().info("version %d of the model has the verdict %s", version.version, version.verdict)
    return version.verdict


@flow(name="retrain", flow_run_name="retrain")
def retrain(root: str = ".") -> str:
    """Reproduces the project in `root`, registers a candidate and returns its verdict, `pass` or `fail`."""
    folder = Path(root).resolve()
    with writing(folder):
        for stage in stage_order(folder):
            reproduce(stage, folder)
        return register(folder)


if __name__ == "__main__":
    retrain()
