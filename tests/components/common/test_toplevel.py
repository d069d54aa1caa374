"""Whatever ends a program, it says one sentence and exits with a code that tells why."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from components.common.errors import ArtifactError, StageError, UserError
from components.common.process import TerminatedError
from components.common.toplevel import one_sentence

ROOT = Path(__file__).parents[3]


def ended(error, capsys):
    """(exit code, what stderr got) of a program that ends with `error`."""
    with pytest.raises(SystemExit) as end, one_sentence("expunge"):
        raise error
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("the prompt is empty", "say what to draw"), 2, "the prompt is empty; say what to draw"),
        (ArtifactError("x is altered", "restore it"), 3, "x is altered; restore it"),
        (StageError("stage x failed", "see above"), 4, "stage x failed; see above"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 4, "x: No space left on device; free some space"),
        (OSError(errno.ENOSPC, "No space left on device", "read", None, "written"), 4, "written: No space left on device; free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "the output or a folder: No space left on device; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "from", None, "to"), 4, "from: Permission denied; mend the path or its permissions"),
        (shutil.Error([("from", "to", "[Errno 28] No space left on device")]), 4, "to: [Errno 28] No space left on device; free some space"),
        (OSError("no disk"), 4, "a file: no disk; free some space"),
        (PermissionError(errno.EACCES, "Permission denied"), 4, "a file: Permission denied; mend the path or its permissions"),
        (MemoryError(), 4, "the memory is used up; end other programs or make batches smaller"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (TerminatedError(signal.SIGTERM), 143, "ended by SIGTERM"),
        (TerminatedError(signal.SIGHUP), 129, "ended by SIGHUP"),
    ],
)  # fmt: skip
def test_an_expected_end_is_its_sentence_and_code(capsys, monkeypatch, error, code, said):
    """Each kind of end has its exit code, and stderr gets one line without a traceback."""
    monkeypatch.setattr("components.common.toplevel._full_places", lambda: ["the output", "a folder"])
    assert ended(error, capsys) == (code, f"expunge: {said}\n")


def test_an_unforeseen_error_names_the_log(capsys, monkeypatch, tmp_path):
    """The traceback goes to a file that its owner alone can read; the sentence names it; two errors are both there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    log = tmp_path / "expunge" / "expunge.log"
    code, said = ended(KeyError("lost\nline"), capsys)
    ended(RuntimeError("another"), capsys)

    assert code == 5
    assert said == f"expunge: unforeseen KeyError: 'lost\\nline'; the traceback is in {log}\n"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "raise error" in log.read_text()
    assert "RuntimeError: another" in log.read_text()


def test_a_full_disk_under_the_output_is_named(tmp_path):
    """`expunge … > FILE` on a full disk: one sentence says that it is the output, and what to do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("only root may mount")
    try:
        with pytest.raises(OSError, match="No space left"):
            (disk / "fill").write_bytes(b"x" * 2**17)
        with (disk / "out").open("wb") as out:
            done = subprocess.run([sys.executable, "-m", "expunge", "request", "list"], cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    finally:
        subprocess.run(["umount", disk], check=True)

    assert (done.returncode, done.stderr) == (4, "expunge: the output: No space left on device; free some space\n")


def test_a_large_log_is_begun_anew(capsys, monkeypatch, tmp_path):
    """Past one MiB the log is put aside, so that it never fills a disk."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    log = tmp_path / "expunge" / "expunge.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * (2**20 + 1))
    ended(RuntimeError("new"), capsys)

    assert log.stat().st_size < 10_000
    assert (log.parent / "expunge.log.1").stat().st_size == 2**20 + 1


def test_where_no_log_can_be_written_stderr_gets_it(capsys, monkeypatch, tmp_path):
    """With every state folder blocked the traceback is not lost."""
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setattr("components.common.toplevel._state_folders", lambda: iter([blocked / "expunge"]))
    code, said = ended(RuntimeError("lost"), capsys)

    assert code == 5
    assert "raise error" in said
    assert said.endswith("the traceback is in the lines above\n")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    """`--debug` sets a variable, which children inherit; with it even an expected error shows where it was raised."""
    monkeypatch.setenv("EXPUNGE_DEBUG", "1")

    assert "Traceback" in ended(UserError("a", "b"), capsys)[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_ends_a_program_and_what_it_started(number, code):
    """A signal to a program that waits for a child: exit code, one line, and the child has gone; cleaning up ran."""
    body = (
        "import sys; from pathlib import Path\nfrom components.common.toplevel import one_sentence\n"
        "from components.common.process import stream\n"
        "with one_sentence('expunge'):\n    stream([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'], Path())"
    )
    heeded = partial(signal.signal, number, signal.SIG_DFL)  # the tests themselves may have been started by nohup
    program = subprocess.Popen(
        [sys.executable, "-c", body], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeded,  # noqa: PLW1509 - no thread runs here
    )  # fmt: skip
    child = int(program.stdout.readline())
    program.send_signal(number)
    _, error = program.communicate(timeout=15)

    assert program.returncode == code
    assert len(error.splitlines()) == 1
    assert not Path(f"/proc/{child}").exists()


def test_an_output_that_takes_nothing():
    """Printing to a full device is said of the output, in one sentence."""
    body = "from components.common.toplevel import one_sentence\nwith one_sentence('expunge'):\n    print('x' * 99999, flush=True)"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", body], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip

    assert done.returncode == 4
    assert done.stderr == "expunge: the output or a file: No space left on device; free some space\n"


def test_nohup_keeps_its_program():
    """A program that ignores SIGHUP from its start goes on."""
    body = (
        "import time\nfrom components.common.toplevel import one_sentence\n"
        "with one_sentence('expunge'):\n    print('ready', flush=True)\n    time.sleep(1)\n    print('done')"
    )
    program = subprocess.Popen(["nohup", sys.executable, "-c", body], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGHUP)

    assert program.communicate(timeout=15)[0] == "done\n"


@pytest.mark.parametrize("command", [("request", "list"), ("params",), ("--help",)])
def test_a_reader_that_leaves_is_no_error(command):
    """`expunge … | head -0`: nothing on stderr."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "expunge", *command], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    os.close(write)

    assert done.stderr == ""
    assert done.returncode in (1, 120, 141)


def test_no_file_becomes_the_output(tmp_path):
    """A program whose input, output and errors are closed, as a daemon's may be, opens its files under other numbers."""
    body = (
        "import os, pathlib\nfrom components.common.toplevel import one_sentence\n"
        f"with one_sentence('expunge'):\n    file = open({str(tmp_path / 'x')!r}, 'w')\n"
        "    os.write(1, b'said by a library')\n    file.write(str(file.fileno()))"
    )
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, body], cwd=ROOT, check=True)

    assert int((tmp_path / "x").read_text()) > 2


def test_usage_errors_keep_their_code(expunge):
    """What typer refuses ends with 2 and says how the command is used."""
    code, _, error = expunge("generate")

    assert code == 2
    assert "Missing argument" in error
