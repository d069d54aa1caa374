"""The ledger's database: SQLite or PostgreSQL by URL, brought to the newest schema when it is opened.

Writers take turns: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock that ends with the transaction, for which a
role needs no more than SELECT and INSERT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from components.common.errors import ArtifactError, StageError, TransientError, UserError

VARIABLE = "EXPUNGE_LEDGER_URL"
UNCONFIGURED = "sqlite:///ledger.db"
"""Where a ledger is looked for beside no params.yaml."""
NEWEST = "0001"
VERSIONS = sa.table("ledger_version", sa.column("version_num"))
"""Alembic's table, under a name of its own: a database may hold MLflow's tables too."""
_WRITER = 0x6578_7075_6E67_65  # number of the advisory lock: "expunge"
_FULL = re.compile(r"is full|No space left|quota exceeded", re.IGNORECASE)
"""What SQLite and PostgreSQL say of a full disk."""
_PATIENCE = 30.0  # seconds that a writer waits for the others
_ANSWER = 10  # seconds that PostgreSQL may take to answer a connection


class NoLedgerError(UserError):
    """There is no ledger yet where one must be."""


def ledger_url(configured: str, root: Path = Path()) -> str:
    """EXPUNGE_LEDGER_URL if it is set, else that of params.yaml (`configured`); a relative path of SQLite's starts in `root`."""
    text = os.environ.get(VARIABLE) or configured
    url = _checked(text)
    if not url.drivername.startswith("sqlite") or url.database in (None, "", ":memory:"):
        return text
    return url.set(database=str(root / url.database)).render_as_string(hide_password=False)


def database_file(text: str) -> Path | None:
    """The file of a SQLite URL; None for another database, or one in memory."""
    url = _checked(text)
    is_file = url.drivername.startswith("sqlite") and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if is_file else None


def connect(text: str, *, must_exist: bool = False) -> sa.Engine:
    """The database at a URL, with the newest schema.

    `UserError` if the URL is none that the ledger can use or the database was written by a newer version, `NoLedgerError` if
    there is none but it `must_exist`; `TransientError` if it cannot be reached.
    """
    url = _checked(text)
    if must_exist and url.drivername.startswith("sqlite") and not Path(url.database or "").is_file():
        raise _no_ledger(url)
    engine = _engine(url)
    with transaction(engine, writes=False) as connection:
        found = _version(connection)
    if found is None and must_exist:
        raise _no_ledger(url)
    if found != NEWEST:
        with transaction(engine, writes=True) as connection:
            _migrate(connection, _version(connection), url)  # another process may have been first
    return engine


@contextmanager
def transaction(engine: sa.Engine, *, writes: bool) -> Iterator[sa.Connection]:
    """One transaction, alone among writers if it `writes`; a database that fails is a `TransientError` or an `ArtifactError`."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        with engine.connect().execution_options(writes=writes) as connection, connection.begin():
            if writes and connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER)))
            yield connection
    except exc.OperationalError as error:
        if _FULL.search(str(error.orig)):
            raise StageError(
                f"the ledger {where} cannot be written ({_first_line(error)})", "free some space"
            ) from error
        raise TransientError(
            f"the ledger {where} cannot be used ({_first_line(error)})", f"start its database or mend {VARIABLE}"
        ) from error
    except exc.DatabaseError as error:
        raise ArtifactError(
            f"the ledger {where} refuses ({_first_line(error)})", "if it is damaged, restore it from a backup"
        ) from error


def _checked(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except exc.ArgumentError as error:
        raise UserError("the ledger's URL is none", f"set {VARIABLE} to one like sqlite:///ledger.db") from error
    kind = url.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UserError(f"the ledger cannot be kept in {kind}", "use an sqlite:// or postgresql:// URL")
    return url.set(drivername="postgresql+psycopg") if kind == "postgresql" else url


def _engine(url: sa.URL) -> sa.Engine:
    if not url.drivername.startswith("sqlite"):
        try:
            return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": _ANSWER})
        except ModuleNotFoundError as error:
            raise UserError(
                "the ledger's driver for PostgreSQL is missing", "install it: pip install 'expunge[postgres]'"
            ) from error
    engine = sa.create_engine(url, connect_args={"timeout": _PATIENCE})

    @event.listens_for(engine, "connect")
    def _(connection: Any, _record: object) -> None:  # noqa: ANN401 - whatever the driver has
        connection.isolation_level = None  # else the driver begins a transaction late, and not for a schema
        connection.text_factory = lambda raw: raw.decode(
            "utf-8", "surrogateescape"
        )  # altered bytes are for verify to find

    @event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSIONS.name):
        return None
    return connection.execute(sa.select(VERSIONS.c.version_num)).scalar_one()


def _migrate(connection: sa.Connection, found: str | None, url: sa.URL) -> None:
    from alembic import command  # noqa: PLC0415 - slow to import, and seldom needed
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes.update(connection=connection, version_table=VERSIONS.name)
    if found not in {None, *(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())}:
        where = url.render_as_string(hide_password=True)
        raise UserError(f"the ledger {where} has version {found}, newer than {NEWEST}", "install a newer expunge")
    command.upgrade(config, NEWEST)


def _no_ledger(url: sa.URL) -> NoLedgerError:
    where = url.render_as_string(hide_password=True)
    return NoLedgerError(f"{where} holds no ledger", f"submit a request first, or set {VARIABLE} to where it is")


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
