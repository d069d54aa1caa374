"""`python -m research.models agree --n 10000`: measures one part on the stand-ins and writes its rows to reports/models/show.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from research.models.before import measure_before
from research.models.measure import measure_agreement, measure_calls, measure_export, measure_leak
from research.models.memory import measure_memory
from research.models.size import measure_size
from research.models.stages import measure_stages
from research.show import publish

PARTS = {
    "agree": measure_agreement,
    "leak": measure_leak,
    "calls": measure_calls,
    "export": measure_export,
    "stages": measure_stages,
    "memory": measure_memory,
    "size": measure_size,
    "before": measure_before,
}
COUNTS = {
    "agree": 10_000,
    "leak": 1000,
    "calls": 1000,
    "export": 3,
    "stages": 3,
    "memory": 3,
    "size": 3000,
    "before": 1,
}
SHOW = Path("reports/models/show.json")


def main() -> None:
    """Runs the named part, prints its rows and puts them into the report."""
    parser = argparse.ArgumentParser(prog="python -m research.models", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--n", type=int, help="prompts, calls or models")
    given = parser.parse_args()
    count = given.n or COUNTS[given.part]
    publish(PARTS[given.part](count, f"python -m research.models {given.part} --n {count}"), SHOW)


if __name__ == "__main__":
    main()
