"""Promotion and draining, measured by their own tests: `python -m research.operations` writes its rows of reports/operations/show.json.

    python -m research.operations             # all of them
    python -m research.operations histories   # those whose test has this in its name

What needs servers, processes and kills is measured by deploy/acceptance.py, whose rows stay.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from components.common.files import canonical, write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "reports" / "operations" / "show.json"
COMMAND = "python -m research.operations"


class Claim(NamedTuple):
    """One row, and the test that would fail if it were not so."""

    what: str
    value: float | str
    n: int
    goal: str
    test: str


PROMOTION, COMMANDS = "tests/components/registry/test_promotion.py", "tests/components/registry/test_release_cli.py"
FLOWS = "tests/flows/test_operations.py"
CLAIMS = (
    Claim(
        "generated histories: promotions without matching digest, gates and approval", 0, 200, "0",
        "tests/components/registry/test_histories.py::test_generated_histories",
    ),
    Claim(
        "altered releases (filter, folder, evaluation, other bytes, all gone) approved, promoted or rolled back to", 0, 15,
        "0", f"{PROMOTION}::test_altered_bytes_are_neither_approved_nor_promoted_nor_rolled_back_to",
    ),
    Claim(
        "rollback restores the bytes of the champion before (SQLite registry)", "yes", 1, "yes",
        f"{COMMANDS}::test_from_candidate_to_champion_and_back_on_the_command_line",
    ),
    Claim(
        "aliases deleted by hand are rebuilt from the history (SQLite registry)", "yes", 1, "yes",
        f"{COMMANDS}::test_list_says_which_alias_is_wrong_and_an_act_mends_it",
    ),
    Claim(
        "50 requests, one withdrawn in time: requests that one drain takes (flow in process)", 49, 50, "49, in one training",
        f"{FLOWS}::test_drain_takes_all_that_is_pending_in_one_run",
    ),
    Claim(
        "drain killed while checking, writing, training, registering or noting: trained or registered twice (flow in process)", 0, 4,
        "0", f"{FLOWS}::test_drain_killed_anywhere_is_taken_up_by_the_next",
    ),
)  # fmt: skip


def holds(claim: Claim) -> bool:
    """Whether the claim's test passes now."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", claim.test]
    return subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode == 0


def main(named: str = "") -> int:
    """Runs the test of each claim, or of those whose test is so named, and writes its row; returns how many do not hold."""
    listed = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else []
    rows = {row["what"]: row for row in listed}
    missed = 0
    for claim in (one for one in CLAIMS if named in one.test):
        met = holds(claim)
        missed += not met
        rows[claim.what] = {
            "what": claim.what, "value": claim.value if met else None, "n": claim.n, "low": None, "high": None,
            "goal": claim.goal, "met": met, "command": COMMAND,
        }  # fmt: skip
        tqdm.write(f"{'met ' if met else 'MISS'} {claim.what}")
        write_text(OUT, canonical(list(rows.values())))
    return missed


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
