"""Commands about single prompts and images: draw one, explain a decision, purify a real image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from components.cli.options import DryRun, Named, guided_requests
from components.common.errors import UserError
from components.common.paths import FILTER, GUIDANCE
from components.common.sections import load_params
from components.requests.requests import load_requests

images = typer.Typer()


@images.command("generate")
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    variant: Annotated[str, typer.Option("--variant", help="base, filter, guidance, both or gated.")] = "both",
    use_base: Annotated[bool, typer.Option("--base", help="Same as --variant base.")] = False,  # noqa: FBT002
    use_filter: Annotated[bool, typer.Option("--filter", help="Same as --variant filter.")] = False,  # noqa: FBT002
    use_guidance: Annotated[bool, typer.Option("--guidance", help="Same as --variant guidance.")] = False,  # noqa: FBT002
    use_both: Annotated[bool, typer.Option("--both", help="Same as --variant both.")] = False,  # noqa: FBT002
    use_gated: Annotated[bool, typer.Option("--gated", help="Same as --variant gated.")] = False,  # noqa: FBT002
    seed: Annotated[int, typer.Option(min=0, help="Seed of the image.")] = 0,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("image.png"),
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Draws one image and writes it as a PNG; says which requests the filter flagged.

    `both` sums the adapters of all requests; `gated` lets each act where its filter flags.
    """
    flags = {"base": use_base, "filter": use_filter, "guidance": use_guidance, "both": use_both, "gated": use_gated}
    chosen = [name for name, on in flags.items() if on]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} exclude each other", "give one of them")
    wanted = chosen[0] if chosen else variant
    if wanted not in flags:
        raise UserError(f"--variant {wanted!r} is unknown", f"use one of: {', '.join(flags)}")
    if output.suffix.lower() != ".png" or not output.parent.is_dir():
        raise UserError(f"--output {output} cannot be written", "name a .png file in a folder that exists")
    params, requests = load_params(), load_requests()
    from components.diffusion.load import check_folder  # noqa: PLC0415 - slow to import

    check_folder(params.base.path)
    if dry_run:
        typer.echo(f"would draw {prompt!r} with {wanted}, seed {seed}, into {output}")
        return
    from components.diffusion.load import accelerator_device, load_pipeline  # noqa: PLC0415
    from components.evaluate.images import Picture, Studio  # noqa: PLC0415
    from components.evaluate.page import png  # noqa: PLC0415
    from components.filter.artifact import read_filters  # noqa: PLC0415

    filters, hookpoint = read_filters(FILTER) if wanted in ("filter", "both", "gated") else ({}, params.base.hookpoint)
    guided = [i for i, r in requests.items() if "guidance" in r.channels and wanted in ("guidance", "both", "gated")]
    pipe = load_pipeline(params.base.path, accelerator_device())
    studio = Studio(pipe, filters, hookpoint, {i: GUIDANCE / i for i in guided}, params.evaluate)
    image = studio.draw([Picture(prompt, seed)], filters=list(filters), adapters=guided, gated=wanted == "gated")[0]
    output.write_bytes(png(image))
    flagged = studio.flagged([prompt], list(filters))[0]
    typer.echo(f"{output}: {wanted}" + (f", flagged by {', '.join(flagged) or 'no request'}" if filters else ""))


@images.command("explain")
def explain(
    prompt: Annotated[str, typer.Argument(help="What would be drawn.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Says of every request whether its filter flags a prompt, and why."""
    params, requests = load_params(), load_requests()
    from components.diffusion.load import load_text  # noqa: PLC0415 - slow to import
    from components.filter.artifact import read_filters, read_names  # noqa: PLC0415
    from components.filter.explain import explain_prompt  # noqa: PLC0415

    filters, hookpoint = read_filters(FILTER)
    reasons = explain_prompt(prompt, *load_text(params.base.path), filters, hookpoint, read_names(FILTER))
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


@images.command("purify")
def purify_image(
    image: Annotated[Path, typer.Argument(help="The image to purify, such as a PNG or a JPEG.")],
    named: Named = None,
    prompt: Annotated[str, typer.Option(help='What the image shows; default the targets, such as "a cat".')] = "",
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="How far up to noise: 0 not at all, 1 all the way.")
    ] = 0.8,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps of the whole way.")] = 20,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("purified.png"),
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Redraws a real image with the erased model; writes it, and a before-after beside the original."""
    beside = output.with_name(f"{output.stem}-before-after.png")
    if output.suffix.lower() != ".png" or not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output {output} cannot be written", "name a .png file in a folder that exists")
    if image.resolve() in (output.resolve(), beside.resolve()):
        raise UserError(f"--output {output} would overwrite {image}", "name another file")
    params, requests = load_params(), guided_requests(named)
    adapters = {request_id: GUIDANCE / request_id for request_id in requests}
    from components.diffusion.load import accelerator_device, check_folder, load_pipeline  # noqa: PLC0415 - slow to import
    from components.guidance.adapters import check_adapters, load_adapters  # noqa: PLC0415
    from components.purify.image import read_geometry, read_photo  # noqa: PLC0415
    from components.purify.purify import (  # noqa: PLC0415
        default_prompt,
        ladder,
        psnr,  # noqa: PLC0415
        purify,
    )

    check_folder(params.base.path)
    side, scheduler = read_geometry(params.base.path)
    photo = read_photo(image, side)
    ladder(scheduler, steps=steps, strength=strength)
    check_adapters(adapters, params.base.path / "unet")
    wanted = prompt or default_prompt(requests.values())
    if photo.size != (side, side):
        typer.echo(f"{image} is {photo.size[0]}×{photo.size[1]}; it is resized to {side}×{side}, the model's size")
    if dry_run:
        typer.echo(f"would purify {image} of {', '.join(adapters)} as {wanted!r} into {output} and {beside}")
        return
    import numpy as np  # noqa: PLC0415

    from components.evaluate.page import grid, png  # noqa: PLC0415

    pipe = load_pipeline(params.base.path, accelerator_device())
    load_adapters(pipe, adapters)
    scale = params.evaluate.guidance_scale
    done = purify(
        pipe, photo.pixels, list(adapters), prompt=wanted, guidance_scale=scale, steps=steps, strength=strength
    )
    try:
        output.write_bytes(png(done.image))
        beside.write_bytes(png(grid([np.stack([photo.pixels, done.reconstruction, done.image])])))
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror})", "name another file") from error
    typer.echo(
        f"{output}: without {', '.join(adapters)}, as {wanted!r}; the base alone returns the image at "
        f"{psnr(done.reconstruction, photo.pixels):.1f} dB, its autoencoder at {psnr(done.autoencoder, photo.pixels):.1f} dB"
    )
