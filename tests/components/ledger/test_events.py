import json
import multiprocessing
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

from components.common.errors import ArtifactError, StageError, UserError
from components.ledger import database
from components.ledger.events import EVENTS, Entry, Ledger
from components.ledger.params import LedgerParams

ROOT = Path(__file__).parents[3]
COLUMNS = list(EVENTS.c.keys())


def raw(url, *statements):
    """Runs SQL around the ledger's own code, in one transaction."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def without_triggers(url):
    names = ("events_no_update", "events_no_delete", "events_chain")
    if url.startswith("sqlite"):
        raw(url, *(f"DROP TRIGGER {name}" for name in names))
    else:
        raw(url, "ALTER TABLE events DISABLE TRIGGER ALL")


def filled(url, n=5):
    ledger = Ledger(url)
    for i in range(n):
        ledger.append("note.made", f"s{i}", "ann", {"i": i, "text": "é\u0000"})
    return ledger


def append_ten(url, name):
    ledger = Ledger(url)
    for i in range(10):
        ledger.append("note.made", f"p{name}", "ann", {"i": i})


def test_what_was_appended_is_read_back(url):
    """Events come back in order with their bodies, in UTC, as a chain; family and subject select; another opening sees them."""
    ledger = Ledger(url)
    before = datetime.now(UTC)
    first = ledger.append("request.accepted", "r-1", "ann", {"b": [1, "é"], "a": None})
    second = ledger.append("release.registered", "release/1", "bob", {})
    assert before <= first.at <= second.at <= datetime.now(UTC)
    assert first.at.utcoffset() == timedelta(0)
    assert second.prev_sha256 == first.sha256

    again = Ledger(url)
    assert again.events() == [first, second]
    assert first.body == {"b": [1, "é"], "a": None}
    assert again.events("request") == [first]
    assert again.events(subject="release/1") == [second]
    assert again.verify() == (2, second.sha256)


VALUES = f"'s', 'a', 'b', 'c.d', '{{}}', '{'0' * 64}', 'x')"
REFUSED = [
    "UPDATE events SET body = '{}'",
    "DELETE FROM events WHERE seq = 5",
    "TRUNCATE events",
    *(f"INSERT {how} INTO events VALUES ({seq}, {VALUES}" for how in ("", "OR REPLACE") for seq in (5, 6, 7)),  # noqa: S608 - the test's own values
]


@pytest.mark.parametrize("statement", REFUSED)
def test_the_database_refuses_changes(url, statement):
    """Raw SQL can neither update, delete, truncate nor replace an event, nor add one that does not continue the chain."""
    if url.startswith("sqlite") and "TRUNCATE" in statement:
        statement = "DELETE FROM events"
    if not url.startswith("sqlite"):
        statement = statement.replace(" OR REPLACE", "")
    ledger = filled(url)
    before = ledger.events()
    with pytest.raises(sa.exc.DatabaseError, match=r"append-only|does not continue the chain"):
        raw(url, statement)

    assert ledger.events() == before


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("seq", [1, 3, 5])
def test_a_changed_byte_is_found(url, column, seq):
    """With the triggers gone, another byte in any column of any event is found, and the event is named."""
    ledger = filled(url)
    without_triggers(url)
    value = "seq + 90" if column == "seq" else f"substr({column}, 1, length({column}) - 1) || '~'"
    raw(url, f"UPDATE events SET {column} = {value} WHERE seq = {seq}")  # noqa: S608 - the test's own values

    with pytest.raises(ArtifactError, match=f"^event {seq} of the ledger "):
        ledger.verify()


@pytest.mark.parametrize("value", ["X'ff00'", "CAST(X'ff00' AS TEXT)", "NULL", "7"])
def test_what_is_no_text_is_found(tmp_path, value):
    """Bytes, text that is not UTF-8, nothing and a number in SQLite are found as any other change."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = filled(url)
    without_triggers(url)
    raw(
        url,
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'events'",
    )
    raw(url, f"UPDATE events SET body = {value} WHERE seq = 3")  # noqa: S608 - the test's own values

    with pytest.raises(ArtifactError, match=r"^event 3 of the ledger was altered"):
        ledger.verify()


