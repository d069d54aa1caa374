"""Commands about single prompts and images: draw one, explain a decision, purify a real image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from components.cli.options import DryRun, writable_png
from components.common.errors import UserError
from components.common.paths import FILTER
from components.common.sections import read_section
from components.common.variants import DEFAULT, VARIANTS, Variant
from components.diffusion.params import BaseParams
from components.requests.requests import load_requests

images = typer.Typer()

AnyVariant = Annotated[str, typer.Option("--variant", help=f"One of {', '.join(VARIANTS)}.")]


@images.command("generate")
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    variant: AnyVariant = DEFAULT,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the image.")] = 0,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("image.png"),
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Draws one image, writes it as a PNG, and says which requests flag the prompt."""
    if variant not in VARIANTS:
        raise UserError(f"--variant {variant!r} is unknown", f"use one of: {', '.join(VARIANTS)}")
    writable_png(output)
    base, requests = read_section("base", BaseParams), load_requests()
    from components.diffusion.folder import check_folder  # noqa: PLC0415 - slow to import

    check_folder(base.path)
    if dry_run:
        typer.echo(f"would draw {prompt!r} with {variant}, seed {seed}, into {output}")
        return
    from components.eraser import Eraser  # noqa: PLC0415

    wanted = cast("Variant", variant)
    drawing = Eraser.open(variant=wanted).draw(prompt, seed=seed, variant=wanted)
    drawing.image.save(output)
    flagged = ", ".join(requests[i].target for i in drawing.flagged) or "no request"
    typer.echo(f"{output}: {variant}" + (f", flagged by {flagged}" if variant not in ("base", "guidance") else ""))


@images.command("explain")
def explain(
    prompt: Annotated[str, typer.Argument(help="What would be drawn.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Says of every request whether its filter flags a prompt, and why."""
    base, requests = read_section("base", BaseParams), load_requests()
    from components.diffusion.text import load_towers  # noqa: PLC0415 - slow to import
    from components.filter.artifact import open_filters, read_names  # noqa: PLC0415
    from components.filter.explain import explain_prompt  # noqa: PLC0415

    found = open_filters(FILTER, base.path, base.hookpoints)
    towers = load_towers(base.path, base.hookpoints)
    reasons = explain_prompt(prompt, towers, found.filters, read_names(FILTER), found.targets)
    targets = {request_id: item.target for request_id, item in requests.items()}
    if as_json:
        listed = [r.record() | {"target": targets.get(i), "flagged": r.flagged} for i, r in reasons.items()]
        typer.echo(json.dumps({"prompt": prompt, "requests": listed}, indent=2, ensure_ascii=False))
        return
    for request_id, reason in reasons.items():
        mark = "FLAGGED" if reason.flagged else "passes"
        against = f"score {reason.score:.2f} against a threshold of {reason.threshold:.2f}"
        typer.echo(f"{request_id}  {targets.get(request_id, 'withdrawn'):<12} {mark:<8} {against}")
        for line in reason.lines() if reason.flagged else ():
            typer.echo(f"    {line}")
