"""All services as plain processes on one machine: `make up`, `make status`, `make down`.

    python -m deploy.processes up [--listen ADDRESS]    # starts what does not run; may be repeated
    python -m deploy.processes status                   # exit status 1 if a service is down
    python -m deploy.processes down                     # ends them all and whatever they started

Every process inherits the variable EXPUNGE_SERVICE, by which `down` finds those that lost their parent.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from components.common.errors import ExpungeError, StageError
from deploy.place import HOME, LOOPBACK, Place
from deploy.services import Service, services

ROOT = Path(__file__).parents[1]
MARK = "EXPUNGE_SERVICE"
START_SECONDS, STOP_SECONDS = 240.0, 20.0


def up(place: Place, table: Sequence[Service]) -> None:
    """Starts each service that does not run, waits until all are healthy; `StageError` names the first that is not."""
    place.write()
    started = {service.name: running(place, service.name) for service in table}
    healthy: set[str] = set()
    begun: set[str] = set()
    waiting, latest = list(table), time.monotonic() + START_SECONDS
    while waiting:
        for service in list(waiting):
            if not healthy.issuperset(service.needs):
                continue
            if not started[service.name]:
                end(leftovers(place, service.name), signal.SIGTERM)
                check_port(place, service)
                service.prepare()
                started[service.name] = start(place, service)
                begun.add(service.name)
            if not _alive(started[service.name]):
                if service.name in begun:
                    raise StageError(f"{service.name} ended", f"its log says why: {place.logs / service.name}.log")
                started[service.name] = None  # it was about to end when it was looked at first
                continue
            if service.healthy():
                service.settle()
                healthy.add(service.name)
                waiting.remove(service)
        if waiting and time.monotonic() > latest:
            name = waiting[0].name
            raise StageError(
                f"{name} is not healthy after {START_SECONDS:.0f} s", f"look at {place.logs / name}.log and start again"
            )
        time.sleep(0.2 if waiting else 0)


def check_port(place: Place, service: Service) -> None:
    """`StageError` if another program listens where a service would: it would be taken for the service."""
    with socket.socket() as probe:
        if service.port and probe.connect_ex((LOOPBACK, service.port)) == 0:
            raise StageError(
                f"port {service.port} of {service.name} is taken by another program",
                f"end that, or remove {place.home / 'ports.json'} to have others chosen",
            )


def start(place: Place, service: Service) -> psutil.Process:
    """Starts a service in a session of its own, with its output appended to its log."""
    log = os.open(place.logs / f"{service.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    base = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "PG", "PREFECT_"))}
    base["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', '')}"
    child = subprocess.Popen(
        service.command,
        cwd="/" if service.user else ROOT,
        env=base | {**service.environment, MARK: f"{place.home}:{service.name}"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=service.user,
        group=pwd.getpwnam(service.user).pw_gid if service.user else None,
        extra_groups=[] if service.user else None,
    )
    os.close(log)
    process = psutil.Process(child.pid)
    record = {"pid": child.pid, "created": process.create_time()}
    (place.pids / f"{service.name}.json").write_text(json.dumps(record), encoding="utf-8")
    return process


def running(place: Place, name: str) -> psutil.Process | None:
    """The process of a service, None if it does not run: another process may have its number by now."""
    try:
        record = json.loads((place.pids / f"{name}.json").read_text(encoding="utf-8"))
        process = psutil.Process(record["pid"])
        return process if process.create_time() == record["created"] and _alive(process) else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _alive(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def marked(place: Place, service: str = "") -> list[psutil.Process]:
    """Every process that a service started, or all services, whoever its parent is now; never this one."""
    mark = f"{place.home}:{service}"
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _environment(process).get(MARK, "").startswith(mark) and _alive(process)
    ]


def leftovers(place: Place, service: str) -> list[psutil.Process]:
    """What a service that was killed left behind, which would be in the way of a new one; flow runs go on."""
    found = marked(place, service)
    return [process for process in found if "PREFECT__FLOW_RUN_ID" not in _environment(process)]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def down(place: Place, table: Sequence[Service]) -> None:
    """Ends the services, last first, each with all that it started; `StageError` if something stays."""
    for service in reversed(table):
        own = running(place, service.name)
        every = {p.pid: p for p in [*([own] if own else []), *marked(place, service.name)]}
        if own and service.name != "postgres":
            every |= {p.pid: p for p in children(own)}
        first = signal.SIGINT if service.name == "postgres" else signal.SIGTERM  # its "fast" shutdown
        end(list(every.values()), first)
        (place.pids / f"{service.name}.json").unlink(missing_ok=True)
    if left := marked(place):
        raise StageError(f"process {left[0].pid} does not end", "end it by hand")


def children(process: psutil.Process) -> list[psutil.Process]:
    """All that a process started and that still runs below it."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def end(processes: Sequence[psutil.Process], first: signal.Signals) -> None:
    """Asks processes to end, and ends those by force that still run after `STOP_SECONDS`."""
    waiting = list(processes)
    for sign in (first, signal.SIGKILL):
        for process in waiting:
            try:
                process.send_signal(sign)
            except psutil.Error:
                continue
        waiting = psutil.wait_procs(waiting, timeout=STOP_SECONDS)[1]
        if not waiting:
            return


def status(place: Place, table: Sequence[Service]) -> list[tuple[str, str, str]]:
    """(name, state, where) of each service; the state is up, down, or unhealthy where it runs and does not answer."""
    rows = []
    for service in table:
        process = running(place, service.name)
        state = "down" if process is None else "up" if service.healthy() else "unhealthy"
        where = f"{service.listen}:{service.port}" if service.port else f"pid {process.pid}" if process else "-"
        rows.append((service.name, state, where))
    return rows


@contextmanager
def one_at_a_time(place: Place) -> Iterator[None]:
    """Refuses a second `up` or `down` at the same time."""
    with (place.home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageError(f"{place.home} is being started or ended", "wait until that is done") from error
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.processes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("up", "down", "status"))
    parser.add_argument("--home", type=Path, default=HOME, help="folder for data, logs and secrets")
    parser.add_argument("--root", type=Path, default=ROOT, help="project that the worker works in")
    parser.add_argument("--listen", default=LOOPBACK, help="address of Prefect's and MLflow's servers")
    given = parser.parse_args(arguments)
    try:
        place = Place(given.home)
        table = services(place, given.root.resolve(), given.listen)
        if given.action != "status":
            with one_at_a_time(place):
                (up if given.action == "up" else down)(place, table)
        rows = status(place, table)
    except ExpungeError as error:
        sys.stderr.write(f"expunge: {error}\n")
        return error.exit_code
    for name, state, where in rows:
        sys.stdout.write(f"{name:<10} {state:<10} {where}\n")
    if given.action == "up":
        sys.stdout.write(
            f"Prefect {place.url('prefect')}, MLflow {place.url('mlflow')}; sign in with {place.home}/client.env\n"
        )
    return int(given.action == "status" and any(state != "up" for _, state, _ in rows))


if __name__ == "__main__":
    raise SystemExit(main())
