import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from deploy import processes
from deploy.place import Place

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```sh run\n(.*?)^```$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE | re.DOTALL)


def secrets_in(paths, values):
    return [p.name for p in paths if p.is_file() and any(v.encode() in p.read_bytes() for v in values)]


@pytest.fixture
def reachable():
    """A folder that PostgreSQL's account can reach when the test runs as root."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_operations_work(reachable):
    """Every command of docs/operations.md succeeds on a fresh clone, in order; no secret, old or new, is in an argument, a log or a database; nothing stays."""
    clone, shims = reachable / "clone", reachable / "shims"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    own, (venv, programs) = clone / ".venv", (Path(sys.prefix), Path(sys.executable).parent)
    for folder in (own, shims):
        folder.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (own / name).symlink_to(venv / name)
    for name in ("installed", "deploy"):  # what is to be installed is
        (own / name).touch()
    (shims / "expunge").write_text(
        f'#!/bin/sh\nexec {programs}/python -m expunge "$@"\n'
    )  # the clone's, not the editable one's
    (shims / "expunge").chmod(stat.S_IRWXU)
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "EXPUNGE_", "MLFLOW_", "PG", "PREFECT_"))
    }
    environment["PATH"] = f"{shims}{os.pathsep}{programs}{os.pathsep}{environment['PATH']}"
    place = Place(clone / ".expunge")
    old = set(place.secrets.values())

    def run(*blocks):
        script = "set -euo pipefail\n" + "\n".join(blocks)
        done = subprocess.run(
            ["bash", "-c", script], cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    try:
        said = run(*BLOCKS[:-1])
        new = set(json.loads((place.home / "secrets.json").read_text()).values())
        words = [word for p in psutil.process_iter(["cmdline"]) for word in p.info["cmdline"] or ()]
        dump = reachable / "dump"
        command = ["pg_dumpall", "--no-role-passwords", "--username", "postgres", "--file", dump]
        from deploy.services import postgres_programs

        program = postgres_programs() / "pg_dumpall"
        run("set -a; . .expunge/client.env; set +a", " ".join([str(program), *map(str, command[1:])]))
        assert len(old | new) == len(old) + len(new)
        assert not [w for w in words if any(v in w for v in old | new)]
        assert secrets_in([*place.logs.iterdir(), dump], old | new) == []
        assert "the chain is whole" in said
        assert b"request.accepted" in dump.read_bytes()
    finally:
        run(BLOCKS[-1])
    assert processes.marked(place) == []
    assert processes.running(place, "postgres") is None
