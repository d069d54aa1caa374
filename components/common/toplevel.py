"""The end of every program: one sentence and an exit code, whatever went wrong.

Exit codes: 2 bad input, 3 a missing or altered artifact, 4 a stage or flow that could not finish, 5 an error that nobody
foresaw (its traceback is in the log), 130 interrupted, 129 hung up, 143 terminated.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from components.common.errors import ExpungeError, StageError
from components.common.files import remedy_of
from components.common.process import TerminatedError, signals_raise

DEBUG = "EXPUNGE_DEBUG"
"""Set, it shows tracebacks; children inherit it."""
UNFORESEEN = 5
_LOG_BYTES = 2**20
_LITTLE = 2**16
"""Bytes; a disk that has no more is full."""


@contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """Runs a program's body; turns every exception but `SystemExit` into one sentence on stderr and an exit code."""
    _open_standard_files()
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):  # names in any script, whatever LANG says
            out.reconfigure(errors="backslashreplace")
    try:
        with signals_raise():
            yield
    except BrokenPipeError as error:  # who reads us has gone: nobody to tell
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(141) from error
    except KeyboardInterrupt as error:
        raise _end(program, error, "interrupted", 130) from error
    except TerminatedError as error:
        raise _end(program, error, f"ended by {error}", error.exit_code) from error
    except ExpungeError as error:
        raise _end(program, error, str(error), error.exit_code) from error
    except OSError as error:
        raise _end(program, error, str(told(error)), StageError.exit_code) from error
    except MemoryError as error:
        said = StageError("the memory is used up", "end other programs or make batches smaller")
        raise _end(program, error, str(said), said.exit_code) from error
    except Exception as error:
        where = log_traceback(program, error)
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise _end(program, error, f"unforeseen {said}; the traceback is in {where}", UNFORESEEN) from error


def _open_standard_files() -> None:
    """Opens input, output and errors where the caller has closed them: a file that we write must not become one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


def _end(program: str, error: BaseException, sentence: str, code: int) -> SystemExit:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{program}: {sentence}\n")
        sys.stderr.flush()
    return SystemExit(code)


def told(error: OSError) -> StageError:
    """An error of the system as one sentence: the file, what is wrong with it, and what helps."""
    name, said = error.filename, error.strerror or str(error)
    if error.filename2 is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        name = error.filename2  # of a copy; the first is what was read
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, name, said = error.args[0][0]  # of several files that could not be copied, the first
    if name is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        name = " or ".join(_full_places()) or "the output or a file"  # /dev/full, or space was made meanwhile
    return StageError(f"{os.fsdecode(name) if name else 'a file'}: {said}", remedy_of(error))


def _full_places() -> list[str]:
    """The places that a program writes to and whose disk is full: its output, the working folder, and that of temporary files."""
    found = []
    for name, place in (("the output", 1), ("the working folder", "."), (tempfile.gettempdir(), tempfile.gettempdir())):
        with suppress(OSError):
            disk = os.statvfs(place)
            if disk.f_bavail * disk.f_frsize < _LITTLE and (place != 1 or stat.S_ISREG(os.fstat(1).st_mode)):
                found.append(name)
    return found


def log_traceback(program: str, error: BaseException) -> str:
    """Appends the traceback to the log; returns where that is: a file only its owner reads, or stderr if none can be written."""
    lines = traceback.format_exception(error)
    text = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {program}, process {os.getpid()}\n{''.join(lines)}\n"
    for folder in _state_folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = folder / "expunge.log"
            if path.exists() and path.stat().st_size > _LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:  # noqa: PTH123
                file.write(text.encode("utf-8", "backslashreplace"))
            return str(path)
    sys.stderr.writelines(lines)
    return "the lines above"


def _state_folders() -> Iterator[Path]:
    """Where the log may lie, best place first."""
    if state := os.environ.get("XDG_STATE_HOME"):
        yield Path(state) / "expunge"
    with suppress(RuntimeError):  # no HOME and no entry in the system's list of accounts
        yield Path.home() / ".local" / "state" / "expunge"
    yield Path(tempfile.gettempdir()) / f"expunge-{os.getuid()}"
