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

from components.cli.export import export
from components.cli.images import images
from components.cli.options import DryRun
from components.common.errors import ArtifactError, ExpungeError, UserError
from components.common.paths import EVALUATE, GUIDANCE
from components.common.sections import load_params
from components.requests.requests import Request, add_request, load_requests, remove_request

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
request = typer.Typer(no_args_is_help=True, help="Add, list, show and withdraw deletion requests.")
base = typer.Typer(no_args_is_help=True, help="The base model and the judge.")
app.add_typer(request, name="request")
app.add_typer(base, name="base")
filters = typer.Typer(no_args_is_help=True, help="The text filter.")
app.add_typer(filters, name="filter")
adapters = typer.Typer(no_args_is_help=True, help="The U-Net adapters.")
app.add_typer(adapters, name="guidance")
app.add_typer(export, name="export")
app.add_typer(images)


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
    from components.collect.concepts import check_world  # noqa: PLC0415 - slow to import

    record: dict[str, Any] = {
        "target": target,
        "kind": kind,
        "aliases": alias or [],
        "anchor": anchor,
        "neighbours": neighbour or [],
        "channels": channel or ["filter", "guidance"],
    }
    request_id = add_request(record, dry_run=True)
    check_world({request_id: Request.model_validate(record)})
    typer.echo(request_id if dry_run else add_request(record))


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
    """Withdraws a request; the next `dvc repro` restores the model of before it."""
    item = remove_request(request_id, dry_run=dry_run)
    if not dry_run:
        import shutil  # noqa: PLC0415 - used here alone

        shutil.rmtree(GUIDANCE / request_id, ignore_errors=True)
    typer.echo(f"{'would withdraw' if dry_run else 'withdrew'} {request_id} ({item.target})")


@base.command("report")
def base_report(
    seeds: Annotated[int, typer.Option(min=1, help="Images of every concept in every style.")] = 5,
    pairs: Annotated[int, typer.Option(min=32, help="Images of two concepts.")] = 400,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps an image.")] = 10,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Measures base model and judge, and writes reports/base/."""
    params = load_params()
    from components.diffusion.load import check_folder  # noqa: PLC0415 - slow to import

    check_folder(params.base.path)
    if dry_run:
        typer.echo(f"would measure {params.base.path} with {seeds} seeds, {pairs} pairs, {steps} steps")
        return
    from training.openmoji.report import TARGETS, report_base  # noqa: PLC0415

    record = report_base(params, seeds=seeds, pairs=pairs, steps=steps)
    for key, (text, least) in TARGETS.items():
        found = record[key]
        typer.echo(
            f"{found['value']:.4f}  [{found['low']:.4f}, {found['high']:.4f}]  n={found['n']:<5} {text} ({least})"
        )


@filters.command("report")
def filter_report(
    count: Annotated[
        int, typer.Option("--requests", min=1, help="Requests: those that ship, then more of the world.")
    ] = 40,
    benign: Annotated[int, typer.Option(min=1000, help="Ordinary prompts that measure false positives.")] = 20_000,
    images: Annotated[int, typer.Option(min=0, help="Prompts of each kind on which edits are compared; 0: none.")] = 48,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Compares detectors and edits, and writes reports/filter/."""
    params, requests = load_params(), load_requests()
    if dry_run:
        typer.echo(
            f"would measure {count} requests on {benign} benign prompts and edits on {images} prompts of each kind"
        )
        return
    from research.filter.report import report_filter  # noqa: PLC0415 - slow to import

    record = report_filter(params, requests, count=count, benign=benign, images=images)
    for name, found in record["detection"].items():
        tpr, fpr = found["tpr"], found["fpr benign"]
        typer.echo(
            f"{name:<12} AUROC {found['auroc']['value']:.4f}  TPR {tpr['value']:.4f} (n={tpr['n']})"
            f"  FPR {fpr['value']:.5f} (n={fpr['n']})"
        )


@adapters.command("report")
def guidance_report(
    seeds: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 5,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts about each target, and about its neighbours.")] = 12,
    retain: Annotated[
        int, typer.Option(min=8, help="Unrelated prompts; adapters together are measured on 400 of them at most.")
    ] = 100,
    together: Annotated[
        list[int] | None, typer.Option(min=1, help="How many adapters act at once; repeatable; default 1, 5 and 10.")
    ] = None,
    jointly: Annotated[  # noqa: FBT002 - a command-line flag
        bool,
        typer.Option(help="Train one adapter on the fewest that act together, with their steps and ranks added up."),
    ] = True,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Trains and measures adapters for four kinds of target, alone and together, and writes reports/guidance/."""
    params, requests = load_params(), load_requests()
    counts = together or [1, 5, 10]
    if dry_run:
        typer.echo(f"would train {max(4, *counts)} adapters and draw {prompts} × {seeds} images about each target")
        return
    from research.guidance.report import report_guidance  # noqa: PLC0415 - slow to import

    record = report_guidance(
        params, requests, seeds=seeds, prompts=prompts, retain=retain, together=counts, jointly=jointly
    )
    for name, found in (record["alone"] | record["together"]).items():
        drift = max((m["value"] for m in found["uncond_drift"].values()), default=float("nan"))
        typer.echo(
            f"{name:<30} UA {found['ua']['value']:.3f} (n={found['ua']['n']})  anchor {found['anchor_rate']['value']:.3f}"
            f"  neighbours {found['neighbours']['value']:.3f} (base {found['neighbours_base']['value']:.3f})  drift {drift:.4f}"
        )


@app.command("run")
def run(stage: str, dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Runs one stage of dvc.yaml and what it depends on, if anything has changed."""
    load_params()
    load_requests()
    raise SystemExit(4 if dvc("repro", *(["--dry"] if dry_run else []), stage) else 0)


@app.command("retrain")
def retrain(dry_run: DryRun = False) -> None:  # noqa: FBT002 - a command-line flag
    """Runs every stage under Prefect and registers a candidate in MLflow, whatever the verdict."""
    load_params()
    load_requests()
    if dry_run:
        raise SystemExit(4 if dvc("status") else 0)
    raise SystemExit(subprocess.run([sys.executable, "-m", "flows.retrain"], check=False).returncode and 4)


@app.command("verdict")
def verdict() -> None:
    """Prints the gates of the last evaluation; exits with 1 if the verdict is fail."""
    path = EVALUATE / "verdict.json"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "run the evaluation: expunge run evaluate")
    record = json.loads(path.read_text(encoding="utf-8"))
    for gate in record["gates"]:
        mark = "pass" if gate["passed"] else "FAIL"
        typer.echo(
            f"{mark}  {gate['request']:<12} {gate['variant']:<9} {gate['metric']:<20} {gate['reason']} (n={gate['n']})"
        )
    typer.echo(f"verdict: {'pass' if record['passed'] else 'fail'}")
    raise typer.Exit(0 if record["passed"] else 1)


@app.command("params")
def params_command() -> None:
    """Prints params.yaml as it was understood, after checking it."""
    typer.echo(load_params().model_dump_json(indent=2))
