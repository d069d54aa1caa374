"""Events: facts that are appended and never changed, each with the hash of the one before it.

    seq  subject  at  actor  kind  body  prev_sha256  sha256

`sha256` covers all other columns, so that a changed event breaks the chain, and `verify` names the first that is broken. Events that
were cut off at the end leave a whole chain behind: compare `verify`'s head with one that was noted elsewhere. `actor` is an account of
whoever runs Expunge; nothing about the person who made a request is in the ledger.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from components.common.errors import ArtifactError, StageError, UserError
from components.ledger.database import connect, transaction

START = "0" * 64
"""What the first event has for the hash of the one before it."""
EVENTS = sa.Table(
    "events", sa.MetaData(),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    *(sa.Column(name, sa.Text) for name in ("subject", "at", "actor", "kind", "body", "prev_sha256", "sha256")),
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,99}")
_KIND = re.compile(r"[a-z]+\.[a-z_]+")


class Entry(NamedTuple):
    """What is to be appended: `kind` is family.name, such as request.accepted."""

    kind: str
    subject: str
    body: Mapping[str, Any]


class Event(NamedTuple):
    """One appended event; `at` is in UTC."""

    seq: int
    subject: str
    at: datetime
    actor: str
    kind: str
    body: dict[str, Any]
    prev_sha256: str
    sha256: str

    def record(self) -> dict[str, Any]:
        """The event as JSON can hold it."""
        return self._asdict() | {"at": stamp(self.at)}


class Head(NamedTuple):
    """Where the chain ends: number of events and hash of the last."""

    seq: int
    sha256: str


def stamp(at: datetime) -> str:
    """A moment in UTC to the microsecond, such as 2026-11-28T18:45:00.000000Z; equal moments give equal text."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def chain_hash(seq: int, subject: str, at: str, actor: str, kind: str, body: str, prev_sha256: str) -> str:
    """SHA-256 of the columns as a JSON list in ASCII."""
    return hashlib.sha256(json.dumps([seq, subject, at, actor, kind, body, prev_sha256]).encode("ascii")).hexdigest()


class Ledger:
    """An open ledger; processes and threads may each have one at once."""

    def __init__(self, url: str, *, must_exist: bool = False, clock: Callable[[], datetime] | None = None) -> None:
        """Opens the ledger at a URL and creates it unless it `must_exist`; errors are those of `connect`."""
        self._engine = connect(url, must_exist=must_exist)
        self._clock = clock or (lambda: datetime.now(UTC))

    def close(self) -> None:
        """Closes its connections."""
        self._engine.dispose()

    def events(self, family: str | None = None, subject: str | None = None) -> list[Event]:
        """The events in their order, or those of one family of kinds or one subject."""
        with transaction(self._engine, writes=False) as connection:
            return _read(connection, family, subject)

    def append(
        self, kind: str, subject: str, actor: str, body: Mapping[str, Any], *, expect: int | None = None
    ) -> Event:
        """Appends one event and returns it.

        `expect` is the seq of the last event of the kind's family when the caller made up its mind, 0 if there was none; `StageError` if
        there is a later one.
        """

        def decide(events: Sequence[Event], _now: datetime) -> list[Entry]:
            last = events[-1] if events else None
            if expect is not None and expect != (last.seq if last else 0):
                what = f"{last.kind} of {last.subject} by {last.actor}" if last else "nothing"
                raise StageError(f"the ledger has changed meanwhile: {what} came first", "look again and repeat")
            return [Entry(kind, subject, body)]

        return self.record(kind.partition(".")[0], actor, decide)[0]

    def record(
        self, family: str, actor: str, decide: Callable[[Sequence[Event], datetime], Sequence[Entry]]
    ) -> list[Event]:
        """Appends what `decide` makes of the family's events and the time, all of it or nothing; no other writer comes between.

        Times never go back: an event whose clock is behind gets the time of the event before it.
        """
        _check(bool(actor.strip()) and actor.isprintable() and len(actor) <= 100, "the actor", actor, "name an account")
        with transaction(self._engine, writes=True) as connection:
            row = connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq.desc()).limit(1)).first()
            now = self._clock() if row is None else max(self._clock(), _event(row).at)
            seq, previous = (0, START) if row is None else (row.seq, row.sha256)
            rows: list[dict[str, Any]] = []
            for kind, subject, body in decide(_read(connection, family), now):
                _check(_KIND.fullmatch(kind) is not None, "the kind", kind, "use family.name")
                _check(_NAME.fullmatch(subject) is not None, "the subject", subject, "use letters, digits and ./_-")
                seq += 1
                columns = (seq, subject, stamp(now), actor, kind, _canonical(body), previous)
                previous = chain_hash(*columns)
                rows.append(dict(zip(EVENTS.c.keys(), (*columns, previous), strict=True)))
            if rows:
                connection.execute(EVENTS.insert(), rows)
            return [_event(row.values()) for row in rows]

    def verify(self, head: str | None = None) -> Head:
        """Walks the chain and returns where it ends; `ArtifactError` names the first event that is broken.

        `head` is the hash of an event that must be in the chain: one noted elsewhere shows that none was cut off since.
        """
        last, seen = Head(0, START), head in (None, START)
        with transaction(self._engine, writes=False) as connection:
            for row in connection.execute(sa.select(EVENTS).order_by(EVENTS.c.seq)):
                fault = _fault(row, last)
                if fault:
                    raise ArtifactError(f"event {last.seq + 1} of the ledger {fault}", "restore it from a backup")
                last = Head(row.seq, row.sha256)
                seen = seen or head == row.sha256
        if not seen:
            raise ArtifactError(f"the ledger has no event {head}: its end is missing", "restore it from a backup")
        return last


def _fault(row: Any, last: Head) -> str:  # noqa: ANN401 - a row of whatever the database holds
    if row.seq != last.seq + 1:
        return f"is missing; the next is {row.seq}"
    if row.prev_sha256 != last.sha256:
        return "does not follow the one before it (prev_sha256)"
    if not all(isinstance(value, str) for value in row[1:]) or chain_hash(*row[:7]) != row.sha256:
        return "was altered (sha256)"
    return ""


def _read(connection: sa.Connection, family: str | None = None, subject: str | None = None) -> list[Event]:
    query = sa.select(EVENTS).order_by(EVENTS.c.seq)
    if family is not None:
        query = query.where(EVENTS.c.kind.startswith(f"{family}.", autoescape=True))
    if subject is not None:
        query = query.where(EVENTS.c.subject == subject)
    return [_event(row) for row in connection.execute(query)]


def _event(columns: Iterable[Any]) -> Event:
    seq, subject, at, actor, kind, body, previous, own = columns
    try:
        moment = datetime.strptime(at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        return Event(seq, subject, moment, actor, kind, json.loads(body), previous, own)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"event {seq} of the ledger was altered", "see expunge ledger verify") from error


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(dict(body), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _check(good: bool, what: str, value: str, remedy: str) -> None:  # noqa: FBT001 - an assertion about the user's input
    if not good:
        raise UserError(f"{what} {value[:100]!r} is no name", remedy)
