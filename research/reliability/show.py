"""Rows of reports/reliability/show.json: what was counted, how often, with a 95 % interval, against which goal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import beta
from tqdm import tqdm

from components.common.files import canonical, write_text

SHOW = Path("reports/reliability/show.json")
Row = dict[str, Any]


def share(what: str, count: int, n: int, command: str) -> Row:
    """The share `count` of `n` that must be 0, with its exact (Clopper–Pearson) interval."""
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0
    value = count / n if n else None
    return {
        "what": what, "value": value, "n": n, "low": round(low, 6), "high": round(high, 6), "goal": "= 0",
        "met": n > 0 and count == 0, "command": command,
    }  # fmt: skip


def largest(what: str, value: float, n: int, goal: float, command: str) -> Row:
    """The largest of `n` values, which must not pass `goal`."""
    return {
        "what": what, "value": round(value, 3), "n": n, "low": None, "high": None, "goal": f"<= {goal:g}",
        "met": n > 0 and value <= goal, "command": command,
    }  # fmt: skip


def write_rows(rows: Sequence[Row], command: str, path: Path = SHOW) -> None:
    """Prints rows and puts them into the report, in place of those of the same part; rows of other parts stay."""
    part = command.partition(" --")[0]
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    others = [row for row in before if row["command"].partition(" --")[0] != part]
    write_text(path, canonical([*others, *rows]))
    for row in rows:
        tqdm.write(
            f"{'met ' if row['met'] else 'MISS'} {row['what']}: {row['value']} (n={row['n']}, goal {row['goal']})"
        )
