"""New passwords and keys for the services of one machine: `python -m deploy.rotate`, while they run; `make up` then starts them anew.

MLflow and PostgreSQL are told the new passwords before the old ones are forgotten. Both are in `secrets.next.json` until that is done, so
that a rotation that was stopped half-way is finished by the next.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

from components.common.errors import ExpungeError, StageError
from deploy import processes
from deploy.place import ACCOUNT, HOME, LOOPBACK, SECRETS, Place, private
from deploy.services import services
from deploy.setup import ROLES, verifier


def rotate(place: Place) -> None:
    """Replaces every secret and ends the services; `StageError` if PostgreSQL or MLflow refuse both the old and the new password."""
    waiting = place.home / "secrets.next.json"
    if not waiting.exists():
        private(waiting, json.dumps({name: secrets.token_hex(24) for name in SECRETS}, indent=2) + "\n")
    new = json.loads(waiting.read_text(encoding="utf-8"))
    _mlflow(place, [place.secrets["mlflow_admin"], new["mlflow_admin"]])
    _postgres(place, [place.secrets["postgres"], new["postgres"]], new)
    waiting.replace(place.home / "secrets.json")


def _mlflow(place: Place, known: list[str]) -> None:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - slow to import
    from mlflow.server.auth.client import AuthServiceClient  # noqa: PLC0415

    for password in known:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": ACCOUNT, "MLFLOW_TRACKING_PASSWORD": password}
        server = AuthServiceClient(place.url("mlflow"))
        try:
            if password == known[-1]:
                server.get_user(ACCOUNT)  # it has the new one already
            else:
                server.update_user_password(ACCOUNT, known[-1], current_password=password)
        except MlflowException:
            continue
        return
    raise StageError(f"MLflow at {place.url('mlflow')} refuses the old password and the new one", "start it: make up")


def _postgres(place: Place, known: list[str], new: dict[str, str]) -> None:
    import psycopg  # noqa: PLC0415 - slow to import
    from psycopg import sql  # noqa: PLC0415
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    where = make_conninfo(host=LOOPBACK, port=place.ports["postgres"], user="postgres", dbname="postgres")
    for password in known:
        try:
            with psycopg.connect(where, password=password) as connection:
                for role in ("postgres", *ROLES):
                    query = sql.SQL("ALTER ROLE {} PASSWORD {}")
                    secret = verifier(connection, role, new[role])
                    connection.execute(query.format(sql.Identifier(role), sql.Literal(secret)))
        except psycopg.OperationalError:
            continue
        return
    raise StageError("PostgreSQL refuses the old password and the new one", "start it: make up")


def main() -> int:
    """The command line; returns its exit status."""
    place = Place(HOME)
    try:
        with processes.one_at_a_time(place):
            rotate(place)
            processes.down(place, services(place, Path.cwd()))
    except ExpungeError as error:
        sys.stderr.write(f"expunge: {error}\n")
        return error.exit_code
    sys.stdout.write("every secret is new and the services are down; start them: make up\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
