import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from components.ledger.announce import ACCEPTED, announce


@pytest.fixture
def server():
    """A Prefect server that keeps what it was sent."""
    seen, status = [], [204]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running, seen, status
    running.shutdown()
    running.server_close()


def test_one_event_for_each_request(server, monkeypatch):
    """The events name the requests by id, with the credentials that the environment holds, and nothing of what they ask."""
    running, seen, _ = server
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{running.server_port}/api/")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:secret")
    assert announce(["r-1", "r-2"]) == ""
    ((path, headers, body),) = seen
    events = json.loads(body)

    assert path == "/api/events"
    assert base64.b64decode(headers["authorization"].removeprefix("Basic ")) == b"admin:secret"
    assert [e["resource"]["prefect.resource.id"] for e in events] == ["expunge.request.r-1", "expunge.request.r-2"]
    assert {e["event"] for e in events} == {ACCEPTED}
    assert len({e["id"] for e in events}) == 2


def test_failure_is_a_sentence(server, monkeypatch):
    """A server that refuses, one that is not there and an address that is none are said, never raised; without a server nothing is sent."""
    running, seen, status = server
    status[0] = 401
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{running.server_port}/api")
    assert announce(["r-1"]) == "the Prefect server answered with status 401"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert announce(["r-1"]) == "the Prefect server of PREFECT_API_URL cannot be reached (ConnectError)"
    monkeypatch.setenv("PREFECT_API_URL", "no address")
    assert "cannot be reached" in announce(["r-1"])
    monkeypatch.delenv("PREFECT_API_URL")
    assert announce(["r-1"]) == ""
    assert len(seen) == 1
