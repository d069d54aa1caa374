import re
import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.common.errors import ArtifactError, ExpungeError, StageError, UserError
from components.ledger import releases
from components.ledger.events import START as NO_HASH
from components.ledger.events import Event, Ledger
from components.ledger.releases import FINAL, History, apply, read_history, replay

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
GATES = ("ira", "cra")
ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64
DIGESTS = {1: ONE, 2: TWO, 3: THREE}


class Story:
    """A history in the making: decisions by name, a day after one another."""

    def __init__(self):
        self.events, self.history = [], History()

    def say(self, rule, *arguments, by="ann", **more):
        """Makes a decision and puts it into the history."""
        entry = getattr(releases, rule)(self.history, *arguments, **more)
        at = START + DAY * len(self.events)
        event = Event(len(self.events) + 1, entry.subject, at, by, entry.kind, dict(entry.body), NO_HASH, NO_HASH)
        self.events.append(event)
        self.history = apply(self.history, event)
        return self

    def served(self, *versions):
        """Registers, approves and promotes versions."""
        for version in versions:
            digest = DIGESTS[version]
            self.say("registration", version, digest, "pass").say("approval", version, digest, "bob", by="bob")
            self.say("promotion", version, digest, START)
        return self

    def states(self):
        """The state of each version."""
        return [self.history.state(version) for version in sorted(self.history.releases)]


def test_from_registration_to_champion_and_back():
    """Two versions are promoted and the second rolled back: champion, previous, states and aliases follow, at every date."""
    story = Story()
    assert story.history.aliases() == {}
    story.say("registration", 1, ONE, "pass")
    assert story.states() == ["registered"]
    story.say("approval", 1, ONE, "bob", by="bob")
    assert story.states() == ["approved"]
    story.say("promotion", 1, ONE, START)
    assert (story.states(), story.history.champion, story.history.previous) == (["champion"], 1, None)
    story.served(2).say("registration", 3, THREE, "fail")
    assert story.states() == ["previous", "champion", "registered"]
    assert story.history.aliases() == {"candidate": 3, "champion": 2, "previous": 1}
    story.say("rollback", 1, ONE)
    assert story.states() == ["champion", "retired", "registered"]
    assert story.history.aliases() == {"candidate": 3, "champion": 1}

    champions = [replay(story.events, event.at).champion for event in story.events]
    assert champions == [None, None, 1, 1, 1, 2, 2, 1]
    assert replay(story.events, START - DAY) == History()
    assert replay(story.events, START + 5 * DAY - timedelta(microseconds=1)).champion == 1


def test_a_rollback_goes_one_further_back_each_time():
    """After a rollback `previous` is the champion before that one, never the version just left; a rejected one is passed over."""
    story = Story().served(1, 2, 3)
    assert story.history.previous == 2
    assert Story().served(1, 2, 3).say("rejection", 2, "bad").history.previous == 1
    story.say("rollback", 2, TWO)
    assert (story.history.champion, story.history.previous) == (2, 1)
    story.say("rollback", 3, THREE)
    assert (story.history.champion, story.history.previous) == (3, 2)
    story.say("rollback", 1, ONE)
    assert (story.history.champion, story.history.previous) == (1, None)


def test_a_rejection_takes_approvals_away():
    """A rejected version can be neither promoted nor rolled back to, until it is approved anew."""
    story = Story().served(1, 2).say("rejection", 1, "draws  cats\nagain")
    assert story.events[-1].body == {"version": 1, "reason": "draws cats again"}
    assert story.states() == ["rejected", "champion"]
    with pytest.raises(UserError, match="version 1 was rejected since; approve it first"):
        story.say("rollback", 1, ONE)
    with pytest.raises(UserError, match="version 1 was rejected; approve it first"):
        story.say("promotion", 1, ONE, START)
    story.say("approval", 1, ONE, "bob", by="bob")

    assert Story.states(story) == ["previous", "champion"]
    assert story.say("rollback", 1, ONE).history.champion == 1


def test_four_eyes():
    """With four eyes the submitter's own approval is refused and, given without, does not count, whatever its letters' case."""
    story = Story().say("registration", 1, ONE, "pass", by="Ann")
    with pytest.raises(UserError, match=r"^ann submitted version 1 and cannot approve it; ask someone else$"):
        story.say("approval", 1, ONE, "ann", four_eyes=True)
    story.say("approval", 1, ONE, "ANN", by="ANN")
    with pytest.raises(UserError, match=r"version 1 is not approved by anyone but its submitter; approve it: expunge"):
        story.say("promotion", 1, ONE, START, four_eyes=True)
    story.say("approval", 1, ONE, "bob", by="bob")

    assert story.say("promotion", 1, ONE, START, four_eyes=True).history.champion == 1


