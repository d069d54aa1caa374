"""Two runs that write never overlap, however started (invariant 10)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.common.errors import StageError
from components.common.lock import (
    DVC_PATHS,
    DVC_REPO,
    TOKEN,
    WRITER,
    check_free,
    child_environment,
    stage_running,
    writing,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A dvc project's folder; waiting for a lock is short."""
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    monkeypatch.setattr("components.common.lock._PATIENCE", 0.3)
    return tmp_path


@pytest.fixture
def start():
    """Starts `body` in a process of its own, once it says that it is ready; ends all of them."""
    started = []

    def run(body, root, environment=None):
        program = f"import os, sys, time\nfrom pathlib import Path\nfrom components.common.lock import *\nroot = Path({str(root)!r})\n{body}"
        child = subprocess.Popen(
            [sys.executable, "-c", program, "--of-test"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout.readline() == "ready\n"
        return child

    yield run
    for child in started:
        child.kill()
        child.wait()
        child.stdout.close()


def alive(pid):
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


WRITER_BODY = "with writing(root):\n    print('ready', flush=True)\n    time.sleep(60)"
STAGE_BODY = "with stage_running(root):\n    print('ready', flush=True)\n    time.sleep(60)"


@pytest.mark.parametrize("act", [writing, stage_running, check_free])
def test_a_writer_refuses_another_writer_and_foreign_stages(root, start, act):
    """While a writer works, a second writer and a stage that it did not start are refused; the sentence names process, command and way out."""
    other = start(WRITER_BODY, root)
    with pytest.raises(
        StageError, match=rf"written by process {other.pid} \(-c --of-test\); wait until .*: kill {other.pid}"
    ):
        act(root).__enter__()
    other.kill()
    other.wait()

    check_free(root)  # which changes nothing
    with writing(root) as last:
        assert last.pid == other.pid  # a killed writer frees the lock and is known
    with writing(root) as last:
        assert last.pid == 0


def test_a_stage_by_hand_refuses_writers_and_other_stages(root, start):
    """A stage that plain `dvc repro` started is seen by every writer and every other stage."""
    stage = start(STAGE_BODY, root)
    for act in (writing, stage_running):
        with pytest.raises(StageError, match=rf"written by process {stage.pid} \(stage -c\)"), act(root):
            pass


def test_stages_of_a_writer_run(root, start):
    """A writer's own child passes, and so does a writer within the writer; a made-up token does not."""
    with writing(root):
        start(STAGE_BODY, root, child_environment()).kill()
        with writing(root):
            pass
    with writing(root), pytest.raises(AssertionError):
        start(STAGE_BODY, root, os.environ | {TOKEN: "made-up"})


def test_a_stage_ends_with_its_writer(root, start):
    """SIGKILL of the writer ends the stage within two seconds, whoever started the stage in between; then the project is free."""
    program = root / "stage.py"
    program.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom components.common.lock import stage_running\n"
        "with stage_running(Path(sys.argv[1])):\n    print(1, flush=True)\n    time.sleep(60)"
    )
    body = (
        "import subprocess\nwith writing(root):\n"
        f"    command = ['setsid', sys.executable, {str(program)!r}, str(root)]\n"
        "    environment = child_environment() | {'PYTHONPATH': '.'}\n"
        "    c = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)\n"
        "    c.stdout.readline(); print('ready', flush=True); print(c.pid, flush=True); time.sleep(60)"
    )
    writer = start(body, root)
    stage = int(writer.stdout.readline())
    writer.kill()
    writer.wait()
    end = time.monotonic() + 2
    while time.monotonic() < end and alive(stage):
        time.sleep(0.05)

    assert not alive(stage)
    check_free(root)


def test_a_stage_whose_writer_ended_before_it_began_does_not_run(root, monkeypatch):
    """A writer that is killed while its stage still imports leaves no stage that trains for nobody; one by hand runs."""
    with stage_running(root):
        pass
    monkeypatch.setenv(TOKEN, "of-a-writer-that-was-killed")
    with (
        pytest.raises(StageError, match="the run that started this stage has ended; run it again"),
        stage_running(root),
    ):
        pytest.fail("it ran")
    check_free(root)


@pytest.mark.parametrize("where", ["between stages", "in a stage"])
def test_dvc_by_hand_is_detected(root, start, where):
    """A live `dvc` holds its repository's lock between stages and paths within one: either way a writer is refused."""
    if where == "between stages":
        body = f"import fcntl\nf = open(root / {str(DVC_REPO)!r}, 'w'); f.write(f' {{os.getpid()}}\\n'); f.flush(); fcntl.flock(f, fcntl.LOCK_EX)\nprint('ready', flush=True); time.sleep(60)"
        said = "dvc"
    else:
        (root / DVC_REPO).touch()
        body, said = "print('ready', flush=True); time.sleep(60)", "dvc repro sae"
    other = start(body, root)
    if where == "in a stage":
        held = {
            "write": {"models/sae": {"pid": other.pid, "cmd": said}},
            "read": {"data": [{"pid": other.pid, "cmd": said}]},
        }
        (root / DVC_PATHS).write_text(json.dumps(held))
    with pytest.raises(StageError, match=rf"written by process {other.pid} \({said}\)"), writing(root):
        pass
    other.kill()
    other.wait()

    check_free(root)  # what a killed dvc left in its list holds nobody up


def test_a_read_only_project_is_one_sentence(root):
    """Where the lock cannot be opened, the sentence says so."""
    (root / WRITER).mkdir()
    with pytest.raises(
        StageError, match=r"expunge.lock cannot be opened \(Is a directory\); make the project's folder"
    ):
        check_free(root)


def test_a_killed_flow_is_known_until_a_flow_has_closed_it(root, start):
    """Commands in between do not lose the id of the flow run that was killed; the next flow gets it, and then it is gone."""
    other = start(WRITER_BODY.replace("(root)", "(root, 'run-1')"), root)
    other.kill()
    other.wait()
    with writing(root):
        pass
    with writing(root, "run-2") as last:
        assert (last.pid, last.flow_run) == (other.pid, "run-1")
    with writing(root) as last:
        assert last.flow_run == ""
