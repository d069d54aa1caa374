"""Ends a retraining in the middle of a stage, in every way, and looks at what is left and at what the next run makes of it.

After each case: every process that the run started is gone, the lock is free, nothing more was registered, Prefect's state of the
run is true, and a second run completes with the bytes of an undisturbed one.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx
from tqdm import tqdm

from components.common.errors import StageError
from components.common.lock import check_free
from research.reliability.show import largest, share
from research.show import Row

KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "cancel")
FEWEST = ("SIGKILL", "SIGTERM", "cancel")
"""Rows are published of these at least."""
SECONDS = 15.0
MARK = "EXPUNGE_KILLS"
AFTER = "after"
"""In the place of a stage: what a run does when its version is there, such as to note it in the ledger. A version is no fault then."""
TRUE = {"cancel": ("CANCELLED",)}
"""States that are true of a run that was ended so; anything else is a crash."""


class Project(Protocol):
    """What is run and ended."""

    stages: Sequence[str]
    folder: Path
    flow: bool
    """Whether it is a flow, whose state Prefect keeps."""

    def fresh(self, stage: str) -> None:
        """Brings the project into the state in which a run begins with `stage`, at the latest."""
        ...

    def command(self) -> list[str]:
        """What retrains it."""
        ...

    def environment(self) -> dict[str, str]:
        """The environment of that command."""
        ...

    def outputs(self) -> dict[str, bytes]:
        """What the stages wrote."""
        ...

    def registered(self) -> int:
        """How many versions there are."""
        ...

    def unfinished(self) -> int:
        """How many MLflow runs are said to run."""
        ...


class Outcome(NamedTuple):
    """What one interrupted run left."""

    seconds: float
    """Until the last process of the run had ended."""
    leftovers: int
    lock_free: bool
    state: str
    """Of the flow run; empty without one."""
    registered: int
    """Versions that the interrupted run registered."""
    equal: bool
    """Whether the second run completed with the bytes of an undisturbed one."""
    unfinished: int
    """MLflow runs that are said to run, after the second."""

    def is_false(self, kind: str, stage: str) -> bool:
        """Whether the state is not true of a run that ended so, in that stage."""
        done = ("COMPLETED",) if stage == AFTER else ()
        return self.state not in ("", *TRUE.get(kind, ("CRASHED",)), *done)

    def faults(self, kind: str, stage: str) -> list[str]:
        """What is wrong."""
        wrong = {
            f"{self.leftovers} processes left": self.leftovers > 0,
            "lock not free": not self.lock_free,
            f"state {self.state}": self.is_false(kind, stage),
            f"registered {self.registered}": self.registered != 0 and stage != AFTER,
            "bytes differ": not self.equal,
            f"{self.unfinished} MLflow runs RUNNING": self.unfinished > 0,
        }
        return [what for what, is_so in wrong.items() if is_so]


def marked(mark: str) -> list[int]:
    """The living processes whose environment carries the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@contextmanager
def server(home: Path) -> Iterator[str]:
    """A Prefect server of its own; yields its API's address."""
    port = random.SystemRandom().randrange(20_000, 30_000)
    environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()