def test_a_failed_verdict_needs_an_override_in_force():
    """A release with the verdict fail is promoted only while somebody answers for a gate on utility."""
    story = Story().say("registration", 1, ONE, "fail").say("approval", 1, ONE, "bob", by="bob")
    with pytest.raises(UserError, match="version 1 has the verdict fail"):
        story.say("promotion", 1, ONE, START)
    story.say("override", 1, "ira", "due by law", START + 9 * DAY, START, GATES)
    assert story.history.releases[1].overrides == (("ira", "ann", "due by law", START + 9 * DAY),)
    with pytest.raises(UserError, match="version 1 has the verdict fail"):
        story.say("promotion", 1, ONE, START + 9 * DAY)

    assert story.say("promotion", 1, ONE, START + 8 * DAY).history.champion == 1


@pytest.mark.parametrize(
    ("rule", "arguments", "said"),
    [
        ("registration", (0, ONE, "pass"), "version 0, digest"),
        ("registration", (4, "1" * 63, "pass"), "are no release; give a positive version, a SHA-256"),
        ("registration", (4, ONE, "passed"), "verdict 'passed' are no release"),
        ("registration", (1, ONE, "pass"), "version 1 is registered already; register the next"),
        ("approval", (9, ONE, "bob"), "version 9 is not registered; use one of: 1, 2, 3"),
        ("approval", (2, TWO, "bob"), "version 2 is the champion; there is nothing to approve"),
        ("approval", (1, ONE, "Bob"), "Bob has approved version 1 already"),
        ("approval", (3, ONE, "bob"), "version 3 was registered with digest 333333333333, not 111111111111; decide on"),
        ("rejection", (2, "bad"), "version 2 is the champion; roll back or promote"),
        ("rejection", (3, " "), "the reason is empty; say why"),
        ("promotion", (3, THREE, START), "version 3 is not approved; approve it: expunge release approve 3"),
        ("promotion", (1, TWO, START), "version 1 was registered with digest 111111111111, not 222222222222"),
        ("promotion", (2, TWO, START), "version 2 is the champion already"),
        ("rollback", (3, THREE), "version 3 was never champion; promote it"),
        ("rollback", (2, TWO), "version 2 is the champion already"),
        ("rollback", (1, THREE), "version 1 was registered with digest"),
        ("override", (1, "ua", "late", START + DAY, START, GATES), "gate 'ua' cannot be overridden; use one on utility: cra, ira"),
        ("override", (1, "ira", "late", START, START, GATES), "the override ends at 2026-03-01T12:00:00+00:00; give a date"),
        ("override", (1, "ira", "late", datetime(2030, 1, 1), START, GATES), "the override ends at 2030"),  # noqa: DTZ001 - the mistake
        ("override", (1, "ira", "", START + DAY, START, GATES), "the reason is empty"),
    ],
)  # fmt: skip
def test_what_is_refused(rule, arguments, said):
    """Each decision that does not make sense is one sentence with what to do instead, and changes nothing."""
    story = Story().served(1, 2).say("registration", 3, THREE, "pass")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        story.say(rule, *arguments)

    assert "\n" not in str(caught.value)
    assert len(story.events) == 7


def test_a_stale_digest_approves_nothing():
    """An approval of another digest, written around the rules, does not count."""
    story = Story().say("registration", 1, ONE, "pass")
    forged = Event(2, "release/1", START, "eve", "release.approved", {"version": 1, "digest": TWO}, NO_HASH, NO_HASH)

    assert apply(story.history, forged).state(1) == "registered"


def test_an_event_about_nothing_is_refused():
    """An event about a version that was never registered is no history."""
    forged = Event(1, "release/1", START, "eve", "release.promoted", {"version": 1, "digest": ONE}, NO_HASH, NO_HASH)
    with pytest.raises(ArtifactError, match="event 1 is about version 1, never registered"):
        replay([forged])


def test_of_two_promotions_at_once_one_wins(url):
    """Two that decided on the same history: the first promotes, the second is told; requests in between disturb nobody."""
    ledger = Ledger(url)
    for event in Story().served(1, 2).events[:2] + Story().served(1, 2).events[3:5]:
        ledger.append(event.kind, event.subject, event.actor, event.body)
    one, other = read_history(ledger), read_history(ledger)
    ledger.append("request.accepted", "r-1", "ann", {})
    releases.append(ledger, one, releases.promotion(one, 1, ONE, START), "ann")
    with pytest.raises(StageError, match=r"release.promoted of release/1 by ann came first; look again and repeat"):
        releases.append(ledger, other, releases.promotion(other, 2, TWO, START), "bob")

    assert read_history(ledger).champion == 1
    assert read_history(ledger, START).champion is None  # the ledger's own clock is later


