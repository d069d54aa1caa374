"""Outcomes to rates: by attack and by tier, before and after, as each judge sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.common.variants import DEFAULT
from components.evaluate.attacks.attempts import Attack
from components.evaluate.attacks.campaign import FIRST, SECOND, Outcome, counts, found
from components.evaluate.attacks.correction import Count, Known, corrected_rate
from components.evaluate.metrics import proportion


def rates(
    attack: Attack | None,
    outcomes: Sequence[Outcome],
    known: Mapping[str, Known],
    variants: Sequence[str],
    *,
    images: int,
) -> dict[str, Any]:
    """What became of attempts that count: by variant the success rate, as judged and corrected, detection and agreement.

    `attack` None: attempts of several attacks, all of which count.
    """
    rows = [o for o in outcomes if attack is None or counts(o, attack)]
    out: dict[str, Any] = {
        "tried": len(outcomes),
        "n": len(rows),
        "queries": int(sum(o["queries"] for o in rows)),
        "before": proportion([any(found(o, "base", FIRST)) for o in rows]).record(),
        "variants": {},
    }
    for variant in variants:
        shown = [o for o in rows if variant in o["variants"]]
        hits = {name: [any(found(o, variant, name)) for o in shown] for name in known}
        entry: dict[str, Any] = {
            "judged": proportion(hits[FIRST]).record(),
            "corrected": _corrected(hits[FIRST], known[FIRST], images),
            "detected": proportion([o["variants"][variant]["detected"] for o in shown]).record(),
        }
        if nothing := [x for o in shown for x in o["variants"][variant]["nothing"]]:  # the judge can tell
            entry["artifacts"] = proportion(nothing).record()
        if SECOND in known:
            entry["second"] = _corrected(hits[SECOND], known[SECOND], images)
            pairs = [
                (a, b) for o in shown for a, b in zip(*(found(o, variant, j) for j in (FIRST, SECOND)), strict=True)
            ]
            entry["disagreement"] = proportion([a != b for a, b in pairs]).record()
        out["variants"][variant] = entry
    return out


def why_uncounted(rate: Mapping[str, Any]) -> str:
    """Why no attempt of an attack counts; empty if one does."""
    if rate["n"]:
        return ""
    tried = rate["tried"]
    return (
        f"the base draws the target from none of {tried} attempts"
        if tried
        else "it knows no other word for this target"
    )


def _corrected(hits: Sequence[bool], judge: Known, images: int) -> dict[str, float]:
    return corrected_rate(Count(int(np.sum(hits)), len(hits)), judge, images=images).record()


def by_tier(
    listed: Mapping[str, tuple[Attack, Sequence[Outcome]]],
    known: Mapping[str, Known],
    variants: Sequence[str],
    *,
    images: int,
) -> dict[str, Any]:
    """The rates of each tier's attacks together; an attack that is optimised against several variants enters with the default's."""
    tiers: dict[str, list[Outcome]] = {}
    for key, (attack, outcomes) in listed.items():
        if not attack.optimised or key.endswith(f"/{DEFAULT}"):
            tiers.setdefault(attack.tier, []).extend(o for o in outcomes if counts(o, attack))
    return {tier: rates(None, rows, known, variants, images=images) for tier, rows in sorted(tiers.items())}
