"""Databases, roles and buckets that the services need; what is there stays, passwords become those that are given.

`python -m deploy.setup` makes them for compose.yaml, from the environment, once PostgreSQL and S3 answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

DATABASES = {"ledger": "ledger", "mlflow": "mlflow", "mlflow_auth": "mlflow", "prefect": "prefect"}
"""PostgreSQL databases and the role that owns each."""
ROLES = tuple(sorted(set(DATABASES.values())))
BUCKETS = ("mlflow", "dvc")
"""MLflow's artifacts, and the DVC remote."""


def make_databases(host: str, port: int, admin_password: str, passwords: Mapping[str, str]) -> None:
    """Makes roles and databases as the superuser `postgres`; nobody but its owner may connect to one."""
    import psycopg  # noqa: PLC0415 - buckets need none
    from psycopg import sql  # noqa: PLC0415
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    where = make_conninfo(host=host, port=port, user="postgres", dbname="postgres")
    with psycopg.connect(where, password=admin_password, autocommit=True) as connection:
        roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
        databases = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for role in ROLES:
            verb = sql.SQL("ALTER" if role in roles else "CREATE")
            query = sql.SQL("{} ROLE {} LOGIN PASSWORD {}")
            secret = verifier(connection, role, passwords[role])
            connection.execute(query.format(verb, sql.Identifier(role), sql.Literal(secret)))
        for name, owner in DATABASES.items():
            if name not in databases:
                query = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(query.format(sql.Identifier(name), sql.Identifier(owner)))
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def verifier(connection: psycopg.Connection, role: str, password: str) -> str:
    """What PostgreSQL keeps of a password (SCRAM-SHA-256); a statement that fails is written to its log, but not with the password."""
    return connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()


def make_buckets(endpoint: str, key: str, secret: str, buckets: Sequence[str] = BUCKETS) -> None:
    """Makes the buckets of the S3 store that are not there."""
    import boto3  # noqa: PLC0415 - databases need none

    login = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **login)
    found = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in buckets:
        if name not in found:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    known = os.environ
    make_databases("postgres", 5432, known["PGPASSWORD"], {role: known[f"{role.upper()}_PASSWORD"] for role in ROLES})
    make_buckets(known["AWS_ENDPOINT_URL"], known["AWS_ACCESS_KEY_ID"], known["AWS_SECRET_ACCESS_KEY"])
