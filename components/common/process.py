"""Child processes that end with their parent, whatever ends it, and signals that become exceptions."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from components.common.lock import child_environment

_PR_SET_PDEATHSIG = 1
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


class TerminatedError(BaseException):
    """SIGTERM or SIGHUP has arrived; no `except Exception` stops it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise `TerminatedError` in the main thread, so that children and files are cleaned up."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, _: FrameType | None) -> None:
        for ignored in numbers:
            signal.signal(ignored, signal.SIG_IGN)  # cleaning up is not interrupted twice
        raise TerminatedError(number)

    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}  # nohup's stays
    for number in before:
        signal.signal(number, ring)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Asks the kernel for SIGTERM when the thread that started this process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stream(
    command: Sequence[str | Path],
    cwd: Path,
    line: Callable[[str], None] | None = None,
    ended: Callable[[], bool] | None = None,
) -> int:
    """Runs `command` in `cwd` and returns its exit status; passes every line of its output to `line`, or lets it print.

    The child has a process group of its own. Whatever ends this call, a cancellation as well, ends the group; and the
    kernel ends the child should this process be killed outright. `ended` is asked once a second, in a thread: if it says
    yes, the group is ended.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    piped = subprocess.PIPE if line else None
    child = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=child_environment() | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=piped,
        stderr=subprocess.STDOUT if line else None,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, no lock is taken
    )
    done = threading.Event()
    if ended is not None:
        threading.Thread(target=_end_when, args=(child, ended, done), daemon=True).start()
    try:
        for text in child.stdout or ():
            if line is not None and text.strip():
                line(text.rstrip())
        return child.wait()
    finally:
        done.set()
        _end(child)


def _end_when(child: subprocess.Popen[str], ended: Callable[[], bool], done: threading.Event) -> None:
    while not done.wait(1.0):
        if ended():
            _end(child)
            return


def _end(child: subprocess.Popen[str]) -> None:
    """Ends what is left of the child's group: SIGTERM, and SIGKILL for what does not heed it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE)
