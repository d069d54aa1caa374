import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from components.common.errors import StageError
from deploy import processes
from deploy.place import LOOPBACK, SECRETS, Place
from deploy.prefect_yaml import FILE, text
from deploy.services import Service, services
from deploy.worker import Run, stale

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
EXAMPLE = (DEPLOY / ".env.example").read_text()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "home")


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def sleeper(name, seconds=60, **fields):
    program = f"import subprocess, time; c = subprocess.Popen(['sleep', '{seconds}']); time.sleep({seconds})"
    return Service(name, fields.pop("needs", ()), [sys.executable, "-c", program], {}, lambda: True, **fields)


def test_compose_follows_the_compose_specification():
    """compose.yaml is valid under the schema that Docker publishes."""
    program = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*program, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_compose_waits_for_health_and_is_reached_on_loopback_alone():
    """Each dependency is waited for until it is healthy or done; PostgreSQL and S3 publish no port, the others on loopback by default."""
    found = COMPOSE["services"]
    for service in found.values():
        for name, how in service.get("depends_on", {}).items():
            assert how["condition"] == ("service_completed_successfully" if name == "setup" else "service_healthy")
            assert name == "setup" or found[name]["healthcheck"]["test"]
    ports = {name: service.get("ports", []) for name, service in found.items()}
    assert {name for name, listed in ports.items() if listed} == {"prefect-server", "mlflow"}
    assert all(port.startswith("${EXPUNGE_LISTEN:-127.0.0.1}:") for listed in ports.values() for port in listed)
    assert "EXPUNGE_LISTEN=127.0.0.1\n" in EXAMPLE


