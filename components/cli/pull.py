"""Commands that bring a release to another place: fetch one, rebuild one."""

from __future__ import annotations

import json
import tempfile
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
    """Fetches a release from the registry into a folder, and checks every byte of it; an alias that the ledger gives to another is refused."""
    from components.registry.named import find_version  # noqa: PLC0415 - slow to import
    from components.registry.registry import Registry  # noqa: PLC0415

    registry = Registry()
    release = registry.fetch(find_version(registry, version).version, folder)
    said = "pass" if release.passed else "fail"
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "digest": release.digest, "verdict": said}))
        return
    erased = ", ".join(request.target for request in release.requests.values()) or "nothing"
    typer.echo(f"{folder}: release {release.digest[:12]}, verdict {said}, erases {erased}")


def reproduce(
    version: Reference,
    into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the clone; default: one that is removed.")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Compute everything; pull nothing.")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Rebuilds a release from its commit in a fresh clone and compares every digest; exits with 1 if one differs."""
    from components.registry import reproduce as core  # noqa: PLC0415 - slow to import
    from components.registry.served import find_release  # noqa: PLC0415
    from components.registry.source import processor  # noqa: PLC0415

    release = find_release(version)
    core.check_source(release)
    with tempfile.TemporaryDirectory() as scratch:
        where = into or Path(scratch) / "clone"
        found = core.reproduce(
            release, Path(), where, lambda line: typer.echo(line, err=True), from_scratch=from_scratch
        )
    if as_json:
        typer.echo(json.dumps(found._asdict() | {"differences": [d._asdict() for d in found.differences]}, indent=2))
        raise typer.Exit(1 if found.differences else 0)
    for name, released, rebuilt in found.differences:
        typer.echo(f"{name:<60} {(released or 'missing')[:12]:<12}  {(rebuilt or 'missing')[:12]}")
    how = "computed, or taken from this machine's DVC cache" if found.cached else "computed"
    how = "pulled from the DVC remote" if found.pulled else how
    typer.echo(f"{found.compared - len(found.differences)} of {found.compared} digests are equal; outputs were {how}.")
    if found.differences:
        for name, (released, here) in found.packages.items():
            typer.echo(f"{name} was {released} and is {here} here.")
        typer.echo(
            f"Sums of floating-point numbers differ in their last bits between processors (this is {processor()}) "
            "and between versions of the packages above."
            if found.packages
            else f"The packages are the same. Sums of floating-point numbers differ in their last bits between processors; this is {processor()}."
        )
    raise typer.Exit(1 if found.differences else 0)
