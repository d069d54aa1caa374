"""The table of events, and triggers that refuse to change it.

The database itself refuses UPDATE, DELETE and TRUNCATE, and an event that does not continue the chain. SQLite's
`INSERT OR REPLACE` deletes without a delete trigger; the insert trigger stops it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_REFUSED = "the ledger is append-only"
_BROKEN = "the event does not continue the chain of the ledger"
_BREAKS = (
    "NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM events) OR NEW.prev_sha256 <> "
    "COALESCE((SELECT sha256 FROM events ORDER BY seq DESC LIMIT 1), '" + "0" * 64 + "')"
)

_SQLITE = (
    f"CREATE TRIGGER events_no_update BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END",
    f"CREATE TRIGGER events_no_delete BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, '{_REFUSED}'); END",
    f"CREATE TRIGGER events_chain BEFORE INSERT ON events WHEN {_BREAKS} BEGIN SELECT RAISE(ABORT, '{_BROKEN}'); END",
)
_FUNCTION = "RETURNS trigger LANGUAGE plpgsql AS"
_POSTGRESQL = (
    f"CREATE FUNCTION events_refuse() {_FUNCTION} $$ BEGIN RAISE EXCEPTION '{_REFUSED}'; END $$",
    f"CREATE FUNCTION events_continue() {_FUNCTION} $$ BEGIN IF {_BREAKS} THEN RAISE EXCEPTION '{_BROKEN}'; END IF; RETURN NEW; END $$",
    "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION events_refuse()",
    "CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION events_refuse()",
    "CREATE TRIGGER events_chain BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION events_continue()",
)


def upgrade() -> None:
    """Creates the table, its index and its triggers."""
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("prev_sha256", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False, unique=True),
    )
    op.create_index("events_subject", "events", ["subject"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