def interrupt(
    project: Project, kind: str, stage: str, wait: float, wanted: dict[str, bytes], api: str, home: Path
) -> Outcome:
    """Runs the project, ends it `wait` seconds after `stage` has begun, and runs it again."""
    project.fresh(stage)
    mark, before = uuid.uuid4().hex, project.registered()
    environment = project.environment() | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home), MARK: mark, "PYTHONUNBUFFERED": "1"}  # fmt: skip
    first = subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert first.stdout is not None
    said: list[str] = []
    begins = f"Running stage '{stage}'" if stage not in ("register", AFTER) else "Task run 'export' - Finished"
    for line in first.stdout:
        said.append(line)
        if begins in line:
            break
    else:
        raise StageError(f"{stage} did not begin", "".join(said[-20:]))
    time.sleep(wait)
    start = time.monotonic()
    if kind == "cancel":
        run = _last_run(home)[0]
        httpx.post(f"{api}/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
        start = time.monotonic()
    else:
        first.send_signal(getattr(signal, kind))
    while (left := marked(mark)) and time.monotonic() - start < SECONDS:
        time.sleep(0.05)
    seconds = time.monotonic() - start
    first.stdout.close()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    first.wait()
    try:
        check_free(project.folder)
        free = True
    except StageError:
        free = False
    more = project.registered() - before
    run = _last_run(home)[0] if project.flow else ""
    second = subprocess.run(
        project.command(), cwd=project.folder, env=environment, capture_output=True, text=True, check=False
    )
    if second.returncode:
        tqdm.write(second.stdout[-2000:] + second.stderr[-2000:])
    equal = second.returncode == 0 and project.outputs() == wanted
    return Outcome(seconds, len(left), free, _state(home, run) if run else "", more, equal, project.unfinished())


def _last_run(home: Path) -> tuple[str, str]:
    with closing(sqlite3.connect(home / "prefect.db")) as base:
        run, state = base.execute("select id, state_type from flow_run order by created desc limit 1").fetchone()
    return str(uuid.UUID(run)), state


def _state(home: Path, run: str) -> str:
    with closing(sqlite3.connect(home / "prefect.db")) as base:
        rows = base.execute("select state_type from flow_run where id in (?, ?)", (run, uuid.UUID(run).hex))
        return str(rows.fetchone()[0])


def measure_kills(
    make: Callable[[Path], Project],
    times: int,
    seed: int,
    command: str,
    kinds: Sequence[str] = KINDS,
    stages: Sequence[str] = (),
) -> list[Row]:
    """The rows of `times` interruptions of each kind in each stage."""
    rng = random.Random(seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this
    found: list[tuple[str, str, Outcome]] = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "prefect"
        with server(home) as api:
            project = make(Path(name) / "a project")
            spans = _undisturbed(project, api, home)
            wanted = project.outputs()
            signals = [kind for kind in kinds if project.flow or kind != "cancel"]
            cases = [(k, s) for s in stages or (*project.stages, "register") for k in signals] * times
            for kind, stage in tqdm(cases):
                if stage not in spans:
                    continue
                wait = rng.uniform(0.05, 0.9) * spans[stage] + (spans["register"] if stage == AFTER else 0.0)
                done = interrupt(project, kind, stage, wait, wanted, api, home)
                found.append((kind, stage, done))
                tqdm.write(f"{kind} in {stage}: {', '.join(done.faults(kind, stage)) or 'fine'} ({done.seconds:.1f} s)")
    n, of = len(found), type(project).__name__.lower()
    of += f"; {', '.join(kinds)}" if tuple(kinds) != KINDS else ""
    of += f"; {', '.join(stages)}" if stages else ""
    faulty = {
        "did not resume with equal bytes": sum(not d.equal for *_, d in found),
        "left a process after 15 s": sum(d.leftovers > 0 for *_, d in found),
        "left the lock": sum(not d.lock_free for *_, d in found),
        "left a state that is not true": sum(d.is_false(k, s) for k, s, d in found),
        "left an MLflow run in RUNNING": sum(d.unfinished > 0 for *_, d in found),
        "registered something": sum(d.registered > 0 and s != AFTER for _, s, d in found),
    }
    rows = [share(f"kills ({of}): {what}", count, n, command) for what, count in faulty.items()]
    return [*rows, largest(f"kills ({of}): slowest end, s", max((d.seconds for *_, d in found), default=0.0), n, SECONDS, command)]  # fmt: skip


def _undisturbed(project: Project, api: str, home: Path) -> dict[str, float]:
    """Runs the project to its end; seconds that each stage took, and the registration until its version was there."""
    project.fresh(project.stages[0])
    environment = project.environment() | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(project.command(), cwd=project.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    assert child.stdout is not None
    made: list[float] = []
    watch = threading.Thread(target=_watch, args=(project, child, project.registered(), made))
    watch.start()
    spans: dict[str, float] = {}
    began, running, said = time.monotonic(), "", list[str]()
    for line in child.stdout:
        said.append(line)
        if "Running stage '" in line:
            if running:
                spans[running] = time.monotonic() - began
            running, began = line.split("Running stage '")[1].split("'")[0], time.monotonic()
        elif running and f"Task run '{running}' - Finished" in line:
            spans[running], began, running = time.monotonic() - began, time.monotonic(), ""
    failed = child.wait()
    watch.join()
    if failed:
        raise StageError("the undisturbed run failed", "".join(said[-40:]))
    if running:
        spans[running] = time.monotonic() - began
    elif "export" in spans:
        if not made:
            raise StageError("nobody saw the undisturbed run register a version", "run it again")
        spans["register"], spans[AFTER] = made[0] - began, time.monotonic() - made[0]
    return spans


def _watch(project: Project, child: subprocess.Popen[str], before: int, made: list[float]) -> None:
    """Notes when the first version more than `before` is there: what ends later is no end of a registration."""
    while child.poll() is None and not made:
        if project.registered() > before:
            made.append(time.monotonic())
        time.sleep(0.05)
