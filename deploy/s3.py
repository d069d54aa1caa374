"""An S3 store for one machine: moto's, which lives in memory, with every object also in a file.

    AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… python -m deploy.s3 FOLDER PORT

It answers on loopback alone and only to requests signed with that key. An object is on disk before its request is answered, so that
a killed store comes back whole. For more than one machine use a real S3 store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import run_simple

Environ = dict[str, Any]
HOST, REGION = "127.0.0.1", "us-east-1"
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)"
)


def signed(environ: Environ, credentials: Credentials) -> bool:
    """Whether a request is signed with the store's key (AWS signature version 4, in the Authorization header)."""
    found = _SIGNED.fullmatch(environ.get("HTTP_AUTHORIZATION", ""))
    if found is None or not hmac.compare_digest(found[1], credentials.access_key or ""):
        return False
    headers = {name: _header(environ, name) for name in found[3].split(";")}
    url = f"http://{environ['HTTP_HOST']}{environ['RAW_URI']}"
    request = AWSRequest(environ["REQUEST_METHOD"], url, headers)
    request.context["timestamp"] = headers.get("x-amz-date", "")
    auth = S3SigV4Auth(credentials, "s3", found[2])
    text = auth.string_to_sign(request, auth.canonical_request(request))
    return hmac.compare_digest(auth.signature(text, request), found[4])


def _header(environ: Environ, name: str) -> str:
    key = name.upper().replace("-", "_")
    return environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", "")


class Store:
    """The WSGI application: moto's S3, asked only what is signed, and kept in `folder`."""

    def __init__(self, folder: Path, credentials: Credentials) -> None:
        """Reads what an earlier store left in `folder`."""
        self._folder, self._credentials = folder, credentials
        self._app = DomainDispatcherApplication(lambda _service: create_backend_app("s3"))
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._lock = threading.Lock()
        self._written: dict[tuple[str, str], object] = {}
        for place in sorted(folder.glob("*/")):
            self._backend.create_bucket(place.name, REGION)
            for path in place.iterdir():
                head, _, body = path.read_bytes().partition(b"\n")
                if path.name != _name(json.loads(head)):
                    path.unlink()  # half written by a store that was killed: its request was never answered
                    continue
                self._backend.put_object(place.name, json.loads(head), body)
        self._written = dict(self._objects())

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        if environ["PATH_INFO"] == "/health":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok"]
        if not signed(environ, self._credentials):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SignatureDoesNotMatch</Code><Message>sign with the store's key</Message></Error>"]
        answer: list[Any] = []
        body = list(self._app(environ, lambda *given: answer.extend(given)))
        part = "partNumber" in parse_qs(environ.get("QUERY_STRING", ""))
        changes = environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE") and not part
        if changes and int(answer[0].split()[0]) < HTTPStatus.BAD_REQUEST:
            with self._lock:
                self._write()
        start_response(*answer[:2])
        return body

    def _objects(self) -> Iterable[tuple[tuple[str, str], object]]:
        for bucket in list(self._backend.buckets.values()):
            for key, item in list(bucket.keys.items()):
                yield (bucket.name, key), item

    def _write(self) -> None:
        for bucket in list(self._backend.buckets):
            (self._folder / bucket).mkdir(parents=True, exist_ok=True)
        now: dict[tuple[str, str], Any] = dict(self._objects())
        for (bucket, key), item in now.items():
            if self._written.get((bucket, key)) is not item:
                path = self._folder / bucket / _name(key)
                partial = path.with_suffix(".partial")
                partial.write_bytes(json.dumps(key).encode() + b"\n" + item.value)
                partial.replace(path)
        for bucket, key in self._written.keys() - now.keys():
            (self._folder / bucket / _name(key)).unlink(missing_ok=True)
        self._written = now


class Handler(MotoRequestHandler):
    """Logs a request without its query, which may hold a signature."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """One line."""
        self.log("info", "%s %s %s %s", self.command, urlsplit(self.path).path, code, size)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def main(folder: str, port: str) -> None:
    """Serves until it is ended."""
    credentials = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    store = Store(Path(folder), credentials)
    run_simple(HOST, int(port), store, threaded=True, request_handler=Handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