def test_compose_has_no_secret_and_starts_without_none():
    """Every secret comes from deploy/.env, which git does not have; one that is not set is refused; the example has none."""
    named = re.findall(r"\$\{([A-Z0-9_]+)(:[-?][^}]*)?\}", (DEPLOY / "compose.yaml").read_text())
    secret = {name for name, rest in named if rest.startswith(":?")}
    free = {name for name, rest in named if not rest.startswith(":?")}

    assert free == {"EXPUNGE_IMAGE", "EXPUNGE_LISTEN", "EXPUNGE_PROJECT", "EXPUNGE_UID", "EXPUNGE_GID"}
    assert {line[:-1] for line in EXAMPLE.splitlines() if line.endswith("=")} == secret
    ignored = subprocess.run(
        ["git", "check-ignore", "deploy/.env", ".expunge/secrets.json"], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode == 0
    assert ignored.stdout.count(b"\n") == 2


def test_images_are_pinned_by_digest_and_run_without_root():
    """Images of others have a digest; our own image ends with a user that is not root, and copies nothing but what .dockerignore allows."""
    foreign = [s["image"] for s in COMPOSE["services"].values() if not s["image"].startswith("${EXPUNGE_IMAGE")]
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    lines = dockerfile.splitlines()

    assert len(foreign) == 2
    assert all(re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", image) for image in foreign)
    assert re.search(r"^ARG PYTHON=\S+@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
    assert [line.split()[1] for line in lines if line.startswith("USER")][-1] not in ("root", "0")
    assert "torch==2.13.0" in dockerfile
    assert "torch==2.13.0" in (ROOT / "pyproject.toml").read_text()
    copied = {word for line in lines if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert not re.search(r"(?i)(password|secret|token)\s*=", dockerfile)


def test_prefect_yaml_is_the_table_of_deployments():
    """deploy/prefect.yaml says what flows/deployments.py says; `python -m deploy.prefect_yaml` writes it."""
    assert FILE.read_text() == text(ROOT)


def test_services_listen_on_loopback_unless_told_to(place):
    """PostgreSQL, S3 and the worker never leave loopback; Prefect and MLflow do where they are told to, and no further."""
    near, far = services(place, ROOT), services(place, ROOT, "10.1.2.3")

    assert {s.listen for s in near} == {LOOPBACK}
    assert {s.name for s in far if s.listen != LOOPBACK} == {"prefect", "mlflow"}
    for service in near:
        told = json.dumps([service.command, dict(service.environment)])
        assert "0.0.0.0" not in told  # noqa: S104
        assert "[::]" not in told
    postgres = next(s for s in near if s.name == "postgres")
    assert f"listen_addresses={LOOPBACK}" in postgres.command
    assert "unix_socket_directories=" in postgres.command


def test_no_secret_is_in_arguments_urls_or_files_that_others_read(place):
    """Secrets reach services by environment or by files of mode 0600; no URL holds one; two homes have different ones."""
    place.write()
    values = set(place.secrets.values())

    assert set(place.secrets) == set(SECRETS)
    assert len(values) == len(SECRETS)
    for service in services(place, ROOT):
        assert not any(secret in word for word in service.command for secret in values)
        assert not any(secret in value for value in service.environment.values() if "://" in value for secret in values)
    holders = [p for p in place.home.rglob("*") if p.is_file() and any(s in p.read_text() for s in values)]
    assert {p.name for p in holders} == {"client.env", "pgpass", "secrets.json"}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in holders)
    assert not values & set(Place(place.home.with_name("other")).secrets.values())
    assert Place(place.home).secrets == place.secrets
    assert Place(place.home).ports == place.ports


def test_git_has_no_secret_file():
    """Nothing under version control is a key, a password file or an environment file with values."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )

    assert not [
        name for name in listed if re.search(r"(^|/)(\.env|\.pgpass|pgpass|secrets\.json|client\.env)$|\.pem$", name)
    ]


def test_up_is_repeatable_and_down_leaves_nothing(place):
    """A second `up` starts nothing; a killed service is reported and started again; `down` ends children that lost their parent."""
    table = [sleeper("one"), sleeper("two", needs=("one",))]
    processes.up(place, table)
    first = {s.name: processes.running(place, s.name).pid for s in table}
    processes.up(place, table)
    assert {s.name: processes.running(place, s.name).pid for s in table} == first

    assert wait_until(lambda: processes.children(processes.running(place, "one")))
    orphan = processes.children(processes.running(place, "one"))[0]
    os.kill(first["one"], signal.SIGKILL)
    assert wait_until(lambda: processes.running(place, "one") is None)
    assert [state for _, state, _ in processes.status(place, table)] == ["down", "up"]
    assert orphan.is_running()
    processes.up(place, table)
    assert not orphan.is_running()
    assert processes.running(place, "one").pid != first["one"]

    processes.down(place, table)
    assert processes.marked(place) == []
    assert [state for _, state, _ in processes.status(place, table)] == ["down", "down"]


def test_a_service_that_ends_is_one_sentence(place, capsys, monkeypatch):
    """`up` names the service that ended and its log, exits with 4, and leaves what runs for `down`."""
    broken = Service("broken", (), [sys.executable, "-c", "raise SystemExit(3)"], {}, lambda: False)
    monkeypatch.setattr(processes, "services", lambda *_: [broken])

    assert processes.main(["up", "--home", str(place.home)]) == 4
    assert re.fullmatch(r"expunge: broken ended; its log says why: \S+/logs/broken.log\n", capsys.readouterr().err)
    assert processes.main(["status", "--home", str(place.home)]) == 1
    assert "broken     down" in capsys.readouterr().out


def test_a_port_of_another_program_is_refused(place):
    """What listens on a service's port already is never taken for that service."""
    with closing(socket.create_server((LOOPBACK, 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(StageError, match=f"port {port} of one is taken by another program; end that, or remove"):
            processes.up(place, [sleeper("one", port=port)])
    assert processes.marked(place) == []


def test_a_pid_of_another_process_is_no_service(place):
    """A process that got the number of a service that died is never taken for it, nor ended."""
    (place.pids / "one.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))

    assert processes.running(place, "one") is None
    processes.down(place, [sleeper("one")])


def test_two_ups_at_once_are_refused(place, capsys):
    """While one command starts or ends the services, a second is told so."""
    with processes.one_at_a_time(place):
        assert processes.main(["up", "--home", str(place.home)]) == 4
    assert "is being started or ended; wait until that is done" in capsys.readouterr().err


def test_runs_without_a_process_crashed_or_are_cancelled():
    """A run counts as dead at the second look without a process: crashed, or cancelled if that was asked for; one that starts is left alone."""
    runs = [Run("a", "RUNNING"), Run("b", "RUNNING"), Run("c", "CANCELLING"), Run("d", "PENDING"), Run("e", "RUNNING")]

    assert stale(runs, alive={"a"}, before={"a", "b", "c", "d"}) == {"b": "CRASHED", "c": "CANCELLED", "d": "CRASHED"}


def test_s3_keeps_objects_and_asks_for_its_key(tmp_path):
    """What was written is there after SIGKILL, large objects too; what was deleted is not; another key is refused."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    port = Place(tmp_path / "home").ports["s3"]
    command = [sys.executable, "-m", "deploy.s3", tmp_path / "objects", str(port)]
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

    def store(key="key", secret="secret"):  # noqa: S107
        login = {"aws_access_key_id": key, "aws_secret_access_key": secret, "region_name": "us-east-1"}
        config = Config(retries={"max_attempts": 10, "mode": "standard"})
        return boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", config=config, **login)

    def serve():
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        with closing(socket.socket()) as probe:
            assert wait_until(lambda: probe.connect_ex(("127.0.0.1", port)) in (0, errno.EISCONN))
        return server

    large = os.urandom(9 << 20)
    server = serve()
    try:
        store().create_bucket(Bucket="things")
        store().put_object(Bucket="things", Key="a b/ü+c~/x", Body=b"one\ntwo")
        store().put_object(Bucket="things", Key="gone", Body=b"1")
        store().delete_object(Bucket="things", Key="gone")
        (tmp_path / "large").write_bytes(large)
        store().upload_file(str(tmp_path / "large"), "things", "large")
        for key, secret in (("key", "other"), ("other", "secret")):
            with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
                store(key, secret).list_objects_v2(Bucket="things")
        server.kill()
        server.wait()
        server = serve()
        listed = [item["Key"] for item in store().list_objects_v2(Bucket="things")["Contents"]]
        assert listed == ["a b/ü+c~/x", "large"]
        assert store().get_object(Bucket="things", Key="a b/ü+c~/x")["Body"].read() == b"one\ntwo"
        assert store().get_object(Bucket="things", Key="large")["Body"].read() == large
    finally:
        server.kill()
        server.wait()
