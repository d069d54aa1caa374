"""`expunge purify`: a real image without what the requests erase."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.cli.options import DryRun, Named, guided_requests, writable_png
from components.common.errors import UserError
from components.common.files import write_bytes
from components.common.inputs import check_prompt
from components.common.paths import GUIDANCE
from components.common.sections import read_section
from components.diffusion.params import BaseParams


def purify(
    image: Annotated[Path, typer.Argument(help="The image to purify, such as a PNG or a JPEG.")],
    named: Named = None,
    prompt: Annotated[
        str, typer.Option(help='What the image shows; default the targets, such as "a cat".', callback=check_prompt)
    ] = "",
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="How far up to noise: 0 not at all, 1 all the way.")
    ] = 0.8,
    steps: Annotated[int, typer.Option(min=1, help="DDIM steps of the whole way.")] = 20,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("purified.png"),
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Redraws a real image with the erased model; writes it, and a before-after beside the original."""
    writable_png(output)
    beside = output.with_name(f"{output.stem}-before-after.png")
    writable_png(beside)
    if image.resolve() in (output.resolve(), beside.resolve()):
        raise UserError(f"--output {output} would overwrite {image}", "name another file")
    base, requests = read_section("base", BaseParams), guided_requests(named)
    adapters = {request_id: GUIDANCE / request_id for request_id in requests}
    from components.diffusion.folder import check_folder  # noqa: PLC0415 - slow to import
    from components.diffusion.geometry import read_geometry  # noqa: PLC0415
    from components.guidance.adapters import check_adapters  # noqa: PLC0415
    from components.purify.image import read_photo  # noqa: PLC0415
    from components.purify.purify import ddim_steps, default_prompt, psnr  # noqa: PLC0415
    from components.registry.working import check_base, check_trained  # noqa: PLC0415

    check_base(Path())
    check_folder(base.path)
    side, scheduler = read_geometry(base.path)
    photo = read_photo(image, side)
    ddim_steps(scheduler, steps=steps, strength=strength)
    check_adapters(adapters, base.path)
    check_trained(Path(), adapters)
    wanted = prompt or default_prompt(requests.values())
    if photo.size != (side, side):
        typer.echo(f"{image} is {photo.size[0]}×{photo.size[1]}; it is resized to {side}×{side}, the model's size")
    if dry_run:
        typer.echo(f"would purify {image} of {', '.join(adapters)} as {wanted!r} into {output} and {beside}")
        return
    import numpy as np  # noqa: PLC0415

    from components.eraser import Eraser  # noqa: PLC0415
    from components.evaluate.page import grid, png  # noqa: PLC0415
    from components.purify.purify import purify as purify_image  # noqa: PLC0415

    eraser = Eraser.open(variant="guidance", requests=list(requests))
    erased = eraser.read([wanted], variant="guidance")
    done = purify_image(eraser, photo.pixels, erased, steps=steps, strength=strength)
    write_bytes(output, png(done.image))
    write_bytes(beside, png(grid([np.stack([photo.pixels, done.reconstruction, done.image])])))
    typer.echo(
        f"{output}: without {', '.join(r.target for r in requests.values())}, as {wanted!r}; the base alone returns the image at "
        f"{psnr(done.reconstruction, photo.pixels):.1f} dB, its autoencoder at {psnr(done.autoencoder, photo.pixels):.1f} dB"
    )
