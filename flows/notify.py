"""Tells the outside what a flow has done: a line of the log, and a signed webhook where one is configured.

EXPUNGE_WEBHOOK_URL names the receiver and EXPUNGE_WEBHOOK_SECRET the key (`whsec_` and base64, or any text). Signature and headers are
those of Standard Webhooks 1.0 (standardwebhooks.com): HMAC-SHA256 of `id.timestamp.body`. A message names versions, requests by id,
results and the account that acted, never a target or the person who made a request. A webhook that fails is a warning; it never fails a flow.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import httpx

URL, SECRET = "EXPUNGE_WEBHOOK_URL", "EXPUNGE_WEBHOOK_SECRET"
_SECONDS = 10.0
log = logging.getLogger("expunge.notify")


def notify(event: str, body: Mapping[str, Any]) -> bool:
    """Logs an event such as release.promoted and sends it; whether a receiver has taken it."""
    log.info("%s %s", event, json.dumps(dict(body), sort_keys=True, default=str))
    url, secret = os.environ.get(URL), os.environ.get(SECRET)
    if not url:
        return False
    try:
        if not secret:
            raise ValueError(f"{SECRET} is not set")
        content = json.dumps({"type": event, "data": dict(body)}, sort_keys=True, default=str).encode()
        answer = httpx.post(url, content=content, headers=signed(content, secret), timeout=_SECONDS)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = _why(error)
        log.warning("the webhook was not delivered (%s); the event stands in the log", reason)
        return False
    return True


def signed(content: bytes, secret: str, *, name: str | None = None, at: int | None = None) -> dict[str, str]:
    """The headers of a message: its id, time in seconds and signature; `ValueError` for a key that is no base64."""
    name, moment = name or f"msg_{uuid.uuid4().hex}", str(int(time.time()) if at is None else at)
    try:
        encoded = secret.removeprefix("whsec_")
        key = base64.b64decode(encoded, validate=True) if encoded != secret else secret.encode()
    except binascii.Error as error:
        raise ValueError(f"{SECRET} is not base64 behind whsec_") from error
    code = hmac.new(key, f"{name}.{moment}.".encode() + content, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{base64.b64encode(code).decode()}",
    }


def _why(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}"
    return str(error) if isinstance(error, ValueError) else type(error).__name__