NAMES = ["approval", "promotion", "promotion", "rollback", "rollback", "rejection", "override", "registration"]
STEP = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([1, 1, 2, 2, 3]),  # version
    st.sampled_from([None, None, None, None, None, ONE, TWO]),  # digest; None is the right one
    st.sampled_from(["ann", "bob", "Bob", "carl", "dora"]),  # who
    st.sampled_from(["pass", "pass", "fail"]),  # verdict
    st.sampled_from([0, 0, 0, 0, 0, 0, 1, 3]),  # how many decisions ago the history was read
)
APPROVED, FAILED, ALONE = (
    [("registration", 1, None, "ann", "pass", 0), ("registration", 2, None, "ann", verdict, 0)]
    + [("approval", v, None, who, "pass", 0) for v in (1, 2)]
    for verdict, who in (("pass", "bob"), ("fail", "bob"), ("pass", "ann"))
)
SERVED = [*APPROVED, *(("promotion", v, None, "bob", "pass", 0) for v in (1, 2))]
STEPS = st.tuples(
    st.sampled_from([[], FAILED, ALONE, APPROVED, SERVED]), st.lists(STEP, min_size=25, max_size=35)
).map(lambda parts: parts[0] + parts[1])  # fmt: skip


@pytest.fixture
def template():
    """An empty ledger to copy, in memory where the system has files there: thousands of commits wait for no disk."""
    memory = Path("/dev/shm")  # noqa: S108 - a fresh folder is made in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        Ledger(f"sqlite:///{folder}/empty.db").close()
        yield Path(folder) / "empty.db"


def oracle(events, four_eyes):
    """An independent look at a ledger: every promotion and rollback has its evidence in the raw events before it."""
    for i, event in enumerate(events):
        before = [e for e in events[:i] if e.body["version"] == event.body["version"]]
        if event.kind not in ("release.promoted", "release.rolled_back"):
            continue
        (registered,) = [e for e in before if e.kind == "release.registered"]
        assert event.body["digest"] == registered.body["digest"]
        rejected = max((e.seq for e in before if e.kind == "release.rejected"), default=0)
        if event.kind == "release.rolled_back":
            served = [e.seq for e in before if e.kind in ("release.promoted", "release.rolled_back")]
            assert served
            assert max(served) > rejected or any(e.kind == "release.approved" and e.seq > rejected for e in before)
            continue
        approved = [e for e in before if e.kind == "release.approved" and e.body["digest"] == event.body["digest"]]
        assert [
            e for e in approved
            if e.seq > rejected and not (four_eyes and e.actor.casefold() == registered.actor.casefold())
        ]  # fmt: skip
        assert registered.body["verdict"] == "pass" or any(e.kind == "release.overridden" for e in before)


def to_champion(history, version, now):
    """The decisions by a newcomer that make a version champion, each allowed by its rule."""
    digest = history.releases[version].digest

    def say(entry):
        nonlocal history
        event = Event(history.seq + 1, entry.subject, now, "carol", entry.kind, dict(entry.body), NO_HASH, NO_HASH)
        history = apply(history, event)

    if "rollback" in releases.actions(history, version, now):
        say(releases.rollback(history, version, digest))
    else:
        if "carol" not in history.releases[version].approvers:
            say(releases.approval(history, version, digest, "carol", four_eyes=True))
        if history.releases[version].verdict == "fail":
            say(releases.override(history, version, "ira", "due", now + DAY, now, GATES))
        say(releases.promotion(history, version, digest, now, four_eyes=True))
    return history.champion


def test_generated_histories(template):
    """In 200 histories of decisions in any order, on stale digests and stale readings, none promotes without digest and approval.

    After each decision the state grown event by event is that of a replay from scratch, an action leads on from each version that is not
    final, and a way leads from it to champion.
    """
    path, happened = template.with_name("copy.db"), Counter()

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS, four_eyes=st.booleans())
    def run(steps, four_eyes):
        shutil.copy(template, path)
        ledger = Ledger(f"sqlite:///{path}")
        said, grown, readings = [], History(), [History()]
        for rule, version, stale, who, verdict, ago in steps:
            digest = stale or DIGESTS[version]
            seen, now = readings[max(0, len(readings) - 1 - ago)], datetime.now(UTC)
            arguments = {
                "registration": (DIGESTS[version], verdict),
                "approval": (digest, who),
                "promotion": (digest, now),
                "rejection": ("bad",),
                "rollback": (digest,),
                "override": ("ira", "due", now + DAY, now, GATES),
            }[rule]
            eyes = {"four_eyes": four_eyes} if rule == "promotion" else {}  # as if it was asked for after the approvals
            try:
                event = releases.append(ledger, seen, getattr(releases, rule)(seen, version, *arguments, **eyes), who)
            except ExpungeError as error:
                happened[type(error).__name__] += 1
                continue
            happened[event.kind] += 1
            said.append(event)
            grown = apply(grown, event)
            readings.append(grown)
            assert grown == replay(said)
            for other in grown.releases:
                if grown.state(other) not in FINAL:
                    assert releases.actions(grown, other, now, four_eyes=four_eyes)
                    assert to_champion(grown, other, now) == other
            assert grown.previous is None or "rollback" in releases.actions(grown, grown.previous, now)
        assert ledger.verify().seq == len(said)
        assert ledger.events() == said
        oracle(said, four_eyes)
        ledger.close()

    run()
    assert happened.total() > 2000
    for name in ("registered", "approved", "rejected", "overridden", "promoted", "rolled_back"):
        assert happened[f"release.{name}"] > 20, happened
    assert happened["StageError"] > 20, happened
    assert happened["UserError"] > 20, happened
