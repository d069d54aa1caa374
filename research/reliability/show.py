"""Rows of reports/reliability/show.json: what was counted, how often, with a 95 % interval, against which goal."""

from __future__ import annotations

from pathlib import Path

from scipy.stats import beta

from research.show import Row, row

SHOW = Path("reports/reliability/show.json")


def share(what: str, count: int, n: int, command: str) -> Row:
    """The share `count` of `n` that must be 0, with its exact (Clopper–Pearson) interval."""
    low = float(beta.ppf(0.025, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, n - count)) if count < n else 1.0
    value = count / n if n else None
    return row(
        what, value, n=n, low=round(low, 6), high=round(high, 6), goal="= 0", met=n > 0 and count == 0, command=command
    )


def largest(what: str, value: float, n: int, goal: float, command: str) -> Row:
    """The largest of `n` values, which must not pass `goal`."""
    return row(what, round(value, 3), n=n, goal=f"<= {goal:g}", met=n > 0 and value <= goal, command=command)
