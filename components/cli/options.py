"""What several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from components.common.errors import UserError
from components.common.inputs import SHOWN, check_prompt, shown
from components.requests.requests import Request, load_requests

PromptText = Annotated[str, typer.Argument(metavar="PROMPT", help="What is drawn.", callback=check_prompt)]
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
    """`UserError` unless `output` names a .png file, new or regular, that this account can write."""
    problem = ""
    try:
        if output.suffix.lower() != ".png":
            problem = "its name does not end in .png"
        elif output.is_dir():
            problem = "it is a folder"
        elif not output.parent.is_dir():
            problem = f"{output.parent} is no folder"
        elif output.exists() and not output.is_file():
            problem = "it is no regular file"
        elif not os.access(output.parent, os.W_OK | os.X_OK):
            problem = f"{output.parent} cannot be written"
    except (OSError, ValueError) as error:  # a name that is too long, or with a NUL
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        named = output if len(str(output)) <= SHOWN and str(output).isprintable() else shown(str(output))
        raise UserError(f"--output {named} cannot be written: {problem}", "name a .png file in a folder that exists")