def test_a_missing_event_is_found(url):
    """An event cut out of the middle is missed; events cut off at the end are, against a head that was noted before."""
    ledger = filled(url)
    noted = ledger.verify()
    ledger.append("note.made", "s", "ann", {})
    assert ledger.verify(noted.sha256).seq == 6
    without_triggers(url)
    raw(url, "DELETE FROM events WHERE seq > 4")
    assert ledger.verify().seq == 4
    with pytest.raises(ArtifactError, match="its end is missing"):
        ledger.verify(noted.sha256)

    raw(url, "DELETE FROM events WHERE seq = 2")
    with pytest.raises(ArtifactError, match=r"^event 2 of the ledger is missing; the next is 3"):
        ledger.verify()


def test_of_two_writers_one_wins(url):
    """Of two that decided on the same events one appends, the other is told by whom; another family's events do not matter."""
    one, other = Ledger(url), Ledger(url)
    assert one.append("release.registered", "release/1", "ann", {}, expect=0).seq == 1
    one.append("request.accepted", "r-1", "ann", {})
    with pytest.raises(StageError, match=r"changed meanwhile: release.registered of release/1 by ann came first; look"):
        other.append("release.promoted", "release/1", "bob", {}, expect=0)

    assert other.append("release.promoted", "release/1", "bob", {}, expect=1).seq == 3


def test_all_or_nothing(url):
    """If the second of two entries is bad, the first is not appended either, and the ledger can still be written."""
    ledger = Ledger(url)
    for entry in (Entry("note.made", "UPPER CASE", {}), Entry("nokind", "s", {})):
        with pytest.raises(UserError, match="is no name"):
            ledger.record("note", "ann", lambda *_, e=entry: [Entry("note.made", "s", {}), e])
    for actor in ("", " ", "a\nb", "x" * 101):
        with pytest.raises(UserError, match="the actor"):
            ledger.append("note.made", "s", actor, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.append("note.made", "s", "ann", {"x": float("nan")})
    assert ledger.events() == []

    assert ledger.append("note.made", "s", "ann", {}).seq == 1


def test_time_never_goes_back(url):
    """A clock that is behind gives the time of the event before."""
    times = iter([datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)])
    ledger = Ledger(url, clock=lambda: next(times))

    assert [ledger.append("note.made", "s", "ann", {}).at.month for _ in range(3)] == [3, 3, 4]


def test_ten_processes_lose_nothing(url):
    """Ten processes that create the ledger and append ten events each at once lose none, and the chain is whole."""
    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=append_ten, args=(url, i)) for i in range(10)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 10

    ledger = Ledger(url)
    assert ledger.verify().seq == 100
    for i in range(10):
        assert [e.body["i"] for e in ledger.events(subject=f"p{i}")] == list(range(10))


@pytest.mark.postgres
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_writer_needs_two_rights(url):
    """On PostgreSQL a role that may only SELECT and INSERT appends; nobody but the owner can so much as try to drop a trigger."""
    filled(url).close()
    raw(
        url,
        "DROP ROLE IF EXISTS writer",
        "CREATE ROLE writer LOGIN",
        "GRANT SELECT, INSERT ON events TO writer",
        "GRANT SELECT ON ledger_version TO writer",
    )
    own = url.replace("postgres@", "writer@")
    try:
        ledger = Ledger(own)
        assert ledger.append("note.made", "s", "ann", {}).seq == 6
        assert ledger.verify().seq == 6
        ledger.close()
        for statement in ("DROP TRIGGER events_chain ON events", "DELETE FROM events", "TRUNCATE events"):
            with pytest.raises(sa.exc.DatabaseError, match=r"must be owner|permission denied"):
                raw(own, statement)
    finally:
        raw(url, "DROP OWNED BY writer", "DROP ROLE writer")


