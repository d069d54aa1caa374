from datetime import UTC, datetime, timedelta

import pytest

from components.common.errors import UserError
from components.ledger.drain import read_pending, write_pending
from components.ledger.events import Ledger
from components.ledger.queue import mark_drained, read_queue, submit, withdraw
from components.requests.edit import add_request, remove_request
from components.requests.requests import Request, load_requests

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


def request(target, **more):
    return Request.model_validate({"target": target, "kind": "object", "channels": ["filter"]} | more)


class Queue:
    """A ledger whose clock a test sets, and a requests.yaml beside it."""

    def __init__(self, folder):
        self.at = NOW - 10 * HOUR
        self.path = folder / "requests.yaml"
        self.path.write_text("requests: {}\n")
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db", clock=lambda: self.at)

    def submit(self, *targets):
        """Submits requests and returns their ids."""
        return submit(self.ledger, [request(target) for target in targets], load_requests(self.path), "ann")

    def write(self, **more):
        """Writes what is pending."""
        return write_pending(self.ledger, HOUR, self.path, **more)

    def states(self):
        """What became of each request."""
        return [item.state for item in read_queue(self.ledger).values()]


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path)


def test_what_is_pending_is_written_under_its_id_once(queue):
    """requests.yaml holds each under the queue's id; written again, as after a crash, it is the same bytes and the same ids."""
    ids = queue.submit("cat", "lantern", "kettle")
    first, text = queue.write(), queue.path.read_bytes()
    again = queue.write()

    assert first.ids == first.added == tuple(ids) == tuple(load_requests(queue.path))
    assert (again.ids, again.added, again.refused) == (tuple(ids), (), {})
    assert queue.path.read_bytes() == text
    queue.at = NOW
    mark_drained(queue.ledger, again.ids, "drain", "run", HOUR)
    assert queue.write() == ((), (), {})


def test_what_was_withdrawn_or_can_be_is_not_written(queue):
    """A request withdrawn in time is never written, one whose window is still open not yet."""
    gone, ripe = queue.submit("cat", "lantern")
    withdraw(queue.ledger, gone, "ann", HOUR)
    queue.at = datetime.now(UTC)
    queue.submit("kettle")

    assert queue.write().ids == (ripe,)
    assert [r.target for r in load_requests(queue.path).values()] == ["lantern"]
    assert queue.states() == ["withdrawn", "accepted", "accepted"]


def test_one_that_was_added_by_hand_is_there_already(queue):
    """The same request under another id counts as written; nothing is added, and the queue's entry can be noted as drained."""
    (waiting,) = queue.submit("cat")
    by_hand = add_request(request("cat").model_dump(mode="json"), queue.path)
    written = queue.write()

    assert (written.ids, written.added) == ((waiting,), ())
    assert list(load_requests(queue.path)) == [by_hand]


def test_one_that_clashes_stays_and_the_others_go_on(queue):
    """A request whose name somebody took by hand since is refused with the reason, and stays in the queue; the others are written."""
    clash, fine, unknown = queue.submit("cat", "lantern", "kettle")
    add_request(request("dog", aliases=["cat"]).model_dump(mode="json"), queue.path)

    def check(requests):
        if any(r.target == "kettle" for r in requests.values()):
            raise UserError("kettle is unknown", "use another")

    written = queue.write(check=check)

    assert written.ids == (fine,)
    assert list(written.refused) == [clash, unknown]
    assert written.refused[unknown] == "kettle is unknown; use another"
    assert set(read_pending(queue.ledger, HOUR)) == {clash, fine, unknown}


def test_an_id_that_stands_there_with_another_content_is_refused(queue):
    """Somebody edited the request in requests.yaml before it was drained: what was asked for is not what would be trained."""
    (waiting,) = queue.submit("cat")
    add_request(request("lantern").model_dump(mode="json"), queue.path, request_id=waiting)

    assert "is in" in queue.write().refused[waiting]


def test_add_request_under_an_id(queue):
    """An id that is given is used; one that is taken or no id is refused and the file stays as it is."""
    add_request(request("cat").model_dump(mode="json"), queue.path, request_id="r-1")
    before = queue.path.read_bytes()
    with pytest.raises(UserError, match=r"request 'r-1' is in .*requests.yaml already; remove that one first"):
        add_request(request("dog").model_dump(mode="json"), queue.path, request_id="r-1")
    with pytest.raises(UserError):
        add_request(request("dog").model_dump(mode="json"), queue.path, request_id="../x")

    assert queue.path.read_bytes() == before
    assert remove_request("r-1", queue.path).target == "cat"
