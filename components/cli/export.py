"""Commands that write the erased model in forms that other programs open: a diffusers folder, one LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.cli.options import DryRun, Named, guided_requests
from components.common.errors import UserError
from components.common.paths import GUIDANCE
from components.common.sections import read_section
from components.diffusion.params import BaseParams
from components.requests.requests import Request

if TYPE_CHECKING:
    import pandas as pd

    from components.collect.record import RequestRecord

FORMS = ("diffusers", "kohya")
export = typer.Typer(no_args_is_help=True, help="The erased model in forms that other programs open.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write: new, empty or a previous export.")]


@export.command("diffusers")
def export_diffusers(
    folder: Folder,
    named: Named = None,
    summed: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--sum", help="Add several adapters up instead of fusing them.")
    ] = False,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Writes a StableDiffusionPipeline folder whose U-Net holds the adapters; the filter is not part of it."""
    base, requests = read_section("base", BaseParams), guided_requests(named)
    from components.export.merged import merged_files, write_merged  # noqa: PLC0415 - slow to import
    from components.guidance.fuse import write_fused  # noqa: PLC0415
    from components.registry.working import check_trained  # noqa: PLC0415

    adapters = check_export(folder, base.path, requests, merged_files)
    several = prompts_to_fuse(adapters) if len(adapters) > 1 and not summed else None
    check_trained(Path(), adapters)
    if dry_run:
        typer.echo(f"would write {base.path} without {', '.join(adapters)} into {folder}")
        return
    with tempfile.TemporaryDirectory() as workspace:
        fused = Path(workspace) / "fused"
        if several is not None:
            write_fused(fused, base.path, adapters, *several)
        changed = write_merged(folder, base.path, adapters, None if several is None else fused)
    typer.echo(f"{folder}: without {', '.join(adapters)}, {len(changed)} tensors of the U-Net changed")


@export.command("adapter")
def export_adapter(
    folder: Folder,
    named: Named = None,
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMS)}.")] = "diffusers",
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Writes one LoRA in place of several requests' adapters, for programs that have no filter to gate them.

    `diffusers` is what load_lora_weights reads; `kohya` what ComfyUI, A1111 and others read.
    """
    if form not in FORMS:
        raise UserError(f"--format {form!r} is unknown", f"use one of: {', '.join(FORMS)}")
    base, requests = read_section("base", BaseParams), guided_requests(named)
    from components.export.kohya import kohya_files, write_kohya  # noqa: PLC0415 - slow to import
    from components.guidance.fuse import fused_files, write_fused  # noqa: PLC0415
    from components.registry.working import check_trained  # noqa: PLC0415

    adapters = check_export(folder, base.path, requests, fused_files if form == "diffusers" else kohya_files)
    several = prompts_to_fuse(adapters) if form == "diffusers" or len(adapters) > 1 else None
    check_trained(Path(), adapters)
    if dry_run:
        typer.echo(f"would write one adapter in place of {', '.join(adapters)} into {folder}")
        return
    with tempfile.TemporaryDirectory() as workspace:
        one = folder if form == "diffusers" else Path(workspace) / "fused"
        if several is not None:
            write_fused(one, base.path, adapters, *several)
        if form == "kohya":
            write_kohya(folder, one if several is not None else next(iter(adapters.values())), list(adapters))
    typer.echo(f"{folder}: one adapter that erases {', '.join(adapters)}")


def check_export(
    folder: Path, base: Path, requests: Mapping[str, Request], written: Callable[[Path], set[str]]
) -> dict[str, Path]:
    """Where the requests' adapters lie, each trained on the U-Net of `base`; `folder` holds at most what `written` says."""
    from components.diffusion.folder import check_folder  # noqa: PLC0415 - slow to import
    from components.export.merged import check_target  # noqa: PLC0415
    from components.guidance.adapters import check_adapters  # noqa: PLC0415
    from components.registry.working import check_base  # noqa: PLC0415

    check_base(Path())
    check_folder(base)
    check_target(folder, base, written)
    adapters = {request_id: GUIDANCE / request_id for request_id in requests}
    check_adapters(adapters, base)
    return adapters


def prompts_to_fuse(adapters: Mapping[str, Path]) -> tuple[dict[str, RequestRecord], pd.DataFrame]:
    """The records and prompts that fusing the adapters reads, for adapters that can be fused."""
    from components.collect.record import read_prompts, read_record  # noqa: PLC0415 - slow to import
    from components.guidance.fuse import check_fusible, choose_prompts  # noqa: PLC0415

    check_fusible(adapters)
    records = {request_id: read_record(request_id) for request_id in adapters}
    table = read_prompts(records)
    choose_prompts(table, records)
    return records, table
