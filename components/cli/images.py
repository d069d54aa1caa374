"""Commands about single prompts and images: draw one, explain a decision, purify a real image."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Annotated, cast

import typer

from components.cli.options import DryRun, PromptText, writable_png
from components.common.errors import UserError
from components.common.files import write_bytes
from components.common.paths import FILTER
from components.common.sections import PARAMS, read_section
from components.common.variants import DEFAULT, VARIANTS, Variant
from components.diffusion.params import BaseParams
from components.requests.requests import load_requests

images = typer.Typer()

AnyRelease = Annotated[
    str | None,
    typer.Option(
        "--release",
        metavar="VERSION",
        help="A folder, @champion, a number or a models:/ URI; default: the working tree.",
    ),
]
AnyVariant = Annotated[str, typer.Option("--variant", help=f"One of {', '.join(VARIANTS)}.")]


@images.command("generate")
def generate(
    prompt: PromptText,
    variant: AnyVariant = DEFAULT,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the image.")] = 0,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("image.png"),
    release: AnyRelease = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Draws one image, writes it as a PNG, and says which requests flag the prompt."""
    if variant not in VARIANTS:
        raise UserError(f"--variant {variant!r} is unknown", f"use one of: {', '.join(VARIANTS)}")
    writable_png(output)
    from components.diffusion.folder import check_folder  # noqa: PLC0415 - slow to import
    from components.registry.served import find_base, find_release, open_release  # noqa: PLC0415
    from components.registry.working import check_base, check_trained  # noqa: PLC0415

    found, wanted = None if release is None else find_release(release), cast("Variant", variant)
    requests = load_requests() if found is None else found.requests
    if found is None:
        check_base(Path())
        check_folder(read_section("base", BaseParams).path)
        check_trained(Path(), variant=wanted)
    else:
        find_base(found)
    if dry_run:
        typer.echo(f"would draw {prompt!r} with {variant}, seed {seed}, into {output}")
        return
    from components.eraser import Eraser  # noqa: PLC0415

    eraser = Eraser.open(variant=wanted) if found is None else open_release(Eraser, found.folder, variant=wanted)
    drawing = eraser.draw(prompt, seed=seed, variant=wanted)
    out = BytesIO()
    drawing.image.save(out, "png")
    write_bytes(output, out.getvalue())
    flagged = ", ".join(requests[i].target for i in drawing.flagged) or "no request"
    typer.echo(f"{output}: {variant}" + (f", flagged by {flagged}" if variant not in ("base", "guidance") else ""))


@images.command("explain")
def explain(
    prompt: PromptText,
    release: AnyRelease = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Says of every request whether its filter flags a prompt, and why."""
    from components.registry.served import find_base, find_release  # noqa: PLC0415 - slow to import
    from components.registry.working import check_trained  # noqa: PLC0415

    released = None if release is None else find_release(release)
    if released is None:
        check_trained(Path(), variant="filter")
    here = read_section("base", BaseParams, PARAMS if released is None else released.folder / PARAMS)
    base = here.path if released is None else find_base(released)
    requests, folder = (
        (load_requests(), FILTER) if released is None else (released.requests, released.folder / FILTER.name)
    )
    from components.diffusion.text import load_towers  # noqa: PLC0415 - slow to import
    from components.filter.artifact import open_filters, read_names  # noqa: PLC0415
    from components.filter.explain import explain_prompt  # noqa: PLC0415

    found = open_filters(folder, base, here.hookpoints)
    reasons = explain_prompt(
        prompt, load_towers(base, here.hookpoints), found.filters, read_names(folder), found.targets
    )
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
