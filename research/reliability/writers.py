"""Ten processes at once that add requests, withdraw others and submit more: none may be lost, and none written twice."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from components.ledger.events import Ledger
from components.ledger.queue import read_queue
from components.requests.requests import load_requests
from research.reliability import toy
from research.reliability.show import share
from research.show import Row

WRITERS = 10
NOTE = "# ours, by hand\n"
NAMES = (
    "cat", "pizza", "guitar", "rocket", "umbrella", "cactus", "owl", "snail", "castle", "drum",
    "banana", "tractor", "penguin", "tent", "balloon", "crown", "sheep", "helicopter", "camera", "key",
    "whale", "rose", "mushroom", "spider", "bomb",
)  # fmt: skip


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in toy.environment().items() if k not in ("MLFLOW_TRACKING_URI", "EXPUNGE_LEDGER_URL")}
    command = [sys.executable, "-m", "expunge", "request", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _ended(writers: Sequence[subprocess.Popen[str]]) -> int:
    """How many of them failed; says why."""
    failed = 0
    for writer in writers:
        said, _ = writer.communicate(timeout=300)
        if writer.returncode:
            failed += 1
            tqdm.write(said.strip())
    return failed


def one_round(folder: Path) -> tuple[int, int]:
    """(failed commands, requests lost, doubled or not withdrawn) of ten additions, then of five withdrawals beside five additions and ten submissions."""
    from tests.toyproject import write_project  # noqa: PLC0415 - a test's module

    project = write_project(folder, withdrawal_hours=1.0, requests={})
    path = project / "requests.yaml"
    path.write_text(NOTE + path.read_text())
    first, more, submitted = NAMES[:10], NAMES[10:15], NAMES[15:25]
    failed = _ended([_start(project, "add", name, "--channel", "filter") for name in first])
    ids = {request.target: request_id for request_id, request in load_requests(path).items()}
    wrong = len(set(first) ^ set(ids))
    gone = [name for name in first if name in ids][:5]
    for name in submitted:
        (project / f"{name}.yaml").write_text(f"- {{target: {name}, kind: object, channels: [filter]}}\n")
    failed += _ended(
        [
            *(_start(project, "remove", ids[name]) for name in gone),
            *(_start(project, "add", name, "--channel", "filter") for name in more),
            *(_start(project, "submit", f"{name}.yaml") for name in submitted),
        ]
    )
    left = [request.target for request in load_requests(path).values()]
    wrong += len(left) - len(set(left))
    wrong += len({*first, *more}.difference(gone) ^ set(left)) + (not path.read_text().startswith(NOTE))
    ledger = Ledger(f"sqlite:///{project / 'ledger.db'}", must_exist=True)
    ledger.verify()
    queued = [item.request.target for item in read_queue(ledger).values()]
    return failed, wrong + len(set(submitted) ^ set(queued)) + len(queued) - len(set(queued))


def measure_writers(times: int, command: str) -> list[Row]:
    """The rows of `times` rounds."""
    failed = wrong = 0
    per_round = WRITERS * 3
    for _ in tqdm(range(times)):
        with tempfile.TemporaryDirectory() as name:
            of_failed, of_wrong = one_round(Path(name) / "project")
        failed, wrong = failed + of_failed, wrong + of_wrong
    n = times * per_round
    return [
        share(f"{WRITERS} and more writers at once: requests lost, doubled or not withdrawn", wrong, n, command),
        share(f"{WRITERS} and more writers at once: commands that failed", failed, n, command),
    ]
