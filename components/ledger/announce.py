"""The event that starts a drain, sent to the Prefect server that PREFECT_API_URL names.

A hint at most: the queue is the truth and the sweep finds what no event announced. So failure is a warning.
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from components.ledger.events import stamp

ACCEPTED = "expunge.request.accepted"
_SECONDS = 5.0


def announce(request_ids: Sequence[str]) -> str:
    """Sends one event for each request; returns why that failed, or nothing where it did not or no server is configured."""
    url = os.environ.get("PREFECT_API_URL")
    if not url or not request_ids:
        return ""
    import httpx  # noqa: PLC0415 - slow to import

    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/events", json=[_event(i) for i in request_ids], headers=_headers(), timeout=_SECONDS
        )
        answer.raise_for_status()
    except httpx.HTTPStatusError as error:
        return f"the Prefect server answered with status {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"the Prefect server of PREFECT_API_URL cannot be reached ({type(error).__name__})"
    return ""


def _event(request_id: str) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "occurred": stamp(datetime.now(UTC)),
        "event": ACCEPTED,
        "resource": {"prefect.resource.id": f"expunge.request.{request_id}"},
        "payload": {},
    }


def _headers() -> dict[str, str]:
    if account := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"authorization": f"Basic {base64.b64encode(account.encode()).decode()}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"authorization": f"Bearer {key}"}
    return {}
