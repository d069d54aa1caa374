"""Commands that bring a release to another place: fetch one, rebuild one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

Reference = Annotated[
    str, typer.Argument(metavar="VERSION", help="A number, an alias such as @champion, or a models:/ URI.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")]


def pull(
    version: Reference,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder to write the release into.")],
    as_json: AsJson = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Fetches a release from the registry into a folder, and checks every byte of it."""
    from components.registry.registry import Registry  # noqa: PLC0415 - slow to import

    release = Registry().fetch(version, folder)
    said = "pass" if release.passed else "fail"
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "digest": release.digest, "verdict": said}))
        return
    erased = ", ".join(request.target for request in release.requests.values()) or "nothing"
    typer.echo(f"{folder}: release {release.digest[:12]}, verdict {said}, erases {erased}")
