"""Ledgers on SQLite, and on a PostgreSQL of the tests' own where its programs are installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))
_NAMES = count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a fresh PostgreSQL that listens on a socket alone, with {} in the place of the database's name."""
    if not (PROGRAMS / "initdb").is_file() or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs Debian's postgresql and psycopg")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path is short
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "postgres")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    initdb = [PROGRAMS / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(initdb, check=True, **quiet, **user)
    server = [PROGRAMS / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"]
    process = subprocess.Popen(server, **quiet, **user)
    try:
        for _ in range(200):
            if subprocess.run([PROGRAMS / "pg_isready", "-q", "-h", folder], check=False).returncode == 0:
                break
            time.sleep(0.05)
        yield f"postgresql://postgres@/{{}}?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)  # ends the sessions that tests left open
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    import sqlalchemy as sa

    server, name = request.getfixturevalue("postgres"), f"ledger{next(_NAMES)}"
    admin = sa.create_engine(
        server.format("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return server.format(name)
