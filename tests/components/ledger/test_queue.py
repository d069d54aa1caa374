import threading
from datetime import UTC, datetime, timedelta

import pytest

from components.common.errors import ArtifactError, UserError
from components.ledger.events import Ledger
from components.ledger.queue import mark_drained, pending, read_queue, replay, submit, withdraw
from components.requests.requests import Request

DAY = timedelta(days=1)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def make(target, **more):
    return Request.model_validate({"target": target, "kind": "object", **more})


class Clock:
    """A clock that stands until it is moved."""

    now = START

    def __call__(self):
        """What time it is."""
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(url, clock):
    return Ledger(url, clock=clock)


def targets(ledger, at, window=DAY):
    return [request.target for request in pending(read_queue(ledger), at, window).values()]


def test_a_request_is_pending_after_its_window(ledger, clock):
    """Requests are pending in the order of acceptance, each once its own window is over and not a moment earlier."""
    (cat,) = submit(ledger, [make("cat")], {}, "ann")
    clock.now += timedelta(hours=1)
    submit(ledger, [make("dog"), make("owl")], {}, "ann")

    assert targets(ledger, START + DAY - timedelta(microseconds=1)) == []
    assert targets(ledger, START + DAY) == ["cat"]
    assert targets(ledger, START + DAY + timedelta(hours=1)) == ["cat", "dog", "owl"]
    assert targets(ledger, START, timedelta(0))[:1] == ["cat"]
    assert pending(read_queue(ledger), START + DAY, DAY) == {cat: make("cat")}


def test_a_withdrawn_request_is_never_pending(ledger, clock):
    """Within the window a request can be withdrawn once; then it is not pending at any time, and cannot be drained."""
    cat, dog = submit(ledger, [make("cat"), make("dog")], {}, "ann")
    clock.now += DAY - timedelta(microseconds=1)
    assert withdraw(ledger, cat, "ann", DAY) == make("cat")
    with pytest.raises(UserError, match="was withdrawn already"):
        withdraw(ledger, cat, "ann", DAY)
    clock.now += timedelta(days=400)

    assert targets(ledger, clock.now) == ["dog"]
    with pytest.raises(UserError, match=f"request {cat} was withdrawn; drain what is pending alone"):
        mark_drained(ledger, [dog, cat], "flow", "run-1", DAY)
    assert targets(ledger, clock.now) == ["dog"]


def test_it_is_too_late_after_the_window(ledger, clock):
    """At the window's end, when a request becomes pending, it can no longer be withdrawn; the sentence says until when it could."""
    (cat,) = submit(ledger, [make("cat")], {}, "ann")
    with pytest.raises(UserError, match="can still be withdrawn; drain what is pending alone"):
        mark_drained(ledger, [cat], "flow", "run-1", DAY)
    clock.now += DAY
    with pytest.raises(UserError, match=f"until 2026-03-02 12:00 UTC; once it is trained.*request remove {cat}$"):
        withdraw(ledger, cat, "ann", DAY)
    mark_drained(ledger, [cat], "flow", "run-1", DAY)

    with pytest.raises(UserError, match="has left the queue"):
        withdraw(ledger, cat, "ann", DAY)


def test_draining_can_be_repeated(ledger, clock):
    """A run that was killed notes the same requests again: what is drained already is skipped, nothing is pending twice."""
    ids = submit(ledger, [make("cat"), make("dog"), make("owl")], {}, "ann")
    clock.now += DAY

    assert mark_drained(ledger, ids[:2], "flow", "run-1", DAY) == ids[:2]
    assert mark_drained(ledger, [*ids, ids[2]], "flow", "run-1", DAY) == ids[2:]
    assert targets(ledger, clock.now) == []
    assert [item.state for item in read_queue(ledger).values()] == ["drained"] * 3


def test_an_equal_request_is_the_same(ledger, clock):
    """An equal request keeps its id: within one submission, in the queue and in requests.yaml; letters' case does not matter."""
    present = {"r-1": make("owl", aliases=["barn owl"])}
    ids = submit(ledger, [make("cat"), make("Cat "), make("owl", aliases=["Barn Owl"])], present, "ann")
    assert ids[0] == ids[1]
    assert ids[2] == "r-1"
    assert submit(ledger, [make("cat")], present, "bob") == ids[:1]
    assert len(ledger.events()) == 1

    clock.now += DAY
    mark_drained(ledger, ids[:1], "flow", "run-1", DAY)
    assert submit(ledger, [make("cat")], present | {ids[0]: make("cat")}, "ann") == ids[:1]
    assert submit(ledger, [make("cat")], present, "ann") != ids[:1]  # taken out of requests.yaml since


