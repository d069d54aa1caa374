"""Rows of a reports/<area>/show.json: what was measured, how often, with which interval, against which goal, by which command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from components.common.files import canonical, write_text

Row = dict[str, Any]
Value = float | str | None


def row(
    what: str, value: Value, *, goal: str, met: bool, command: str, n: int = 1, low: Value = None, high: Value = None
) -> Row:
    """One row of the table."""
    return {
        "what": what, "value": value, "n": n, "low": low, "high": high, "goal": goal, "met": met, "command": command,
    }  # fmt: skip


def publish(rows: Sequence[Row], path: Path) -> None:
    """Prints rows and puts them into a table, each in the place of one of the same name."""
    listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    named = {item["what"]: item for item in listed} | {item["what"]: item for item in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, canonical(list(named.values())))
    for item in rows:
        mark = "met   " if item["met"] else "MISSED"
        tqdm.write(f"{mark} {item['what']}: {item['value']} (goal {item['goal']}, n={item['n']})")
