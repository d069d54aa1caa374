"""Rows of reports/operations/show.json: what was tried, what came out, and whether that met its goal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from components.common.files import canonical, write_text

SHOW = Path(__file__).parents[1] / "reports" / "operations" / "show.json"
Row = dict[str, Any]


def row(what: str, value: object, *, goal: str, met: bool, command: str, n: int = 1) -> Row:
    """One row of the table."""
    return {
        "what": what,
        "value": value,
        "n": n,
        "low": None,
        "high": None,
        "goal": goal,
        "met": met,
        "command": command,
    }


def publish(rows: list[Row], path: Path = SHOW) -> None:
    """Puts rows into the table, each in the place of one of the same name."""
    listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    named = {item["what"]: item for item in listed} | {item["what"]: item for item in rows}
    write_text(path, canonical(list(named.values())))
    for item in rows:
        mark = "met   " if item["met"] else "MISSED"
        say(f"{mark} {item['what']}: {item['value']} (goal {item['goal']}, n={item['n']})")


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()
