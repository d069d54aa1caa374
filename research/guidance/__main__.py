"""The commands of the laboratory of adapters: `python -m research.guidance`."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from components.common.errors import ExpungeError
from components.requests.requests import load_requests
from research.guidance.baselines import choose, compare
from research.guidance.groups import MORE
from research.guidance.methods import CONTENDERS
from research.guidance.report import report_guidance
from research.record import RESULTS

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Counts = Annotated[
    list[int] | None, typer.Option(min=1, help="Adapters that act at once; repeatable; default 5, 10 and 20.")
]


@app.command()
def report(
    seeds: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 5,
    prompts: Annotated[int, typer.Option(min=2, help="Prompts about each target, and about its neighbours.")] = 12,
    retain: Annotated[int, typer.Option(min=8, help="Unrelated prompts for single adapters.")] = 1500,
    together: Counts = None,
) -> None:
    """Trains and measures adapters alone and together; writes research/results/guidance."""
    record = report_guidance(seeds=seeds, prompts=prompts, retain=retain, together=together or [5, 10, 20])
    for name, found in (record["alone"] | record["together"]).items():
        title = record["requests"].get(name, {"target": name})["target"]
        rates = "  ".join(f"{key} {found[key]['value']:.3f}" for key in ("ua", "neighbours", "ssim_unrelated"))
        typer.echo(f"{title:<14} {rates}  (n = {found['ua']['n']})")


@app.command()
def baselines(
    request: Annotated[str, typer.Option(help="A target of requests.yaml or of the report.")] = "weapon",
    budget: Annotated[list[float] | None, typer.Option(help="Seconds; repeatable; default 30, 60 and 90.")] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; default all: {', '.join(CONTENDERS)}.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of the target, and as many unrelated ones.")] = 40,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    quick: Annotated[bool, typer.Option(help="One second and two images, to see that all runs; no results.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Compares published erasers with ours at equal training time, on the CPU."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # the caches of trajectories are on the CPU
    torch.set_num_threads(threads)
    chosen = choose(load_requests() | MORE, request)
    names, budgets = contender or list(CONTENDERS), [1.0] if quick else sorted(budget or [30.0, 60.0, 90.0])
    with tempfile.TemporaryDirectory() as nowhere:
        compare(*chosen, names, budgets, images=2 if quick else images, out=Path(nowhere) if quick else RESULTS)


if __name__ == "__main__":
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        app()
    except ExpungeError as error:
        typer.echo(f"research: {error}", err=True)
        sys.exit(error.exit_code)
