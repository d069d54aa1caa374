"""The queue of accepted requests: a replay of the events request.accepted, request.withdrawn and request.drained.

    accepted ──► withdrawn        within the withdrawal window
        └──────► drained          after it, by the flow that put the request into requests.yaml

A request cannot be withdrawn after its window, and is not pending before: what was withdrawn is never trained.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from pydantic import ValidationError

from components.common.errors import ArtifactError, UserError
from components.common.files import canonical
from components.common.sections import first_problem
from components.ledger.events import Entry, Event, Ledger
from components.requests.requests import Request, Requests, check_names

ACCEPTED, WITHDRAWN, DRAINED = "request.accepted", "request.withdrawn", "request.drained"
FAMILY = "request"


class Item(NamedTuple):
    """One request of the queue and what became of it."""

    request: Request
    accepted: datetime
    state: Literal["accepted", "withdrawn", "drained"]


def replay(events: Iterable[Event]) -> dict[str, Item]:
    """The queue after the events, by request id in the order of acceptance; events of other families are skipped."""
    queue: dict[str, Item] = {}
    for event in events:
        if event.kind == ACCEPTED:
            queue[event.subject] = Item(Request.model_validate(event.body["request"]), event.at, "accepted")
        elif event.kind in (WITHDRAWN, DRAINED):
            if event.subject not in queue:
                raise ArtifactError(
                    f"event {event.seq} is about request {event.subject}, never accepted", "see the log"
                )
            state = "withdrawn" if event.kind == WITHDRAWN else "drained"
            queue[event.subject] = queue[event.subject]._replace(state=state)
    return queue


def read_queue(ledger: Ledger) -> dict[str, Item]:
    """The queue as it is now."""
    return replay(ledger.events(FAMILY))


def pending(queue: Mapping[str, Item], at: datetime, window: timedelta) -> dict[str, Request]:
    """What is to be trained: accepted, neither withdrawn nor drained, and older than the withdrawal window."""
    return {i: item.request for i, item in queue.items() if item.state == "accepted" and at - item.accepted >= window}


def submit(
    ledger: Ledger, requests: Sequence[Request], present: Mapping[str, Request], actor: str, *, dry_run: bool = False
) -> list[str]:
    """Accepts requests, all or none, and returns their ids in order.

    A request equal to one of `present` (requests.yaml) or of the queue is that request: its id is returned and nothing is added. One
    that was withdrawn, or drained and taken out of requests.yaml since, is new. Whoever withdraws a request withdraws it for
    everyone who submitted its equal. `UserError` if a name or an anchor clashes with another request; one of the queue that clashes with
    `present` since is skipped, as the drain skips it.
    """
    ids: list[str] = []

    def decide(events: Sequence[Event], _now: datetime) -> list[Entry]:
        queue = replay(events)
        waiting = {i: item.request for i, item in queue.items() if item.state == "accepted"}
        everyone, together = dict(present) | waiting, fitting(present, waiting)
        known = {canonical(request.model_dump(mode="json")): i for i, request in everyone.items()}
        entries = []
        for request in requests:
            content = request.model_dump(mode="json")
            request_id = known.setdefault(canonical(content), _new_id({*everyone, *queue}))
            ids.append(request_id)
            if request_id not in everyone:
                check_names(request)
                everyone[request_id] = together[request_id] = request
                entries.append(Entry(ACCEPTED, request_id, {"request": content}))
        try:
            Requests(requests=together)
        except ValidationError as error:
            raise first_problem(error, "the queue and requests.yaml") from error
        return [] if dry_run else entries

    ledger.record(FAMILY, actor, decide)
    return ids


def fitting(present: Mapping[str, Request], waiting: Mapping[str, Request]) -> dict[str, Request]:
    """`present`, and those of `waiting` that clash neither with it nor with one before them."""
    whole = {**present, **waiting}
    if _fit(whole):
        return whole
    together = dict(present)
    for request_id, request in waiting.items():
        if _fit({**together, request_id: request}):
            together[request_id] = request
    return together


def _fit(requests: dict[str, Request]) -> bool:
    try:
        Requests(requests=requests)
    except ValidationError:
        return False
    return True


def withdraw(ledger: Ledger, request_id: str, actor: str, window: timedelta, *, dry_run: bool = False) -> Request:
    """Withdraws a request within its window and returns it; `UserError` if it is unknown, no longer accepted, or too old."""
    found: list[Request] = []

    def decide(events: Sequence[Event], now: datetime) -> list[Entry]:
        item = _item(replay(events), request_id)
        by_hand = f"once it is trained, remove it: expunge request remove {request_id}"
        if item.state == "withdrawn":
            raise UserError(f"request {request_id} was withdrawn already", "there is nothing left to do")
        if item.state == "drained":
            raise UserError(f"request {request_id} has left the queue", by_hand)
        if now - item.accepted >= window:
            end = (item.accepted + window).strftime("%Y-%m-%d %H:%M UTC")
            raise UserError(f"request {request_id} could be withdrawn until {end}", by_hand)
        found.append(item.request)
        return [] if dry_run else [Entry(WITHDRAWN, request_id, {})]

    ledger.record(FAMILY, actor, decide)
    return found[0]


def mark_drained(ledger: Ledger, request_ids: Iterable[str], actor: str, run: str, window: timedelta) -> list[str]:
    """Notes that a run has put requests into requests.yaml; returns those that were not noted before, so that it can be repeated.

    `UserError` if one is unknown, was withdrawn, or can still be.
    """

    def decide(events: Sequence[Event], now: datetime) -> list[Entry]:
        queue = replay(events)
        entries = []
        for request_id in dict.fromkeys(request_ids):
            item = _item(queue, request_id)
            if item.state == "withdrawn" or (item.state == "accepted" and now - item.accepted < window):
                state = "was withdrawn" if item.state == "withdrawn" else "can still be withdrawn"
                raise UserError(f"request {request_id} {state}", "drain what is pending alone")
            if item.state == "accepted":
                entries.append(Entry(DRAINED, request_id, {"run": run}))
        return entries

    return [event.subject for event in ledger.record(FAMILY, actor, decide)]


def _item(queue: Mapping[str, Item], request_id: str) -> Item:
    if request_id not in queue:
        waiting = ", ".join(i for i, item in queue.items() if item.state == "accepted")
        raise UserError(f"request {request_id!r} is not in the queue", f"use one of: {waiting or 'there is none'}")
    return queue[request_id]


def _new_id(taken: set[str]) -> str:
    while (request_id := f"r-{secrets.token_hex(4)}") in taken:
        pass
    return request_id
