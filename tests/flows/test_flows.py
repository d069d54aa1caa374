import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest
import yaml
from dvc.repo import Repo
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.states import Cancelled, Cancelling, Running

from components.common.errors import StageError, TransientError, UserError
from components.common.lock import Holder
from components.common.process import stream
from flows import lifecycle, retrain
from flows.dag import stage_order, stages_to_run
from flows.deps import main
from flows.lifecycle import FlowCancelledError, ends_for_certain, run_program

ROOT = Path(__file__).parents[2]


def test_stage_order_is_the_graph_of_dvc_yaml():
    """Every stage comes after those whose outputs it reads, and all stages of dvc.yaml but the frozen one are there."""
    order = stage_order(ROOT)
    requests = yaml.safe_load((ROOT / "requests.yaml").read_text())["requests"]

    assert set(order) == {"base", "corpus", "sae", "concepts", "features", "evaluate", "attack", "export"} | {
        f"guidance@{r}" for r in requests
    }
    for before, after in (
        ("base", "sae"),
        ("corpus", "sae"),
        ("sae", "features"),
        ("features", "evaluate"),
        ("features", "export"),
    ):
        assert order.index(before) < order.index(after)
    assert all(order.index("concepts") < order.index(f"guidance@{r}") < order.index("evaluate") for r in requests)


def copying(root, **sources):
    """A project in which each stage copies its source; all of it has run."""
    stages = {
        name: {"cmd": f"cp {source} {name}", "deps": [source], "outs": [name]} for name, source in sources.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for name in ("left", "right"):
        (root / name).write_text(name)
    with Repo.init(str(root), no_scm=True) as repo:
        repo.reproduce()
    return root


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda root: None, []),
        (lambda root: (root / "left").write_text("other"), ["a", "b", "c"]),
        (lambda root: (root / "b").unlink(), ["b", "c"]),
        (lambda root: (root / "z").write_text("edited by hand"), ["z"]),
        (lambda root: (root / "dvc.lock").unlink(), ["z", "a", "b", "c"]),
        (
            lambda root: (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("cp a b", "cp -f a b")),
            ["b", "c"],
        ),
    ],
    ids=["nothing", "source", "lost output", "edited output", "no lock", "command"],
)
def test_stages_to_run_are_the_changed_and_what_depends_on_them(tmp_path, monkeypatch, change, wanted):
    """What depends on a change in any way is there, in order, and nothing else; dvc agrees that the others have nothing to do."""
    monkeypatch.chdir(tmp_path)
    copying(tmp_path, z="right", c="b", b="a", a="left")
    change(tmp_path)

    assert stages_to_run(tmp_path) == wanted
    with Repo(str(tmp_path)) as repo:
        assert {stage.addressing for stage in repo.reproduce()} <= set(wanted)


def test_stream_passes_lines_and_status():
    """Both outputs arrive line by line, and the exit status comes back."""
    lines = []
    status = stream(
        [sys.executable, "-c", "import sys; print('one'); sys.stderr.write('two\\n'); exit(3)"], ROOT, lines.append
    )

    assert status == 3
    assert sorted(lines) == ["one", "two"]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


def test_stream_interrupted_ends_the_whole_group():
    """When the caller is interrupted, the child and its children end too."""
    pids = []
    program = "import os, subprocess, time; c = subprocess.Popen(['sleep', '60']); print(os.getpid(), c.pid, flush=True); time.sleep(60)"

    def line(text):
        pids.extend(int(p) for p in text.split())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", program], ROOT, line)

    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(p) for p in pids))


def test_stream_parent_killed_outright_ends_the_child():
    """SIGKILL of the flow leaves no stage behind."""
    program = (
        "import sys; from pathlib import Path; from components.common.process import stream\n"
        "stream([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'], Path('.'), "
        "lambda text: print(text, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert wait_until(lambda: not alive(child))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_that_does_not_heed_a_signal_ends_for_certain(number):
    """A main thread that swallows the signal and waits on a lock is ended after the time allowed, in one sentence, and with EXPUNGE_DEBUG says where it stood."""
    program = (
        "import signal, threading; from flows.lifecycle import ends_for_certain\n"
        f"signal.signal({number:d}, lambda *_: None)\n"
        "with ends_for_certain(0.3):\n    print('ready', flush=True); lock = threading.Lock(); lock.acquire(); lock.acquire()"
    )
    for debug in ({}, {"EXPUNGE_DEBUG": "1"}):
        child = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env=os.environ | debug, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=10)

        assert child.returncode == 128 + number
        assert said.endswith(
            "expunge: the run was told to end and had not after 0.3 s; run it again, it goes on where it ended\n"
        )
        assert ("most recent call first" in said) == bool(debug)


