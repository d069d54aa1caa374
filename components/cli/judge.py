"""`expunge judge check`: which judge knows each name of the requests, and whether it tells it."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from components.common.errors import UserError
from components.common.paths import EVALUATE
from components.common.sections import read_section
from components.evaluate.summary import METRICS
from components.registry.working import check_read
from components.requests.requests import load_requests
from components.worlds.params import JudgeParams

judge = typer.Typer(no_args_is_help=True, help="Who judges the images of an evaluation.")


@judge.command("check")
def judge_check() -> None:
    """Says of every name in requests.yaml which judge knows it, and whether the last evaluation found that it tells it.

    Exits with 2 if nobody knows a target or an anchor.
    """
    params, requests, world_name = read_section("judge", JudgeParams), load_requests(), read_section("world", str)
    if not requests:
        raise UserError("requests.yaml holds no request", "add one: expunge request add")
    if (EVALUATE / METRICS).is_file():
        check_read(Path(), "evaluate")  # else its findings are about another judge
    import pandas as pd  # noqa: PLC0415 - slow to import

    from components.collect.concepts import make_record  # noqa: PLC0415
    from components.evaluate.qualify import needed_names, subjects_of  # noqa: PLC0415
    from components.worlds.judges import load_judge, open_readers  # noqa: PLC0415
    from components.worlds.load import load_world  # noqa: PLC0415

    world = load_world(world_name)
    world.check(requests)
    records = {i: make_record(i, request, world) for i, request in requests.items()}
    nothing = pd.DataFrame({"concepts": [], "style": []})
    subjects = subjects_of(records, nothing)
    own = load_judge(world_name, params, ()) if params.path is not None else None
    opened = {} if own is not None else open_readers(params, subjects)
    missing = []
    for subject in subjects:
        if own is not None:
            names = [f"the world's own, {params.path}"] if own.knows(subject.name) else []
        else:
            names = [f"{r.reader} {r.path}" for r in params.of(subject.kind) if opened[r].knows(subject.name)]
        typer.echo(f"{subject.name:<28} {subject.kind:<10} {'; then '.join(names) or 'NO JUDGE'}")
        missing += [subject.name] if not names and subject.name in needed_names(records) else []
    for request_id, said in told().items():
        if request_id in requests:
            reason = said["target"] or said["anchor"]
            typer.echo(
                f"{request_id}  {requests[request_id].target}: {reason or 'the judge tells it (last evaluation)'}"
            )
    if missing:
        raise UserError(
            f"no judge knows {', '.join(map(repr, missing))}",
            "add one under judge in params.yaml, such as clip under any",
        )


def told() -> dict[str, dict[str, str]]:
    """What the last evaluation said of each request's judge; empty without one."""
    path = EVALUATE / METRICS
    if not path.is_file():
        typer.echo("no evaluation has asked the judges yet: expunge run evaluate")
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("judges", {})
