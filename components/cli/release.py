"""`expunge release`: what was registered, what may be done with it, and doing it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.cli.ledger import Actor, account, open_ledger
from components.cli.options import DryRun
from components.common.errors import StageError, UserError
from components.common.sections import read_section
from components.ledger.params import LedgerParams

if TYPE_CHECKING:
    from components.ledger.releases import History
    from components.registry.promotion import Act, Registrar

release = typer.Typer(no_args_is_help=True, help="Releases: look at them, approve, promote and roll back.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Option("--as", metavar="NAME", help="Who decides; the history names them.")]
Text = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number, such as 3.")]
Digest = Annotated[
    str | None, typer.Option(metavar="SHA256", help="The release must have this digest (12 digits or more).")
]
Reason = Annotated[str, typer.Option(help="Why; the history keeps it.")]


@release.command("list")
def release_list(as_json: Json = False) -> None:  # noqa: FBT002 - a command-line flag
    """Lists all versions with their state, and says where the registry's aliases are not what the history gives."""
    from components.registry.promotion import check_same, own_aliases, wanted_aliases  # noqa: PLC0415 - slow to import

    registrar = _registrar(None, dry_run=True, empty=True)
    history, found = _history(registrar), own_aliases(registrar.store)
    check_same(history, found)
    wanted = wanted_aliases(history, registrar.store)
    rows = [
        {
            "version": version, "digest": one.digest, "verdict": one.verdict, "state": history.state(version),
            "submitter": one.submitter, "approvers": list(one.approvers),
            "aliases": sorted(name for name, at in wanted.items() if at == version),
        }
        for version, one in sorted(history.releases.items())
    ]  # fmt: skip
    wrong = {
        name: [found.get(name), wanted.get(name)]
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    }
    if as_json:
        _print({"releases": rows, "aliases": found, "wrong_aliases": wrong})
        return
    for row in rows:
        names = " ".join(f"@{name}" for name in row["aliases"])
        typer.echo(
            f"{row['version']:>4}  {row['digest'][:12]}  {row['verdict']:<4}  {row['state']:<10}  {names}".rstrip()
        )
    if not rows:
        typer.echo("the ledger holds no release; register one: expunge retrain", err=True)
    for name, (at, should) in wrong.items():
        typer.echo(f"alias {name} names {at or 'nothing'}, not {should or 'nothing'}: the next act mends it", err=True)


@release.command("show")
def release_show(version: Text, as_json: Json = False) -> None:  # noqa: FBT002 - a command-line flag
    """Fetches a release, checks every byte and number of it, and says what may be done with it."""
    from components.evaluate.attacks.evidence import withstood  # noqa: PLC0415 - slow to import
    from components.ledger.releases import actions, known  # noqa: PLC0415

    registrar, number = _registrar(None, dry_run=True), _number(version)
    history = _history(registrar)
    one = known(history, number)
    assessment = registrar.assess(history, number)
    may = actions(history, number, datetime.now(UTC), four_eyes=registrar.policy.four_eyes)
    overrides = [
        {"gate": o.gate, "by": o.by, "reason": o.reason, "expires": o.expires.isoformat()} for o in one.overrides
    ]
    facts = {
        "version": number, "digest": one.digest, "verdict": one.verdict, "state": history.state(number),
        "submitter": one.submitter, "approvers": list(one.approvers), "overrides": overrides, "actions": list(may),
        **assessment.record(),
    }  # fmt: skip
    if as_json:
        _print(facts)
        return
    typer.echo(f"version {number}, {facts['state']}, digest {one.digest}")
    typer.echo(f"submitted by {one.submitter}, approved by {', '.join(one.approvers) or 'nobody'}")
    for finding in assessment.findings:
        answered = finding.gate in assessment.answered
        mark = "pass" if finding.passed else "WARN" if answered else "FAIL"
        typer.echo(f"{mark}  {finding.gate:<34} {finding.check:<8} {finding.reason} (n={finding.n})")
    if assessment.attacks:
        typer.echo(f"{withstood(assessment.attacks)} Not tried: {', '.join(assessment.attacks['not_tried'])}.")
    typer.echo(f"{assessment.result}. What may be done: {', '.join(may) or 'nothing'}.")


@release.command("diff")
def release_diff(old: Text, new: Text, as_json: Json = False) -> None:  # noqa: FBT002 - a command-line flag
    """Prints what differs between two releases: requests, params, metrics and attacks with their intervals, digests."""
    from components.ledger.releases import known  # noqa: PLC0415 - slow to import
    from components.registry.compare import compare  # noqa: PLC0415
    from components.registry.promotion import fetched  # noqa: PLC0415

    registrar, numbers = _registrar(None, dry_run=True), (_number(old), _number(new))
    history = _history(registrar)
    before, after = (known(history, number).digest for number in numbers)
    with fetched(registrar.store, numbers[0], before) as one, fetched(registrar.store, numbers[1], after) as other:
        found = compare(one, other)
    if as_json:
        _print(found)
        return
    for how, targets in found["requests"].items():
        for request_id, target in targets.items():
            typer.echo(f"request {how}: {request_id} ({target})")
    for what in (kinds := ("params", "metrics", "attacks", "digests")):
        for name, (was, now) in found[what].items():
            typer.echo(f"{what.removesuffix('s')} {name}: {_short(was)} -> {_short(now)}")
    if not any([*found["requests"].values(), *(found[what] for what in kinds)]):
        typer.echo(f"versions {numbers[0]} and {numbers[1]} hold the same bytes")


@release.command("approve")
def release_approve(
    version: Text, name: Name, digest: Digest = None, dry_run: DryRun = False, as_json: Json = False  # noqa: FBT002
) -> None:  # fmt: skip
    """Approves exactly the bytes that were registered under a version."""
    _say(_registrar(name, dry_run=dry_run).approve(_number(version), digest), as_json=as_json)


