import base64
import hashlib
import hmac
import json
import logging

import httpx
import pytest

from flows import notify as module
from flows.notify import SECRET, URL, notify, signed


def test_signature_by_hand():
    """The published example of Standard Webhooks: key, id, time and body give its signature."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the specification's
    headers = signed(b'{"test": 2432232314}', secret, name="msg_p5jXN8AQM9LWM0D4loKWxJek", at=1614265330)

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330")


@pytest.fixture
def sent(monkeypatch):
    """What was posted; the receiver answers with the status that a test sets."""
    posted, answer = [], {"status": 200}

    def post(url, *, content, headers, timeout):
        posted.append((url, content, headers, timeout))
        if answer["status"] is None:
            raise httpx.ConnectTimeout("slow")
        return httpx.Response(answer["status"], request=httpx.Request("POST", url))

    monkeypatch.setattr(module.httpx, "post", post)
    return posted, answer


def test_a_receiver_can_verify_the_message(sent, monkeypatch):
    """What arrives is the event and its data, signed with the secret over exactly the bytes that were sent."""
    monkeypatch.setenv(URL, "https://hooks.example/expunge")
    monkeypatch.setenv(SECRET, "a secret")
    assert notify("release.promoted", {"version": 3}) is True
    ((url, content, headers, _),) = sent[0]
    code = hmac.new(
        b"a secret", f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + content, hashlib.sha256
    )

    assert url == "https://hooks.example/expunge"
    assert json.loads(content) == {"type": "release.promoted", "data": {"version": 3}}
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(code.digest()).decode()}"


@pytest.mark.parametrize(
    ("url", "secret", "status", "said"),
    [
        ("https://h.example", None, 200, "EXPUNGE_WEBHOOK_SECRET is not set"),
        ("https://h.example", "whsec_%%%", 200, "is not base64 behind whsec_"),
        ("https://h.example", "key", 500, "status 500"),
        ("https://h.example", "key", None, "ConnectTimeout"),
    ],
)
def test_a_webhook_that_fails_is_a_warning(sent, monkeypatch, caplog, url, secret, status, said):
    """No key, a bad key, a receiver that refuses or does not answer: one warning without the secret, no second try, no exception."""
    monkeypatch.setenv(URL, url)
    monkeypatch.delenv(SECRET, raising=False)
    if secret:
        monkeypatch.setenv(SECRET, secret)
    sent[1]["status"] = status
    with caplog.at_level(logging.INFO, "expunge.notify"):
        assert notify("flow.failed", {"flow": "drain"}) is False

    event, warning = (record.getMessage() for record in caplog.records)
    assert event == 'flow.failed {"flow": "drain"}'
    assert said in warning
    assert len(sent[0]) <= 1
    assert "%%%" not in warning


def test_without_a_webhook_there_is_a_line_of_the_log(sent, monkeypatch, caplog):
    """The default is a line of the log; nothing is sent."""
    monkeypatch.delenv(URL, raising=False)
    with caplog.at_level(logging.INFO, "expunge.notify"):
        assert notify("queue.drained", {"drained": ["r-1"]}) is False

    assert [record.getMessage() for record in caplog.records] == ['queue.drained {"drained": ["r-1"]}']
    assert sent[0] == []
