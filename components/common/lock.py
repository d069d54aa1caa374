"""One writer at a time in a project: a flow, a command, or a `dvc repro` that somebody starts by hand.

Two kernel locks (flock) in `.dvc/tmp`, which the death of their holder frees:

- `expunge.lock`: the writer, from the start of its run to the end. The file names its process and command.
- `expunge.stage.lock`: the stage that runs now, whoever started it.

A writer takes the first lock, then looks at the second and at dvc's own locks. A stage takes the second lock, then looks
at the first. Whatever their order, at least one of two that would overlap sees the other. Stages that a writer starts
carry its token in their environment (`child_environment`); any other stage is refused while a writer works.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, NamedTuple

from components.common.errors import StageError, TransientError
from components.common.files import naming

WRITER, STAGE = Path(".dvc/tmp/expunge.lock"), Path(".dvc/tmp/expunge.stage.lock")
DVC_REPO, DVC_PATHS = Path(".dvc/tmp/lock"), Path(".dvc/tmp/rwlock")
TOKEN = "EXPUNGE_LOCK"  # noqa: S105 - the variable that hands the lock to children
_PATIENCE = 3.0  # seconds: dvc waits as long for its own lock, which `dvc status` takes too
_LOOK = 0.5  # seconds between two looks of a stage at its writer
_GRACE = 5.0  # seconds that a stage whose writer died has to end by SIGTERM
_token: ContextVar[str] = ContextVar("token", default="")


class Holder(NamedTuple):
    """Who holds a lock, as its file says."""

    pid: int = 0
    command: str = "another process"
    token: str = ""
    flow_run: str = ""
    """Id of the Prefect flow run, for a writer that is one."""

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})" if self.pid else self.command


@contextmanager
def writing(root: Path, flow_run: str = "") -> Iterator[Holder]:
    """Holds the project in `root` for one writer; yields who held it last without having freed it, an empty `Holder` if nobody.

    Within a writer, and in its children, it does nothing. `StageError` names the writer, stage or `dvc` that is at work.
    """
    if _is_ours(root):
        yield Holder()
        return
    holder = Holder(os.getpid(), shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200], _new_token(), flow_run)
    end = time.monotonic() + _PATIENCE
    with _held(root, WRITER, end) as file:
        last = _read(file)
        _write(file, holder)
        before = _token.set(holder.token)
        try:
            with _held(root, STAGE, end):
                _refuse_dvc(root, end)
            yield last
        finally:
            _token.reset(before)
            _write(file, last if last.flow_run and not flow_run else None)  # a later flow closes a killed one's run


@contextmanager
def stage_running(root: Path = Path()) -> Iterator[None]:
    """Holds the place of the running stage; ends this process when the writer that started it dies.

    `StageError` if another stage or a writer that did not start this stage is at work, or the writer that started it has ended
    already. Outside a dvc project there is no lock.
    """
    if not (root / ".dvc").is_dir():
        yield
        return
    end = time.monotonic() + _PATIENCE
    with _held(root, STAGE, end) as file:
        _write(file, Holder(os.getpid(), f"stage {os.environ.get('DVC_STAGE', sys.argv[0])}"))
        try:
            if _is_ours(root):
                threading.Thread(target=_die_with_writer, args=(root,), daemon=True).start()
            elif os.environ.get(TOKEN):  # killed while this process was importing
                raise StageError("the run that started this stage has ended", "run it again; it goes on where it ended")
            else:
                with _held(root, WRITER, end):
                    pass
            yield
        finally:
            _write(file, None)


def check_free(root: Path) -> None:
    """`StageError` if somebody writes in `root` now."""
    if _is_ours(root):
        return
    end = time.monotonic() + _PATIENCE
    with _held(root, WRITER, end), _held(root, STAGE, end):
        _refuse_dvc(root, end)


def child_environment() -> dict[str, str]:
    """The environment for a child that belongs to this writer."""
    token = _token.get()
    return os.environ | ({TOKEN: token} if token else {})


def _new_token() -> str:
    return secrets.token_hex(16)


def _is_ours(root: Path) -> bool:
    """Whether the writer at work is this process or an ancestor that handed us its token."""
    token = _token.get() or os.environ.get(TOKEN, "")
    if not token:
        return False
    with suppress(OSError), (root / WRITER).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file).token == token
    return False


@contextmanager
def _held(root: Path, name: Path, end: float) -> Iterator[IO[bytes]]:
    """The lock's open file, once it is free; `StageError` names the holder if it is not until `end` (monotonic seconds)."""
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "r+b", opener=lambda name, _: os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))  # noqa: SIM115
    except OSError as error:
        raise StageError(f"{path} cannot be opened ({error.strerror})", "make the project's folder writable") from error
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise _busy(root, _read(file)) from error
                time.sleep(0.1)
        yield file


def _busy(root: Path, holder: Holder) -> TransientError:
    stop = f", or stop it: kill {holder.pid}" if holder.pid else ""
    return TransientError(f"{root.resolve()} is being written by {holder}", f"wait until it ends{stop}")


def _read(file: IO[bytes]) -> Holder:
    try:
        return Holder(**json.loads(os.pread(file.fileno(), 4096, 0)))
    except (ValueError, TypeError):  # empty: nobody, or one that is just starting
        return Holder()


def _write(file: IO[bytes], holder: Holder | None) -> None:
    with naming(Path(file.name)):
        file.truncate(0)
        if holder is not None:
            os.pwrite(file.fileno(), json.dumps(holder._asdict()).encode(), 0)


def _refuse_dvc(root: Path, end: float) -> None:
    """`StageError` if a `dvc` that we did not start works in `root`: it holds its repository's lock, or paths."""
    try:
        with (root / DVC_REPO).open("rb") as file:
            while _taken(file):
                if time.monotonic() > end:
                    pid = os.pread(file.fileno(), 32, 0).split()
                    raise _busy(root, Holder(int(pid[0]) if pid and pid[0].isdigit() else 0, "dvc"))
                time.sleep(0.1)
    except FileNotFoundError:
        return
    try:
        paths = json.loads((root / DVC_PATHS).read_bytes())
    except (OSError, ValueError):
        return
    for entry in (*paths.get("write", {}).values(), *(r for rs in paths.get("read", {}).values() for r in rs)):
        if entry and _alive(entry["pid"]):
            raise _busy(root, Holder(entry["pid"], entry["cmd"]))


def _taken(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


def _die_with_writer(root: Path) -> None:
    """Ends this process, by SIGTERM and then for certain, once its writer holds the lock no more; runs in a thread."""
    while _is_ours(root):
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(143)
