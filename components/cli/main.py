"""`expunge`: deletion requests, stages, retraining, verdicts and images from the command line.

Exit codes: 0 done, 1 the verdict is fail, 2 bad input, 3 a missing or altered artifact, 4 a stage that failed,
5 an error that nobody foresaw, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from components.cli.attack import attack, attacks_lines, probe
from components.cli.export import export
from components.cli.images import images
from components.cli.init import base, init
from components.cli.judge import judge
from components.cli.ledger import ledger, request_queue, request_submit, request_withdraw
from components.cli.options import DryRun
from components.cli.params import read_params
from components.cli.preview import (
    Alias,
    Anchor,
    KindName,
    Neighbour,
    NounName,
    OwnPrompts,
    References,
    request_preview,
    written,
)
from components.cli.pull import pull, reproduce
from components.cli.purify import purify
from components.cli.release import release
from components.common.errors import UserError
from components.common.lock import check_free, writing
from components.common.paths import EVALUATE, GUIDANCE
from components.common.process import stream
from components.common.sections import read_section
from components.common.settings import apply_settings
from components.common.toplevel import DEBUG, one_sentence
from components.diffusion.params import BaseParams
from components.evaluate.summary import check_evaluated, read_evaluation, summarise
from components.requests.edit import add_request, remove_request
from components.requests.requests import load_requests

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
request = typer.Typer(
    no_args_is_help=True,
    help="Deletion requests: requests.yaml by hand (add, list, show, remove), or the queue (submit, withdraw, queue).",
)
app.add_typer(request, name="request")
app.add_typer(export, name="export")
app.add_typer(ledger, name="ledger")
app.add_typer(release, name="release")
app.add_typer(base, name="base")
app.add_typer(judge, name="judge")
app.command("init")(init)
request.command("submit")(request_submit)
request.command("withdraw")(request_withdraw)
request.command("queue")(request_queue)
request.command("preview")(request_preview)
app.add_typer(images)
app.command("purify")(purify)
app.command("pull")(pull)
app.command("reproduce")(reproduce)
app.command("attack")(attack)
app.command("probe")(probe)


def main() -> None:
    """Runs the command line; whatever goes wrong is one sentence and an exit code, never a traceback."""
    apply_settings()
    with one_sentence("expunge"):
        app()


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: FBT002
) -> None:
    """Options of every command."""
    if debug:
        os.environ[DEBUG] = "1"


def project_root() -> Path:
    """The working directory, which must be a project's; `UserError` otherwise."""
    if not Path("dvc.yaml").is_file():
        raise UserError("dvc.yaml does not exist", "run from the root of the project")
    return Path()


def refresh_code() -> None:
    """In a project outside the product's repository: writes which code its stages depend on, as it is now."""
    if Path("code.json").is_file() and stream([sys.executable, "-m", "flows.deps"], Path()):
        raise UserError("the code that the stages depend on cannot be written", "run: python -m flows.deps")


@request.command("add")
def request_add(
    target: Annotated[str, typer.Argument(help="The concept that must no longer be drawn.")],
    kind: KindName = "object",
    alias: Alias = None,
    anchor: Anchor = "",
    neighbour: Neighbour = None,
    noun: NounName = None,
    prompts: OwnPrompts = None,
    reference_image: References = None,
    channel: Annotated[list[str] | None, typer.Option(help="filter or guidance; default both; repeatable.")] = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Adds a deletion request to requests.yaml and prints its id."""
    from components.worlds.load import load_world  # noqa: PLC0415 - slow to import

    record = written(target, kind, alias, anchor, neighbour, noun, prompts, reference_image)
    record["channels"] = channel or ["filter", "guidance"]
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
    refresh_code()
    root = project_root()
    from components.registry.lock import check_stage, guard_lock  # noqa: PLC0415 - slow to import
    from components.registry.preflight import ask_inputs  # noqa: PLC0415

    with nullcontext() if dry_run else writing(root):
        if not dry_run:
            guard_lock(root)
        check_stage(root, stage)
        if stage == "attack":  # which comes after all training
            ask_inputs(root)
        raise SystemExit(4 if stream(["dvc", "repro", *(["--dry"] if dry_run else []), "--", stage], root) else 0)


@app.command("check")
def check() -> None:
    """Checks what a retraining needs: free lock, disk, git, parameters, requests, base, judges, model registry."""
    check_free(root := project_root())
    from components.registry.preflight import ask_inputs, check_ready  # noqa: PLC0415 - slow to import

    check_ready(root, read_params, lambda: ask_inputs(root))
    typer.echo("ready to retrain")


@app.command("retrain")
def retrain(dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Runs every stage under Prefect and registers a candidate in MLflow, whatever the verdict."""
    refresh_code()
    if dry_run:
        read_params()
        load_requests()
        raise SystemExit(4 if stream(["dvc", "status"], Path()) else 0)
    check_free(root := project_root())
    from components.registry.preflight import ask_inputs, check_ready  # noqa: PLC0415 - slow to import

    check_ready(root, read_params)
    if stream(["dvc", "status", "--quiet"], root):  # something is to run
        ask_inputs(root)
    os.execv(sys.executable, [sys.executable, "-m", "flows.retrain"])  # noqa: S606 - signals reach the flow itself


@app.command("verdict")
def verdict(
    gates: Annotated[bool, typer.Option("--gates", help="Print every gate.")] = False,  # noqa: FBT002
) -> None:
    """Says what the last evaluation and the last attacks found; exits with 1 if either fails."""
    from components.registry.working import check_evidence  # noqa: PLC0415 - slow to import

    metrics, found = read_evaluation(EVALUATE)
    check_evaluated(found, read_section("base", BaseParams).path)
    check_evidence(Path(), found["judged"])
    for gate in found["gates"] if gates else []:
        mark = "pass" if gate["passed"] else "FAIL"
        about = metrics["targets"].get(gate["request"], {}).get("target", "all requests")
        typer.echo(f"{mark}  {about:<14} {gate['variant']:<9} {gate['metric']:<20} {gate['reason']} (n={gate['n']})")
    for line in summarise(metrics, found, EVALUATE):
        typer.echo(line)
    lines, withstood = attacks_lines(found["judged"])
    typer.echo(lines)
    raise typer.Exit(0 if found["passed"] and withstood else 1)


@app.command("params")
def params_command() -> None:
    """Prints params.yaml as it was understood, after checking it."""
    typer.echo(json.dumps(read_params(), indent=2))
