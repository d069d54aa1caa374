"""Child processes that die with their parent and whose output is streamed line by line."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def _die_with_parent() -> None:  # pragma: no cover - runs in the child, between fork and exec
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stream(command: Sequence[str], cwd: Path, line: Callable[[str], None]) -> int:
    """Runs `command`, passes every line of its output to `line`, and returns its exit status.

    The child has a process group of its own. Whatever ends this call, a cancellation as well, ends the group; and the
    kernel ends the child should this process be killed outright.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    child = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one prctl call, no lock is taken
    )
    try:
        assert child.stdout is not None  # it is a pipe
        for text in child.stdout:
            if text.strip():
                line(text.rstrip())
        return child.wait()
    finally:
        _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            return
        try:
            child.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
