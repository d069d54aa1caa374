"""Commands on the ledger: submit and withdraw requests, verify and show the events."""

from __future__ import annotations

import getpass
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.cli.options import DryRun
from components.common.errors import UserError
from components.common.sections import read_section, read_yaml, validated
from components.common.strict_json import read_json
from components.ledger.params import LedgerParams
from components.requests.requests import Request, load_requests

if TYPE_CHECKING:
    from components.ledger.events import Ledger

ledger = typer.Typer(no_args_is_help=True, help="The log of requests and releases.")

Actor = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="Account that the event names; default: the system's.")
]


def request_submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON: one request, or a list of them.")],
    actor: Actor = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Puts requests into the queue, all or none, and prints their ids; an equal request keeps the id that it has."""
    params, requests, present = read_section("ledger", LedgerParams), read_requests(file), load_requests()
    from components.ledger.announce import announce  # noqa: PLC0415 - slow to import
    from components.ledger.queue import fitting, read_queue, submit  # noqa: PLC0415
    from components.worlds.load import load_world  # noqa: PLC0415

    opened = open_ledger(params, empty=dry_run)
    waiting = {i: item.request for i, item in read_queue(opened).items() if item.state == "accepted"}
    ids = submit(opened, requests, present, account(actor), dry_run=True)
    everyone = fitting(present, waiting) | dict(zip(ids, requests, strict=True))
    load_world(read_section("world", str)).check(everyone)
    ids = ids if dry_run else submit(opened, requests, present, account(actor))
    for request_id in ids:
        typer.echo(request_id)
    if not dry_run and (failure := announce(ids)):
        typer.echo(f"expunge: {failure}; the requests are in the queue, and the next sweep finds them", err=True)


def request_withdraw(
    request_id: Annotated[str, typer.Argument(metavar="ID")],
    actor: Actor = None,
    dry_run: DryRun = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Withdraws a submitted request within its withdrawal window: it is never trained."""
    params = read_section("ledger", LedgerParams)
    from components.ledger.queue import withdraw  # noqa: PLC0415 - slow to import

    window = timedelta(hours=params.withdrawal_hours)
    item = withdraw(open_ledger(params), request_id, account(actor), window, dry_run=dry_run)
    typer.echo(f"{'would withdraw' if dry_run else 'withdrew'} {request_id} ({item.target})")


def request_queue(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Lists submitted requests with their state; one that is accepted can be withdrawn until the time given, and is trained after it."""
    params = read_section("ledger", LedgerParams)
    from components.ledger.queue import read_queue  # noqa: PLC0415 - slow to import

    window = timedelta(hours=params.withdrawal_hours)
    queue = read_queue(open_ledger(params, empty=True))
    if as_json:
        rows = [
            {"id": i, "state": item.state, "target": item.request.target, "accepted": item.accepted.isoformat(),
             "trained_after": (item.accepted + window).isoformat()}
            for i, item in queue.items()
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for i, item in queue.items():
        until = f"  until {item.accepted + window:%Y-%m-%d %H:%M}Z" if item.state == "accepted" else ""
        typer.echo(f"{i}  {item.state:<9}  {item.request.target}{until}")


@ledger.command("verify")
def ledger_verify(
    head: Annotated[
        str | None, typer.Option(metavar="SHA256", help="An event's hash noted before, which must be in the chain.")
    ] = None,
) -> None:
    """Walks the chain of events and prints where it ends; names the first event that was altered or is missing."""
    found = open_ledger(read_section("ledger", LedgerParams)).verify(head)
    typer.echo(f"{found.seq} events, the chain is whole and ends in {found.sha256}")


@ledger.command("show")
def ledger_show(
    subject: Annotated[str | None, typer.Option(metavar="ID", help="A request's id, or release/VERSION.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print whole events, as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Prints the events, oldest first."""
    events = open_ledger(read_section("ledger", LedgerParams)).events(subject=subject)
    if subject is not None and not events:
        raise UserError(f"the ledger has no event about {subject!r}", "see all: expunge ledger show")
    if as_json:
        typer.echo(json.dumps([event.record() for event in events], indent=2, ensure_ascii=False))
        return
    for event in events:
        body = json.dumps(event.body, ensure_ascii=False)
        typer.echo(
            f"{event.seq:>5}  {event.at:%Y-%m-%d %H:%M:%S}Z  {event.kind:<20} {event.subject}  {event.actor}  {body}"
        )


def open_ledger(params: LedgerParams, *, empty: bool | None = None) -> Ledger:
    """The ledger at the configured URL, which must exist; unless `empty` is given: False makes one, True imagines one."""
    from components.ledger.database import NoLedgerError, ledger_url  # noqa: PLC0415 - slow to import
    from components.ledger.events import Ledger  # noqa: PLC0415

    try:
        return Ledger(ledger_url(params.url), must_exist=empty is not False)
    except NoLedgerError:
        if not empty:
            raise
        return Ledger("sqlite://")


def read_requests(file: Path) -> list[Request]:
    """The requests of a YAML or JSON file, one mapping or a list of them; `UserError` names the first that does not make sense."""
    if not file.exists():
        raise UserError(f"{file} does not exist", "name a YAML or JSON file")
    content = read_json(file) if file.suffix.lower() == ".json" else read_yaml(file)
    listed = content if isinstance(content, list) else [content]
    if not listed:
        raise UserError(f"{file} holds no request", "write one as in docs/requests.md, without an id")
    found = []
    for number, item in enumerate(listed, 1):
        where = f"{file}, request {number}" if isinstance(content, list) else str(file)
        if not isinstance(item, dict):
            raise UserError(f"{where} is no mapping", "write one as in docs/requests.md, without an id")
        found.append(validated(item, Request, where))
    return found


def account(name: str | None) -> str:
    """The account that acts: the one that was named, or the system's."""
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"
