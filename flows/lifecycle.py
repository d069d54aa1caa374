"""How a flow run ends: cancelled, terminated or killed, its state is true, and nothing that it started stays behind."""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun, PrefectException
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from prefect.states import Cancelled, Completed, Crashed

from components.common.errors import StageError, TransientError, UserError
from components.common.files import canonical, write_text
from components.common.lock import Holder
from components.common.toplevel import DEBUG, one_sentence

_ENDING_SECONDS = 8.0
"""What a flow may take to end after a signal or a cancellation; then its process ends for certain, and a stage of it 5.5 s later at the latest."""
_SENDING_SECONDS = 5.0
"""What sending the last logs and events may take."""
_UNREACHABLE = (PrefectException, httpx.HTTPError, OSError)
_NOTE = Path(".dvc/tmp/expunge.flow.json")
"""The flow run that worked in the project last."""
_GUARD = "import os, signal, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), signal.SIGKILL)"
"""Waits until the other end of its input is closed, by whatever, then ends the process that it guards."""
_CLOCKS: list[socket.socket] = []
"""Where a byte starts the time that a program has left (`ends_for_certain`)."""


class FlowCancelledError(StageError):
    """Somebody cancelled the flow run."""

    def __init__(self) -> None:
        super().__init__("the flow run was cancelled", "run it again; it goes on where it ended")


def flow_run_id() -> str:
    """The id of the flow run that this is; empty outside one."""
    return str(flow_run.id or "")


def cancellation() -> Callable[[], bool]:
    """What says, in any thread, whether the flow run that this is has been cancelled; an unreachable server says no."""
    run = flow_run_id()

    def cancelled() -> bool:
        with suppress(*_UNREACHABLE):
            return _is_cancelled(run)
        return False

    return cancelled


def check_not_cancelled() -> None:
    """`FlowCancelledError` if the flow run that this is has been cancelled, `TransientError` if Prefect cannot say: for what cannot be taken back."""
    try:
        cancelled = _is_cancelled(flow_run_id())
    except _UNREACHABLE as error:
        raise TransientError(
            f"Prefect cannot say whether the run was cancelled ({type(error).__name__})",
            "run it again; it goes on where it ended",
        ) from error
    if cancelled:
        raise FlowCancelledError


def complete_late() -> bool:
    """Sets the flow run that this is to Completed if it was cancelled after all was done; whether it was.

    Prefect itself would leave it in Cancelling for ever.
    """
    with suppress(*_UNREACHABLE):
        if (run := flow_run_id()) and _state_of(run) is StateType.CANCELLING:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(
                    UUID(run), Completed(message="All was done before the cancellation."), force=True
                )
            return True
    return False


def _state_of(run: str) -> StateType | None:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run)).state
    return state.type if state else None


def _is_cancelled(run: str) -> bool:
    if not run:
        return False
    found = _state_of(run) in (StateType.CANCELLING, StateType.CANCELLED)
    for clock in _CLOCKS if found else ():
        with suppress(OSError):
            clock.send(bytes([signal.SIGTERM]))
    return found


def close_killed(root: Path, last: Holder, run: str) -> None:
    """Sets flow runs whose end Prefect has not heard of to Crashed, or Cancelled if somebody had asked for that, and notes `run`, which works in `root` now, for the next one.

    `last` was killed with the lock. One that freed the lock and ended before it could tell stands in the note.
    """
    this, note = Holder(os.getpid(), flow_run=run), root / _NOTE
    before = _noted(note)
    for ended in (last, *([] if Path(f"/proc/{before.pid}").exists() else [before])):
        if ended.flow_run not in ("", run):
            _close(ended)
    write_text(note, canonical(this._asdict()))


def _noted(note: Path) -> Holder:
    try:
        return Holder(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or half of one
        return Holder()


def _close(last: Holder) -> None:
    """Sets the flow run of a process that has ended, and its task runs, to Crashed or Cancelled if they are not final."""
    run, ended = UUID(last.flow_run), f"Process {last.pid} was killed."
    with suppress(*_UNREACHABLE), get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state
        state = Cancelled(message=ended) if found is not None and found.is_cancelling() else Crashed(message=ended)
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        for task in client.read_task_runs(flow_run_filter=of_run):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, state, force=True)
        if found is None or not found.is_final():
            client.set_flow_run_state(run, state, force=True)