def test_a_withdrawn_request_can_be_made_again(ledger):
    """After a withdrawal an equal request is a new one with an id of its own."""
    (first,) = submit(ledger, [make("cat")], {}, "ann")
    withdraw(ledger, first, "ann", DAY)
    (second,) = submit(ledger, [make("cat")], {}, "ann")

    assert first != second
    assert targets(ledger, START + DAY) == ["cat"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (make("cat", anchor="fox"), "'cat' is a name of both"),
        (make("lion", aliases=["owl"]), "'owl' is a name of both"),
        (make("lion", anchor="cat"), "the anchor 'cat' of"),
    ],
)
def test_a_clash_is_refused(ledger, request_, said):
    """A request that clashes with the queue or with requests.yaml is refused with all that came with it."""
    submit(ledger, [make("cat")], {}, "ann")
    with pytest.raises(UserError, match=f"^the queue and requests.yaml.*{said}"):
        submit(ledger, [make("bear"), request_], {"r-1": make("owl")}, "ann")

    assert targets(ledger, START + DAY) == ["cat"]


@pytest.mark.parametrize("by_hand", [make("lynx", aliases=["lion"]), make("owl")])
def test_a_queued_request_that_clashes_since_hinders_no_other(ledger, by_hand):
    """requests.yaml was edited by hand and clashes with one of the queue: that one stays there, others are accepted, their own clashes not."""
    (lion,) = submit(ledger, [make("lion", anchor="owl")], {}, "ann")
    present = {"r-1": by_hand}
    submit(ledger, [make("bear")], present, "ann")
    assert targets(ledger, START + DAY) == ["lion", "bear"]
    assert submit(ledger, [make("lion", anchor="owl")], present, "ann") == [lion]
    for clashing in (make("wolf", aliases=["bear"]), make("wolf", aliases=[by_hand.target])):
        with pytest.raises(UserError, match="is a name of both"):
            submit(ledger, [clashing], present, "ann")


def test_dry_runs_change_nothing(ledger, clock):
    """A dry run of submit and withdraw refuses what the real one refuses, and appends nothing."""
    assert len(submit(ledger, [make("cat")], {}, "ann", dry_run=True)) == 1
    assert ledger.events() == []
    (cat,) = submit(ledger, [make("cat")], {}, "ann")
    assert withdraw(ledger, cat, "ann", DAY, dry_run=True) == make("cat")
    assert len(ledger.events()) == 1
    clock.now += DAY
    with pytest.raises(UserError, match="could be withdrawn until"):
        withdraw(ledger, cat, "ann", DAY, dry_run=True)


@pytest.mark.parametrize("name", ["withdraw", "drain"])
def test_an_unknown_request_is_named(ledger, name):
    """What was never accepted can neither be withdrawn nor drained, and the sentence lists what is waiting."""
    (cat,) = submit(ledger, [make("cat")], {}, "ann")
    with pytest.raises(UserError, match=f"request 'r-0' is not in the queue; use one of: {cat}"):
        withdraw(ledger, "r-0", "ann", DAY) if name == "withdraw" else mark_drained(ledger, ["r-0"], "flow", "run", DAY)


def test_an_event_about_nothing_is_refused(ledger):
    """A withdrawal of a request that was never accepted, written around the rules, is no state at all."""
    ledger.append("request.withdrawn", "r-0", "eve", {})
    with pytest.raises(ArtifactError, match="event 1 is about request r-0, never accepted"):
        replay(ledger.events())


def test_fifty_submissions_at_once(url):
    """Fifty writers at once, two for each of 25 targets, leave 25 requests, and both of a pair are given one id."""
    Ledger(url).close()
    found = {}

    def one(i):
        own = Ledger(url)
        found[i] = submit(own, [make(f"target {i % 25}")], {}, "ann")
        own.close()

    threads = [threading.Thread(target=one, args=(i,)) for i in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert all(found[i] == found[i + 25] for i in range(25))
    ledger = Ledger(url)
    assert len(read_queue(ledger)) == ledger.verify().seq == 25
