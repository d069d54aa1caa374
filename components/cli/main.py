"""`expunge`: deletion requests, stages, retraining, verdicts and images from the command line.

Exit codes: 0 done, 1 the verdict is fail, 2 bad input, 3 a missing or altered artifact, 4 a stage that failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components.cli.attack import attack, probe
from components.cli.export import export
from components.cli.images import images
from components.cli.ledger import ledger, request_submit, request_withdraw
from components.cli.options import DryRun
from components.cli.params import read_params
from components.cli.purify import purify
from components.common.errors import ExpungeError, UserError
from components.common.paths import EVALUATE, GUIDANCE
from components.common.sections import read_section
from components.evaluate.summary import read_evaluation, summarise
from components.requests.edit import add_request, remove_request
from components.requests.requests import load_requests

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
request = typer.Typer(
    no_args_is_help=True,
    help="Deletion requests: requests.yaml by hand (add, list, show, remove), or the queue (submit, withdraw).",
)
app.add_typer(request, name="request")
app.add_typer(export, name="export")
app.add_typer(ledger, name="ledger")
request.command("submit")(request_submit)
request.command("withdraw")(request_withdraw)
app.add_typer(images)
app.command("purify")(purify)
app.command("attack")(attack)
app.command("probe")(probe)


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and an exit code, never a traceback."""
    try:
        app()
    except ExpungeError as error:
        typer.echo(f"expunge: {error}", err=True)
        raise SystemExit(error.exit_code) from error


def dvc(*arguments: str) -> int:
    """Runs dvc with this interpreter's programs first on PATH, since stages call `python`; returns its exit status."""
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run([programs / "dvc", *arguments], check=False, env=os.environ | {"PATH": path}).returncode


@request.command("add")
def request_add(
    target: Annotated[str, typer.Argument(help="The concept that must no longer be drawn.")],
    kind: Annotated[str, typer.Option(help="object, style, character, category, person or explicit.")] = "object",
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the target; repeatable.")] = None,
    anchor: Annotated[str, typer.Option(help="What is drawn instead.")] = "",
    neighbour: Annotated[list[str] | None, typer.Option(help="A concept that must survive; repeatable.")] = None,
    channel: Annotated[list[str] | None, typer.Option(help="filter or guidance; default both; repeatable.")] = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Adds a deletion request to requests.yaml and prints its id."""
    from components.worlds.load import load_world  # noqa: PLC0415 - slow to import

    record: dict[str, Any] = {
        "target": target,
        "kind": kind,
        "aliases": alias or [],
        "anchor": anchor,
        "neighbours": neighbour or [],
        "channels": channel or ["filter", "guidance"],
    }
    typer.echo(add_request(record, check=load_world(read_section("world", str)).check, dry_run=dry_run))


@request.command("list")
def request_list() -> None:
    """Lists all requests: id, target, kind, anchor."""
    for request_id, item in load_requests().items():
        typer.echo(f"{request_id}  {item.target}  ({item.kind})  -> {item.anchor or 'nothing'}")


@request.command("show")
def request_show(request_id: str) -> None:
    """Prints one request as JSON."""
    requests = load_requests()
    if request_id not in requests:
        raise UserError(f"request {request_id!r} is not in requests.yaml", f"use one of: {', '.join(requests)}")
    typer.echo(requests[request_id].model_dump_json(indent=2))


@request.command("remove")
def request_remove(request_id: str, dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Takes a request out of requests.yaml; the next `dvc repro` restores the model of before it."""
    item = remove_request(request_id, dry_run=dry_run)
    if not dry_run:
        import shutil  # noqa: PLC0415 - used here alone

        shutil.rmtree(GUIDANCE / request_id, ignore_errors=True)
    typer.echo(f"{'would remove' if dry_run else 'removed'} {request_id} ({item.target})")


@app.command("run")
def run(stage: str, dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Runs one stage of dvc.yaml and what it depends on, if anything has changed."""
    read_params()
    load_requests()
    raise SystemExit(4 if dvc("repro", *(["--dry"] if dry_run else []), stage) else 0)


@app.command("retrain")
def retrain(dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Runs every stage under Prefect and registers a candidate in MLflow, whatever the verdict."""
    read_params()
    load_requests()
    if dry_run:
        raise SystemExit(4 if dvc("status") else 0)
    raise SystemExit(subprocess.run([sys.executable, "-m", "flows.retrain"], check=False).returncode and 4)


@app.command("verdict")
def verdict(
    gates: Annotated[bool, typer.Option("--gates", help="Print every gate.")] = False,  # noqa: FBT002
) -> None:
    """Says what the last evaluation found; exits with 1 if the verdict is fail."""
    metrics, found = read_evaluation(EVALUATE)
    for gate in found["gates"] if gates else []:
        mark = "pass" if gate["passed"] else "FAIL"
        about = metrics["targets"].get(gate["request"], {}).get("target", "all requests")
        typer.echo(f"{mark}  {about:<14} {gate['variant']:<9} {gate['metric']:<20} {gate['reason']} (n={gate['n']})")
    for line in summarise(metrics, found, EVALUATE):
        typer.echo(line)
    raise typer.Exit(0 if found["passed"] else 1)


@app.command("params")
def params_command() -> None:
    """Prints params.yaml as it was understood, after checking it."""
    typer.echo(json.dumps(read_params(), indent=2))
