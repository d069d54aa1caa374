"""`flows.retrain` in the toy project, with a registration that appends a line to a file instead of calling MLflow."""

from __future__ import annotations

from pathlib import Path

from prefect import task

from flows import retrain
from flows.lifecycle import run_program
from research.reliability.toy import REGISTERED


@task(name="register")
def register(root: Path) -> str:
    """Counts."""
    with (root / REGISTERED).open("a") as file:
        file.write("registered\n")
    return "pass"


retrain.register, retrain.check_ready, retrain.ask_inputs = register, lambda *_: None, lambda _: None
flow = retrain.retrain
"""The flow itself, for a worker to find in this module."""

if __name__ == "__main__":
    run_program(flow)