def run_program(flow: Callable[[], Any]) -> None:
    """Runs a flow as a program: one sentence and an exit code at its end, whatever ends it.

    Where no Prefect server is configured, Prefect starts one for the time of the run: on loopback, with a password of its own,
    and it ends with this process even if that is killed. Arguments are refused: a flow that ignored `--dry-run` would act.
    """
    with one_sentence("expunge"), _no_arguments(), ends_for_certain(), _own_server():
        try:
            flow()
        except CancelledRun as error:
            raise FlowCancelledError from error


@contextmanager
def _no_arguments() -> Iterator[None]:
    if sys.argv[1:]:
        raise UserError(
            f"a flow takes no arguments ({sys.argv[1][:60]!r})", "leave them out, or use a command: expunge"
        )
    yield


@contextmanager
def ends_for_certain(seconds: float = _ENDING_SECONDS) -> Iterator[None]:
    """Ends this process `seconds` after a SIGTERM, SIGINT, SIGHUP or a cancellation that it has not ended by, with one sentence on stderr, and all its threads' stacks where EXPUNGE_DEBUG is set.

    A signal raises an exception wherever the main thread is, inside a client's request as well, and Prefect's cleaning up may
    then wait for an answer that never comes. The end is that of a killed run: the kernel frees the lock, stages end with their
    writer, and the next flow closes the run's state. Python's handlers write the signal's number into a socket that a thread reads.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_after_signal, args=(ours, seconds), daemon=True).start()
    _CLOCKS.append(theirs)
    try:
        yield
    finally:
        _CLOCKS.remove(theirs)
        signal.set_wakeup_fd(before)
        theirs.close()


def _end_after_signal(ours: socket.socket, seconds: float) -> None:
    with ours:
        while number := ours.recv(1):
            if number[0] in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                time.sleep(seconds)
                if os.environ.get(DEBUG):
                    faulthandler.dump_traceback(all_threads=True)
                ended = f"expunge: the run was told to end and had not after {seconds:g} s; run it again, it goes on where it ended\n"
                os.write(2, ended.encode())
                os._exit(128 + number[0])


def _server() -> Any:  # noqa: ANN401 - Prefect's class is imported here alone: the whole server, seconds
    """Prefect's server of one run, with a guard that ends it when this process has ended, however that happens.

    Ctrl-C and a closing terminal, which go to the whole process group, do not reach it: a run needs its server to end well.
    """
    from prefect.server.api.server import SubprocessASGIServer  # noqa: PLC0415

    class Server(SubprocessASGIServer):
        guard: subprocess.Popen[bytes] | None = None

        def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
            kept = (signal.SIGINT, signal.SIGHUP)
            before = signal.pthread_sigmask(signal.SIG_BLOCK, kept)  # what is started inherits it
            try:
                self.server_process = process = super()._run_uvicorn_command()
                self.end_guard()
                command = [sys.executable, "-S", "-c", _GUARD, str(process.pid)]
                self.guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
                atexit.register(self.stop)
                return process
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def end_guard(self) -> None:
            if self.guard is not None:
                self.guard.kill()
                self.guard.wait()

    return Server()


@contextmanager
def _own_server() -> Iterator[None]:
    if PREFECT_API_URL.value():
        yield
        return
    password = f"expunge:{secrets.token_hex(16)}"
    with temporary_settings({PREFECT_API_AUTH_STRING: password, PREFECT_SERVER_API_AUTH_STRING: password}):
        _check_home()
        server = _server()
        try:
            server.start()
            yield
        finally:
            for sender in (
                APILogWorker,
                EventsWorker,
            ):  # what they still hold could not be sent afterwards, and they would go on trying
                sender.drain_all(timeout=_SENDING_SECONDS)
            server.stop()
            server.end_guard()


def _check_home() -> None:
    """`StageError` where Prefect's server cannot keep its state: it would not start, and would be waited for."""
    home = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    if not os.access(home, os.W_OK | os.X_OK):
        raise StageError(f"{home} cannot be written", "give this account the right, or set PREFECT_HOME")
