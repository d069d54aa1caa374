"""`expunge request preview`: the prompts that a request makes, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.common.errors import UserError
from components.common.sections import read_section, validated
from components.diffusion.params import BaseParams
from components.requests.requests import Request, load_requests

if TYPE_CHECKING:
    import pandas as pd

    from components.worlds.base import World

_DRAFT = "r-draft"

Alias = Annotated[list[str] | None, typer.Option(help="Another name of the target; repeatable.")]
Anchor = Annotated[str, typer.Option(help="What is drawn instead.")]
KindName = Annotated[str, typer.Option(help="object, style, character, category, person or explicit.")]
Neighbour = Annotated[list[str] | None, typer.Option(help="A concept that must survive; repeatable.")]
NounName = Annotated[
    str | None, typer.Option(help="How the target stands in a sentence: count, mass, proper or adjective.")
]
OwnPrompts = Annotated[Path | None, typer.Option(help="CSV of your own prompts: prompt, counterpart, split.")]
References = Annotated[list[Path] | None, typer.Option("--reference-image", help="Image of the target; repeatable.")]


def written(
    target: str, kind: str, alias: list[str] | None, anchor: str, neighbour: list[str] | None, noun: str | None,
    prompts: Path | None, images: list[Path] | None,
) -> dict[str, Any]:  # fmt: skip
    """A request as requests.yaml has it, of what the command line says."""
    record: dict[str, Any] = {"target": target, "kind": kind, "aliases": alias or [], "anchor": anchor}
    record["neighbours"] = neighbour or []
    given = {
        "noun": noun,
        "prompts": prompts and str(prompts),
        "reference_images": [str(path) for path in images or []],
    }
    return record | {key: value for key, value in given.items() if value}


def request_preview(
    request_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="A request of requests.yaml.")] = None,
    target: Annotated[
        str, typer.Option(help="Instead of an ID: the target of a request that is not written yet.")
    ] = "",
    kind: KindName = "object",
    alias: Alias = None,
    anchor: Anchor = "",
    neighbour: Neighbour = None,
    noun: NounName = None,
    prompts: OwnPrompts = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts of each split to print.")] = 20,
    suggest: Annotated[  # noqa: FBT002 - a command-line flag
        bool, typer.Option("--suggest", help="Suggest neighbours by the base's own text encoder.")
    ] = False,
) -> None:
    """Prints prompts that a request makes for each split, with the counterpart about the anchor; runs nothing."""
    if (request_id is None) == (not target):
        raise UserError("name one request: an ID or --target", "see the ids: expunge request list")
    if target:
        item = validated(written(target, kind, alias, anchor, neighbour, noun, prompts, None), Request, "the request")
        request_id = _DRAFT
    else:
        item = chosen(str(request_id))
    from components.collect.concepts import build_prompts  # noqa: PLC0415 - slow to import
    from components.collect.params import ConceptsParams  # noqa: PLC0415
    from components.worlds.load import load_world  # noqa: PLC0415

    world, params = load_world(read_section("world", str)), read_section("concepts", ConceptsParams)
    world.check({str(request_id): item})
    if suggest:
        typer.echo(f"neighbours by the base's text encoder: {', '.join(suggested(item, world))}")
    table = build_prompts({str(request_id): item}, world, params)
    for split, rows in table.groupby("split", sort=False):
        typer.echo(f"{split}: {len(rows)} prompts; names used: {', '.join(world.names(item, split))}")  # type: ignore[arg-type]
        for line in lines(spread(rows, count)):
            typer.echo(line)


def suggested(item: Request, world: World) -> tuple[str, ...]:
    """Names of the world that the base's text encoder places nearest to the target."""
    base = read_section("base", BaseParams)
    from components.diffusion.text import load_towers  # noqa: PLC0415 - slow to import
    from components.worlds.neighbours import suggest_neighbours  # noqa: PLC0415

    towers = load_towers(base.path)
    return suggest_neighbours(
        item, world.candidates(item.kind), lambda names: towers.encode(names).states.mean(1).numpy()
    )


def chosen(request_id: str) -> Request:
    """A request of requests.yaml by its id; `UserError` if there is none."""
    requests = load_requests()
    if request_id not in requests:
        raise UserError(
            f"request {request_id!r} is not in requests.yaml", f"use one of: {', '.join(requests) or 'none'}"
        )
    return requests[request_id]


def spread(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, every role as often as any other as far as there are rows, in the table's order."""
    turn = rows.groupby("role").cumcount()
    return rows.loc[sorted(turn.sort_values(kind="stable").index[:count])]


def lines(rows: pd.DataFrame) -> list[str]:
    """A line for each prompt: its role, its text, and what is drawn instead."""
    return [
        f"  {role:<10} {prompt}" + (f"  =>  {twin}" if twin else "")
        for role, prompt, twin in zip(rows["role"], rows["prompt"], rows["counterpart"], strict=True)
    ]
