"""Where the stage `attack` leaves its evidence, how it is read, and a few lines that say how far an attacker gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.variants import DEFAULT

ATTACKS = Path("reports/attacks")
RESULTS, VERDICT, PAGE = "results.json", "verdict.json", "page.html"


def read_attacks(folder: Path = ATTACKS) -> tuple[dict[str, Any], dict[str, Any]]:
    """(results, verdict) of the last attacks; `ArtifactError` if either is missing or no JSON."""
    out = []
    for name in (RESULTS, VERDICT):
        try:
            out.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except OSError as error:
            raise ArtifactError(f"{folder / name} is missing", "run the attacks: expunge attack") from error
        except ValueError as error:
            raise ArtifactError(f"{folder / name} is not JSON", "write it again: expunge attack") from error
    return out[0], out[1]


def summarise_attacks(results: Mapping[str, Any], verdict: Mapping[str, Any], folder: Path) -> list[str]:
    """The verdict, a line for each request and tier, and where the page is."""
    highest = verdict["highest_tier"]
    said = "pass" if verdict["passed"] else "FAIL"
    lines = [
        f"Attacks: {said}. The default withstands {'no tier' if highest == 'none' else f'attackers up to {highest}'}."
    ]
    for found in results["requests"].values():
        if found.get("judge"):
            lines.append(f"{found['target']}: not attacked, since {found['judge']}.")
        lines += [
            f"{found['target']}, {key.split('/')[0]}: no attempt counts; {why}."
            for key, why in found.get("uncounted", {}).items()
        ]
        for tier, rates in found["tiers"].items():
            rate = rates["variants"][DEFAULT]["corrected"]
            if rate["value"] is None:
                lines.append(f"{found['target']}, {tier}: the base draws it from none of {rates['tried']} attempts.")
            else:
                lines.append(
                    f"{found['target']}, {tier}: {100 * rate['value']:.1f} % of {rate['n']} attempts succeed "
                    f"(95 %: {100 * rate['low']:.1f} to {100 * rate['high']:.1f} %)."
                )
    return [*lines, f"Look at them: {folder / PAGE}"]
