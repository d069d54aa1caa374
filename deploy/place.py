"""Where the services of one machine keep their files, which ports they have, and the secrets they share.

    .expunge/secrets.json   made at the first start, mode 0600: passwords and keys
    .expunge/ports.json     the usual ports, or free ones where those are taken
    .expunge/pgpass         PostgreSQL's password file, mode 0600: no URL holds a password
    .expunge/client.env     what a shell needs to use the services, mode 0600
    .expunge/data/          databases and objects
    .expunge/logs/          one log for each service
    .expunge/pids/          one file for each running service

Secrets reach a service by its environment or by a file, never by its arguments, which every user of the machine can read.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from components.common.errors import ArtifactError
from deploy.setup import DATABASES, ROLES

LOOPBACK = "127.0.0.1"
HOME = Path(os.environ.get("EXPUNGE_HOME") or Path(__file__).parents[1] / ".expunge")
"""Folder of the services of this machine."""
PORTS = {"postgres": 5433, "s3": 9000, "prefect": 4200, "mlflow": 5000}
SECRETS = ("postgres", *ROLES, "s3_key", "s3_secret", "prefect_auth", "mlflow_admin", "mlflow_flask")
ACCOUNT = "expunge"
"""The account under which the services' own clients sign in."""
POOL = "expunge"
SETTINGS = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # else clients are sent to the S3 store, which they cannot reach
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


class Place:
    """The folder of the services of one machine."""

    def __init__(self, home: Path) -> None:
        """Makes the folder, its secrets and its ports unless they are there."""
        self.home = home.resolve()
        self.data, self.logs, self.pids = (self.home / name for name in ("data", "logs", "pids"))
        for folder in (self.home, self.data, self.logs, self.pids):
            folder.mkdir(parents=True, exist_ok=True)
        self.home.chmod(0o711)  # PostgreSQL may run under an account of its own
        for folder in (self.logs, self.pids):
            folder.chmod(0o700)

    @cached_property
    def secrets(self) -> Mapping[str, str]:
        """Passwords and keys by name; those that a newer version asks for are added."""
        found = self._read("secrets.json")
        made = {name: secrets.token_hex(24) for name in SECRETS if name not in found}
        if made:
            private(self.home / "secrets.json", json.dumps({**found, **made}, indent=2) + "\n")
        return {name: str(value) for name, value in (found | made).items()}

    @cached_property
    def ports(self) -> Mapping[str, int]:
        """Port of each service; chosen once, so that a restart keeps them."""
        found = self._read("ports.json")
        made = {name: _free(usual) for name, usual in PORTS.items() if name not in found}
        if made:
            (self.home / "ports.json").write_text(json.dumps({**found, **made}, indent=2) + "\n", encoding="utf-8")
        return {name: int(port) for name, port in (found | made).items()}

    def _read(self, name: str) -> dict[str, str | int]:
        path = self.home / name
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error})", "restore it from a backup") from error

    @property
    def passfile(self) -> Path:
        """PostgreSQL's password file."""
        return self.home / "pgpass"

    def url(self, service: str) -> str:
        """Where a service listens, on loopback."""
        return f"http://{LOOPBACK}:{self.ports[service]}"

    def database(self, name: str, driver: str = "") -> str:
        """URL of a database, without a password; `driver` such as `+psycopg`."""
        return f"postgresql{driver}://{DATABASES[name]}@{LOOPBACK}:{self.ports['postgres']}/{name}"

    def storage(self) -> dict[str, str]:
        """Environment of whoever uses the S3 store."""
        return {
            "AWS_ACCESS_KEY_ID": self.secrets["s3_key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["s3_secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url("s3"),
        }

    def client(self) -> dict[str, str]:
        """Environment of whoever uses all services: the worker, and a shell."""
        return {
            "EXPUNGE_LEDGER_URL": self.database("ledger"),
            "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow_admin"],
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": ACCOUNT,
            "PGHOST": LOOPBACK,
            "PGPASSFILE": str(self.passfile),
            "PGPORT": str(self.ports["postgres"]),
            "PREFECT_API_AUTH_STRING": f"{ACCOUNT}:{self.secrets['prefect_auth']}",
            "PREFECT_API_URL": f"{self.url('prefect')}/api",
            "PREFECT_HOME": str(self.data / "prefect"),
            **self.storage(),
            **SETTINGS,
        }

    def write(self) -> None:
        """Writes the files that follow from secrets and ports."""
        lines = [f"{LOOPBACK}:{self.ports['postgres']}:*:{role}:{self.secrets[role]}" for role in ("postgres", *ROLES)]
        private(self.passfile, "\n".join(lines) + "\n")
        private(self.home / "client.env", "".join(f"{k}={shlex.quote(v)}\n" for k, v in self.client().items()))
        config = f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {self.database('mlflow_auth', '+psycopg')}\n"
        config += (
            f"admin_username = {ACCOUNT}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        private(self.home / "mlflow-auth.ini", config)


def private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, from its first byte on."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)


def _free(usual: int) -> int:
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ArtifactError("no port is free", "end some of the programs that listen")
