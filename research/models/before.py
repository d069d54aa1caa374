"""Whether the embedded world's evaluation is as good as it was at an earlier commit, metric by metric and by their intervals."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from components.common.paths import EVALUATE
from components.evaluate.summary import METRICS
from research.show import Row, row

BEFORE = "306b91b"
"""The last reproduced evaluation before any model but the embedded one was supported (2026-11-26)."""
RENAMED = {"both": "summed"}
LESS_IS_BETTER = ("fpr", "fpr_neighbours", "uncond_drift", "passthrough_max_abs")


def measured(found: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every metric with its place: request, variant, name."""
    for key, each in found.items():
        at = (*path, RENAMED.get(key, key))
        if isinstance(each, dict) and "value" in each:
            yield at, each
        elif isinstance(each, dict):
            yield from measured(each, at)


def is_worse(before: dict[str, Any], now: dict[str, Any], name: str) -> bool:
    """Whether the whole interval of now is on the bad side of the whole interval of before; a bare number is its own interval."""
    (low, high), (least, most) = ((e.get("low", e["value"]), e.get("high", e["value"])) for e in (before, now))
    return least > high if name in LESS_IS_BETTER else most < low


def measure_before(_count: int, command: str) -> list[Row]:
    """Rows on the embedded world: metrics that both evaluations have, and those that got worse beyond their intervals."""
    path = (EVALUATE / METRICS).as_posix()
    then = json.loads(subprocess.run(["git", "show", f"{BEFORE}:{path}"], capture_output=True, check=True).stdout)
    now = dict(measured(json.loads((EVALUATE / METRICS).read_text(encoding="utf-8"))["requests"]))
    both = [(at, old, now[at]) for at, old in measured(then["requests"]) if at in now]
    worse = ["/".join(at) for at, old, new in both if is_worse(old, new, at[-1])]
    return [
        row(
            "embedded world: metrics of the evaluation worse than before, beyond both intervals",
            len(worse) if not worse else f"{len(worse)}: {', '.join(worse)}",
            n=len(both), goal="0", met=not worse, command=command,
        )
    ]  # fmt: skip
