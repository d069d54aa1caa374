"""What several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.common.errors import UserError
from components.requests.requests import Request, load_requests

DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, change nothing.")]
Named = Annotated[list[str] | None, typer.Option("--request", help="A request to erase; default all; repeatable.")]


def guided_requests(named: list[str] | None) -> dict[str, Request]:
    """The named requests, or all, that the guidance channel erases; `UserError` for one that is unknown or has no adapter."""
    requests = load_requests()
    able = {i: r for i, r in requests.items() if "guidance" in r.channels}
    for request_id in named or []:
        if request_id not in requests:
            raise UserError(f"request {request_id!r} is not in requests.yaml", f"use one of: {', '.join(requests)}")
        if request_id not in able:
            raise UserError(f"request {request_id} has no guidance channel", f"use one of: {', '.join(able) or 'none'}")
    if not able:
        raise UserError("no request in requests.yaml has the guidance channel", "add one: expunge request add")
    return {i: r for i, r in able.items() if not named or i in named}


def writable_png(output: Path) -> None:
    """`UserError` unless `output` names a .png file in a folder that exists."""
    if output.suffix.lower() != ".png" or not output.parent.is_dir() or output.is_dir():
        raise UserError(f"--output {output} cannot be written", "name a .png file in a folder that exists")
