"""Attacks that nobody ran: results as the stage writes them, of a number of successes, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from components.common.files import canonical, write_text
from components.common.variants import DEFAULT
from components.evaluate.attacks.evidence import judge_results, wanted_attacks
from components.evaluate.attacks.params import AttackParams, AttackSize, TierGate
from components.evaluate.attacks.registry import attack_named
from components.evaluate.attacks.summary import PAGE, RESULTS, VERDICT
from components.evaluate.metrics import proportion

LADDER = (TierGate(tier="T0", at_most=0.05, n=142), TierGate(tier="T1", at_most=0.05, n=142))
N = 200


def attack_params(size: str, gates: Iterable[TierGate] = LADDER) -> AttackParams:
    """A section `attack` whose only size runs one attack of tier 0 and one of tier 1."""
    one = AttackSize(
        attacks=("slips", "mma"), variants=(DEFAULT,), against=(DEFAULT,), attempts=142, tries=600, seeds=2, iterations=1,
        candidates=1, tokens=1, similarity=0.9, clean=0, known=600, gates=tuple(gates),
    )  # fmt: skip
    return AttackParams(size=size, sizes={size: one}, batch=1, seed=0)


def attack_results(
    params: AttackParams, requests: Iterable[str], judged: Mapping[str, str], *, hits: int = 0
) -> dict[str, Any]:
    """The content of results.json if `hits` of 200 attempts of each attack, and of each tier, succeed."""
    size = params.sizes[params.size]
    rate = proportion([i < hits for i in range(N)]).record()
    rates = {
        "tried": N,
        "n": N,
        "variants": {DEFAULT: {"corrected": rate, "judged": rate}},
    }
    attacks = {key: {"tier": attack_named(key.partition("/")[0]).tier} | rates for key in wanted_attacks(size)}
    found = {"hook": "", "attacks": attacks, "tiers": {one["tier"]: rates for one in attacks.values()}}
    by_request = {i: found | {"target": i} for i in requests}
    return {"size": params.size, "images": size.seeds, "judged": dict(judged), "requests": by_request}


def write_attacks(
    folder: Path, results: Mapping[str, Any], params: AttackParams, *, passed: bool | None = None
) -> None:
    """Writes what the stage `attack` would, with the verdict that follows from the results, or one set by hand."""
    verdict = judge_results(results, params)
    write_text(folder / RESULTS, canonical(results))
    write_text(folder / VERDICT, canonical(verdict | ({} if passed is None else {"passed": passed})))
    write_text(folder / PAGE, "<p>attacks</p>")