def test_a_newer_ledger_is_refused(url):
    """A ledger with a schema that this version does not know is refused in a sentence, and left as it is."""
    filled(url).close()
    raw(url, "UPDATE ledger_version SET version_num = '0999'")

    with pytest.raises(UserError, match=r"has version 0999, newer than 0001; install a newer expunge$"):
        Ledger(url)


def test_the_newest_schema_is_the_last_migration():
    """What the code takes for the newest schema is the head of the migrations."""
    config = Config()
    config.set_main_option("script_location", str(ROOT / "components/ledger/migrations"))

    assert ScriptDirectory.from_config(config).get_heads() == [database.NEWEST]


def test_migrated_columns_are_those_of_the_code(url):
    """The migrations make the table that the code reads and writes."""
    Ledger(url).close()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))

    assert [column["name"] for column in sa.inspect(engine).get_columns("events")] == COLUMNS
    engine.dispose()


def test_a_ledger_that_must_exist_is_not_made(url, tmp_path):
    """Who only reads makes no ledger, neither a file nor a table."""
    with pytest.raises(UserError, match="holds no ledger; submit a request first, or set EXPUNGE_LEDGER_URL"):
        Ledger(url, must_exist=True)

    assert list(tmp_path.iterdir()) == []
    filled(url).close()
    assert Ledger(url, must_exist=True).verify().seq == 5


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("nonsense", UserError, "the ledger's URL is none; set EXPUNGE_LEDGER_URL to one like sqlite:///ledger.db"),
        ("mysql://localhost/x", UserError, "the ledger cannot be kept in mysql; use an sqlite:// or"),
        ("sqlite:////nowhere/x.db", StageError, "the ledger sqlite:////nowhere/x.db cannot be used (unable to open"),
        ("postgresql://ann:secret@127.0.0.1:1/x", StageError, "//ann:***@127.0.0.1:1/x cannot be used (connection"),
    ],
)
def test_a_ledger_that_cannot_be_opened(url, kind, said):
    """A URL that is none, another database, a missing folder and an unreachable server are one sentence, without a password."""
    with pytest.raises(kind, match=re.escape(said)) as caught:
        Ledger(url)

    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path):
    """Any other file in the ledger's place is refused in a sentence and left alone."""
    (tmp_path / "x.db").write_text("hello " * 1000)
    with pytest.raises(ArtifactError, match=r"refuses .file is not a database.; if it is damaged"):
        Ledger(f"sqlite:///{tmp_path / 'x.db'}")

    assert (tmp_path / "x.db").read_text() == "hello " * 1000


def test_url(monkeypatch):
    """The variable goes before params.yaml, which may not hold a password."""
    monkeypatch.delenv(database.VARIABLE, raising=False)
    assert database.ledger_url("sqlite:///ledger.db") == "sqlite:///ledger.db"
    monkeypatch.setenv(database.VARIABLE, "sqlite:///other.db")
    assert database.ledger_url("sqlite:///ledger.db") == "sqlite:///other.db"
    with pytest.raises(ValueError, match=r"a password does not belong in params.yaml"):
        LedgerParams(url="postgresql://ann:secret@host/x", withdrawal_hours=24.0, four_eyes=False)


def test_events_are_json(url):
    """An event's record is JSON with the time that its hash covers."""
    event = filled(url, 1).events()[0]

    assert json.loads(json.dumps(event.record()))["at"] == event.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_a_full_disk_is_no_missing_database(tmp_path):
    """SQLite has no page left: the sentence names the ledger and says to free some space, and no event is half-written."""
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.append("request.accepted", "r-1", "ann", {"x": "y"})
    with pytest.raises(StageError) as error, database.transaction(ledger._engine, writes=True) as connection:  # noqa: PT012 - a full disk
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.exec_driver_sql("CREATE TABLE large AS SELECT randomblob(1000000) AS x")

    assert str(error.value).endswith("ledger.db cannot be written (database or disk is full); free some space")
    assert ledger.verify().seq == 1
