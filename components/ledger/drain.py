"""From the queue into requests.yaml: what is pending is written there, and noted as drained once it is trained.

Each step can be repeated. A run that was killed after it wrote a request and before it noted so finds it there and notes it; nothing is
written twice, and a request that was withdrawn in time is never pending.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from components.common.errors import UserError
from components.common.files import canonical
from components.ledger.events import Ledger
from components.ledger.queue import pending, read_queue
from components.requests.edit import Check, add_request
from components.requests.requests import REQUESTS, Request, load_requests


class Written(NamedTuple):
    """Requests that were pending."""

    ids: tuple[str, ...]
    """Those that stand in requests.yaml now."""
    added: tuple[str, ...]
    """Those of them that did not before."""
    refused: dict[str, str]
    """Why others could not be written, by id: they clash with what requests.yaml says since, and stay in the queue."""


def read_pending(ledger: Ledger, window: timedelta) -> dict[str, Request]:
    """What is to be trained now, by id."""
    return pending(read_queue(ledger), datetime.now(UTC), window)


def write_pending(ledger: Ledger, window: timedelta, path: Path = REQUESTS, *, check: Check | None = None) -> Written:
    """Writes what is pending into requests.yaml under the queue's ids; `check` is the world's, as in `add_request`.

    A request that somebody has added by hand since, word for word, is there already, whatever its id.
    """
    present = {i: _content(request) for i, request in load_requests(path).items()}
    ids, added, refused = [], [], {}
    for request_id, request in read_pending(ledger, window).items():
        content = _content(request)
        if content not in present.values():
            try:
                add_request(request.model_dump(mode="json"), path, request_id=request_id, check=check)
            except UserError as error:
                refused[request_id] = str(error)
                continue
            present[request_id] = content
            added.append(request_id)
        ids.append(request_id)
    return Written(tuple(ids), tuple(added), refused)


def _content(request: Request) -> str:
    return canonical(request.model_dump(mode="json"))