@release.command("reject")
def release_reject(
    version: Text, reason: Reason, name: Actor = None, dry_run: DryRun = False, as_json: Json = False  # noqa: FBT002
) -> None:  # fmt: skip
    """Rejects a version; its approvals no longer count."""
    _say(_registrar(name, dry_run=dry_run).reject(_number(version), reason), as_json=as_json)


@release.command("promote")
def release_promote(
    version: Text, digest: Digest = None, name: Actor = None, dry_run: DryRun = False, as_json: Json = False  # noqa: FBT002
) -> None:  # fmt: skip
    """Makes an approved version the champion after checking all of its bytes and numbers; exits with 1 if a number refuses it."""
    _say(_registrar(name, dry_run=dry_run).promote(_number(version), digest), as_json=as_json)


@release.command("rollback")
def release_rollback(
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Default: the champion before.")] = None,
    name: Actor = None, dry_run: DryRun = False, as_json: Json = False,  # noqa: FBT002 - command-line flags
) -> None:  # fmt: skip
    """Makes an earlier champion the champion again, once its bytes are shown to be whole."""
    number = None if version is None else _number(version)
    _say(_registrar(name, dry_run=dry_run).rollback(number), as_json=as_json)


@release.command("override")
def release_override(
    version: Text,
    gate: Annotated[str, typer.Option(help="request/variant/metric, as `expunge release show` names it.")],
    reason: Reason,
    until: Annotated[str, typer.Option(metavar="DATE", help="Last day (UTC) or moment that it is in force.")],
    name: Name,
    dry_run: DryRun = False, as_json: Json = False,  # noqa: FBT002 - command-line flags
) -> None:  # fmt: skip
    """Answers by name for a gate on utility that a version fails; one on erasure or evidence cannot be overridden."""
    expires = moment(until)
    _say(_registrar(name, dry_run=dry_run).override(_number(version), gate, reason, expires), as_json=as_json)


@release.command("log")
def release_log(
    at: Annotated[str | None, typer.Option(metavar="DATE", help="The history up to the end of that day (UTC).")] = None,
    as_json: Json = False,  # noqa: FBT002 - a command-line flag
) -> None:
    """Prints every decision, oldest first, and which version was champion at the end."""
    end = None if at is None else moment(at)
    from components.ledger.releases import FAMILY, replay  # noqa: PLC0415 - slow to import

    events = open_ledger(read_section("ledger", LedgerParams)).events(FAMILY)
    events = [event for event in events if end is None or event.at <= end]
    history = replay(events)
    if as_json:
        _print(
            {"events": [event.record() for event in events], "champion": history.champion, "previous": history.previous}
        )
        return
    for event in events:
        body = {key: value for key, value in event.body.items() if key not in ("version", "digest")}
        said = json.dumps(body, ensure_ascii=False) if body else ""
        kind = event.kind.partition(".")[2].replace("_", " ")
        typer.echo(
            f"{event.at:%Y-%m-%d %H:%M:%S}Z  {event.body['version']:>4} {kind:<12} {event.actor}  {said}".rstrip()
        )
    typer.echo(f"champion: {history.champion or 'none'}, previous: {history.previous or 'none'}")


def moment(text: str) -> datetime:
    """A day as its end in UTC, or a moment with its time zone; `UserError` for another text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no date", "write one like 2026-12-31 or 2026-12-31T18:00:00+01:00") from error
    if re.fullmatch(r"[\d-]+|\d{4}-?W[\d-]+", text):
        found = datetime.combine(found.date(), time.max)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _number(text: str) -> int:
    """The version that a text names, such as 3 or models:/expunge/3; `UserError` for one of another model."""
    found = re.fullmatch(r"(?:(?:models:/)?(?P<model>[^/@]+)/)?v?(?P<number>\d{1,9})", text)
    if found is None:
        raise UserError(f"{text[:100]!r} is no version", "name a number: expunge release list")
    if found["model"] not in (None, "expunge"):
        raise UserError(f"{text[:100]} is a version of another model", "name one of expunge: expunge release list")
    return int(found["number"])


def _registrar(name: str | None, *, dry_run: bool, empty: bool | None = None) -> Registrar:
    """The acts of an account; `empty` as in `open_ledger`."""
    params = read_section("ledger", LedgerParams)
    ledger = open_ledger(params, empty=empty)
    from components.registry.promotion import Registrar, read_policy  # noqa: PLC0415 - slow to import
    from components.registry.registry import Registry  # noqa: PLC0415

    return Registrar(ledger, Registry(), read_policy(), account(name), dry_run=dry_run)


def _history(registrar: Registrar) -> History:
    from components.ledger.releases import read_history  # noqa: PLC0415 - slow to import

    return read_history(registrar.ledger)


def _say(act: Act, *, as_json: bool) -> None:
    if as_json:
        _print(act._asdict())
    else:
        warned = " (WARNED: a gate is overridden)" if act.result == "WARNED" else ""
        typer.echo(f"{act.did} version {act.version} ({act.digest[:12]}){warned}")
        typer.echo(f"champion: {act.champion or 'none'}, previous: {act.previous or 'none'}")
    if act.lagging:
        said = f"the ledger has it, but the aliases do not follow yet ({act.lagging})"
        raise StageError(said, "once the registry answers, any act mends them")


def _short(value: Any) -> str:  # noqa: ANN401 - params and metrics
    if isinstance(value, dict) and "value" in value:
        numbers = ["none" if value.get(key) is None else f"{value[key]:.4g}" for key in ("value", "low", "high")]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}] n={value.get('n')}"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return value[:12]
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _print(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
