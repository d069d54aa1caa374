"""What a long run needs, checked before its first stage: all problems at once, in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from components.common.errors import ExpungeError, StageError, TransientError, UserError
from components.common.toplevel import told

GIB = 2**30
FREE = 2 * GIB
"""Bytes that a retraining may write: activations, checkpoints, artifacts and dvc's copies of them."""


class PreflightError(StageError):
    """A run that would fail; the sentence lists everything that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"the run would fail, {count}: {' · '.join(problems)}", "mend them and run it again")


class TransientPreflightError(PreflightError, TransientError):
    """A run that would fail now for reasons that may pass by themselves, such as a registry that cannot be reached."""


def preflight(checks: Iterable[Callable[[], object]]) -> None:
    """Runs every check; `PreflightError` lists what all of them found, by their `ExpungeError`s and `OSError`s."""
    problems: dict[str, ExpungeError] = {}
    for check in checks:
        try:
            check()
        except ExpungeError as error:
            problems.setdefault(str(error), error)
        except OSError as error:
            problems.setdefault(str(told(error)), told(error))
    if problems:
        found = problems.values()
        passing = all(isinstance(error, TransientError) for error in found)
        failed = (TransientPreflightError if passing else PreflightError)(list(problems))
        if all(isinstance(error, UserError) for error in found):
            failed.exit_code = UserError.exit_code
        raise failed


def check_disk(root: Path, needed: int = FREE) -> None:
    """`StageError` if the project's disk, or dvc's cache, has less than `needed` bytes free, or cannot be written."""
    for folder in {root.resolve(), (root / ".dvc").resolve()}:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StageError(f"{folder} cannot be written", "give this account the right to write there")
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise StageError(f"{folder} has {free / GIB:.1f} GiB free", f"free at least {needed / GIB:.0f} GiB")


def check_git(root: Path) -> None:
    """`StageError` if git cannot say which commit this is: a release records it."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=root, capture_output=True, text=True, check=False, timeout=10
        )
    except FileNotFoundError as error:
        raise StageError("git is not installed", "install it: a release names its commit") from error
    except subprocess.TimeoutExpired as error:
        raise StageError("git does not answer", "look at git status") from error
    if found.returncode:
        said = found.stderr.strip().partition("\n")[0] or "no commit"
        raise StageError(f"git does not know the commit of {root.resolve()} ({said})", "commit the project")
