"""Cells and columns of the documents' tables."""  # noqa: INP001 - a script's module

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
Metric = Mapping[str, Any]
"""{value, n, low, high} with a 95 % interval, as components/evaluate/metrics.py records it."""


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cells: list[str]


def read(path: str) -> dict[str, Any]:
    """A file of results, relative to the project's root."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def table(*columns: Column) -> str:
    """A Markdown table."""
    lines = [[c.title for c in columns], ["---"] * len(columns), *zip(*(c.cells for c in columns), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shares(title: str, metrics: Sequence[Metric], digits: int = 1) -> Column:
    """Shares in percent with their intervals; n stands in the title where it is one number."""
    return _measured(title, metrics, lambda value: f"{100 * value:.{digits}f}", "%")


def numbers(title: str, metrics: Sequence[Metric], digits: int = 3) -> Column:
    """Numbers with their intervals; n stands in the title where it is one number."""
    return _measured(title, metrics, lambda value: f"{value:.{digits}f}", "")


def _measured(title: str, metrics: Sequence[Metric], show: Callable[[float], str], unit: str) -> Column:
    counts = {m["n"] for m in metrics}
    described = ", ".join(part for part in (unit, f"n = {counts.pop()}" if len(counts) == 1 else "") if part)
    cells = []
    for m in metrics:
        text = "—" if m["value"] is None else show(m["value"])
        if m["value"] is not None and m["low"] is not None and m["low"] != m["high"]:
            text += f" [{show(m['low'])}, {show(m['high'])}]"
        cells.append(text if "n = " in described else f"{text}, n = {m['n']}")
    return Column(f"{title} ({described})" if described else title, cells)


def hits(metric: Metric) -> str:
    """A share as a count, such as '24 of 24'."""
    return f"{round(metric['value'] * metric['n'])} of {metric['n']}"


def largest_drift(found: Mapping[str, Any]) -> str:
    """The largest drift of the unconditional output over timesteps, in percent."""
    drift = found.get("uncond_drift")
    return f"{100 * max(bucket['value'] for bucket in drift.values()):.2f}" if drift else "—"
