"""The ledger's schema, as alembic migrations; components/ledger/database.py runs them when it opens a ledger."""