def test_ctrl_c_does_not_reach_the_server_of_a_run(tmp_path):
    """SIGINT to the whole group, as a terminal sends it: the run ends as interrupted, in time and in one sentence, its state is true, and the server has gone."""
    program = (
        "import time; from prefect import flow; from flows.lifecycle import run_program\n"
        "@flow\ndef slow():\n    print('ready', flush=True); time.sleep(60)\n"
        "run_program(slow)"
    )
    home = tmp_path / "home"
    environment = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "EXPUNGE_DEBUG")}
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment | {"PREFECT_HOME": str(home)}, process_group=0,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert any(line == "ready\n" for line in child.stdout)
    os.killpg(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=30)
    with sqlite3.connect(home / "prefect.db") as base:
        states = base.execute("select state_type from flow_run").fetchall()

    assert child.returncode == 130
    assert said.splitlines()[-1] == "expunge: interrupted"
    assert states == [("CRASHED",)]
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_a_cancelled_program_that_hangs_ends_for_certain():
    """From the moment that a run hears of its cancellation it has the time allowed; before that it may take as long as it likes."""
    program = (
        "import threading, time, uuid; from contextlib import nullcontext; from types import SimpleNamespace as Fake\n"
        "from prefect.states import Cancelling, Running; from flows import lifecycle; now = [Running()]\n"
        "lifecycle.flow_run_id = lambda: str(uuid.uuid4())\n"
        "lifecycle.get_client = lambda **_: nullcontext(Fake(read_flow_run=lambda run: Fake(state=now[0])))\n"
        "with lifecycle.ends_for_certain(0.3):\n"
        "    cancelled = lifecycle.cancellation(); assert not cancelled(); time.sleep(0.6); print('alive', flush=True)\n"
        "    now[0] = Cancelling(); assert cancelled(); lock = threading.Lock(); lock.acquire(); lock.acquire()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "alive\n")
    assert "expunge: the run was told to end and had not after 0.3 s" in done.stderr


def test_a_server_that_cannot_keep_its_state_is_not_started(tmp_path, monkeypatch):
    """A PREFECT_HOME that cannot be written is one sentence at once, not minutes of waiting for a server; one that is missing is made."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(SubprocessASGIServer, "start", lambda _: pytest.fail("started"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    wanted = "home cannot be written; give this account the right, or set PREFECT_HOME"
    settings = temporary_settings({PREFECT_HOME: tmp_path / "new" / "home", PREFECT_API_URL: None})
    with settings, pytest.raises(StageError, match=wanted):
        lifecycle._own_server().__enter__()
    assert (tmp_path / "new" / "home").is_dir()


def test_a_program_that_ends_in_time_keeps_its_own_end():
    """Without a signal nothing ends the program, and the handlers' socket is as before."""
    before = signal.set_wakeup_fd(-1)
    with ends_for_certain(0.01):
        time.sleep(0.1)
    assert signal.set_wakeup_fd(before) == -1


def test_a_flow_that_is_given_arguments_is_not_run(monkeypatch, capsys):
    """`python -m flows.drain --dry-run` would act: it is refused before anything starts."""
    monkeypatch.setattr(sys, "argv", ["flows.drain", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        run_program(lambda: pytest.fail("it ran"))

    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("expunge: a flow takes no arguments ('--dry-run'); leave them out")


def test_deps_are_written_where_they_lack(tmp_path, monkeypatch):
    """`make deps` puts a missing file and the world's back, drops one that no code reaches, keeps comments and data; --check only tells."""
    for name in ("components", "dvc.yaml", "params.yaml"):
        source = ROOT / name
        _ = shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    path = tmp_path / "dvc.yaml"
    whole = path.read_text()
    lacking = whole.replace("      - components/sae/losses.py\n", "", 1)
    lacking = lacking.replace("      - components/worlds/${world}/world.yaml\n", "      - components/cli/main.py\n", 1)
    assert lacking != whole
    path.write_text(lacking)
    monkeypatch.setattr(sys, "argv", ["deps", "--check"])
    assert main(tmp_path) == 1
    assert path.read_text() == lacking

    monkeypatch.setattr(sys, "argv", ["deps"])
    assert main(tmp_path) == 0
    assert path.read_text() == whole
    monkeypatch.setattr(sys, "argv", ["deps", "--check"])
    assert main(tmp_path) == 0


def test_a_flow_run_that_ended_unheard_is_closed_by_the_next(tmp_path, monkeypatch):
    """The next run closes the noted one if its process is gone, the killed holder of the lock in any case, and never itself."""
    closed = []
    monkeypatch.setattr(lifecycle, "_close", lambda holder: closed.append(holder.flow_run))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for run, pid, last, wanted in (
        ("run-1", gone.pid, Holder(), []),
        ("run-2", os.getpid(), Holder(), ["run-1"]),
        ("run-3", gone.pid, Holder(7, flow_run="run-0"), ["run-0"]),  # the process of run-2 is here
        ("run-3", gone.pid, Holder(), []),  # a task tried again
    ):
        closed.clear()
        with monkeypatch.context() as patched:
            patched.setattr(lifecycle.os, "getpid", lambda pid=pid: pid)
            lifecycle.close_killed(tmp_path, last, run)
        assert closed == wanted


class _Server:
    """A Prefect client that says `state` of every run, or cannot be reached."""

    def __init__(self, state):
        self.state = state
        self.set = []

    def __call__(self, **_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read_flow_run(self, _):
        if self.state is None:
            raise httpx.ConnectError("no")
        return SimpleNamespace(state=self.state)

    def read_task_runs(self, **_):
        return []

    def set_flow_run_state(self, _run, state, *, force):
        assert force
        self.set.append(state.type.value)


@pytest.mark.parametrize(
    ("state", "error"), [(Cancelled(), FlowCancelledError), (Cancelling(), FlowCancelledError), (None, TransientError)]
)
def test_a_run_that_was_cancelled_registers_nothing(tmp_path, monkeypatch, state, error):
    """Between the last stage and the registration a cancellation is still obeyed, and a server that cannot say so stops it too."""
    registered = []
    monkeypatch.setattr(retrain, "register_tree", lambda *given, **_: registered.append(given))
    monkeypatch.setattr(lifecycle, "flow_run_id", lambda: str(uuid4()))
    monkeypatch.setattr(lifecycle, "get_client", _Server(state))

    with pytest.raises(error):
        retrain.register.fn(tmp_path)
    assert registered == []
    assert lifecycle.cancellation()() is (state is not None)


@pytest.mark.parametrize(
    ("during", "after", "made", "set_to"),
    [(True, False, 0, []), (False, True, 1, ["COMPLETED"]), (False, False, 1, [])],
    ids=["cancelled while it logs", "cancelled after the version", "not cancelled"],
)
def test_a_cancellation_during_the_registration(tmp_path, monkeypatch, during, after, made, set_to):
    """Obeyed up to the version; what comes later finds all done, and the run is Completed instead of Cancelling for ever."""
    server, versions = _Server(Running()), []

    def register_tree(root, _actor, *, last_look):
        server.state = Cancelling() if during else server.state
        last_look()
        versions.append(root)
        server.state = Cancelling() if after else server.state
        return SimpleNamespace(version=1, verdict="pass")

    monkeypatch.setattr(retrain, "register_tree", register_tree)
    monkeypatch.setattr(retrain, "get_run_logger", lambda: SimpleNamespace(info=print, warning=print))
    monkeypatch.setattr(lifecycle, "flow_run_id", lambda: str(uuid4()))
    monkeypatch.setattr(lifecycle, "get_client", server)
    with pytest.raises(FlowCancelledError) if during else nullcontext():
        assert retrain.register.fn(tmp_path) == "pass"

    assert (len(versions), server.set) == (made, set_to)


@pytest.mark.parametrize(
    ("state", "wanted"), [(Cancelling(), ["CANCELLED"]), (Running(), ["CRASHED"]), (Cancelled(), []), (None, [])]
)
def test_what_a_killed_run_is_said_to_be(monkeypatch, state, wanted):
    """One that somebody had cancelled is Cancelled, another is Crashed; a last state stays, and so does all where no server answers."""
    server = _Server(state)
    monkeypatch.setattr(lifecycle, "get_client", server)
    lifecycle._close(Holder(7, flow_run=str(uuid4())))

    assert server.set == wanted


@pytest.mark.parametrize("stages", [["sae"], []])
def test_inputs_are_asked_for_before_the_first_stage(tmp_path, monkeypatch, stages):
    """What the last stages would refuse ends a retraining before its first stage; where no stage is to run nobody asks."""
    run = []
    for name in ("check_ready", "close_killed", "guard_lock"):
        monkeypatch.setattr(retrain, name, lambda *_: None)
    monkeypatch.setattr(retrain, "stages_to_run", lambda _: stages)
    monkeypatch.setattr(retrain, "reproduce", lambda stage, _: run.append(stage))
    monkeypatch.setattr(retrain, "register", lambda _: "pass")

    def refuse(_):
        raise UserError("no", "mend it")

    monkeypatch.setattr(retrain, "ask_inputs", refuse)
    if stages:
        with pytest.raises(UserError):
            retrain.retrain.fn(str(tmp_path))
    else:
        assert retrain.retrain.fn(str(tmp_path)) == "pass"
    assert run == []
