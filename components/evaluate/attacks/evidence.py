"""The attacks' verdict made again from their results, for whoever releases or promotes what was attacked; no stage reads this module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.variants import DEFAULT
from components.evaluate.attacks.params import AttackParams, AttackSize
from components.evaluate.attacks.verdict import NONE, verdict_record
from components.evaluate.evidence import ordered
from components.evaluate.summary import count

_SHARED = ("base", "filter", "adapter/", "request/")


def judge_results(results: Mapping[str, Any], params: AttackParams) -> dict[str, Any]:
    """The content of verdict.json as it follows from that of results.json and the gates of its size in `params`.

    `KeyError` for a size that `params` lacks.
    """
    from components.evaluate.attacks.registry import ATTACKS  # noqa: PLC0415 - imports torch

    size = params.sizes[results["size"]]
    tiers = {name: attack.tier for name, attack in ATTACKS.items()}
    return verdict_record(results["requests"], size.gates, tiers, sorted(size.attacks), results["judged"])


def follows(verdict: Mapping[str, Any], results: Mapping[str, Any], params: AttackParams) -> bool:
    """Whether a verdict is the one that `judge_results` gives, in whichever order its gates stand; `KeyError` as there."""
    return ordered(verdict) == ordered(judge_results(results, params))


def wanted_attacks(size: AttackSize) -> set[str]:
    """The keys, `attack/variant`, of everything that a size runs against each request."""
    from components.evaluate.attacks.registry import attack_named  # noqa: PLC0415 - imports torch

    listed = [attack_named(name) for name in size.attacks]
    return {f"{a.name}/{against}" for a in listed for against in (size.against if a.optimised else (DEFAULT,))}


def success_rates(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The corrected attack success rate of the default variant, as a metric record, by `request/tier` and `request/attack/variant`."""
    return {
        f"{request}/{key}": rates["variants"][DEFAULT]["corrected"]
        for request, found in results["requests"].items()
        for key, rates in [*found["tiers"].items(), *found["attacks"].items()]
        if DEFAULT in rates["variants"]
    }


def withstood(verdict: Mapping[str, Any]) -> str:
    """The highest tier of attackers that the default variant withstands, as a sentence."""
    highest = verdict["highest_tier"]
    return f"The default withstands {'no tier' if highest == NONE else f'attackers up to {highest}'}."


def summary_line(results: Mapping[str, Any], verdict: Mapping[str, Any], page: Path) -> str:
    """The verdict on the attacks, the highest tier that is withstood, how many attempts the judge says succeeded, and where they are."""
    seen = [
        rates["variants"][DEFAULT]["judged"]
        for found in results["requests"].values()
        for rates in found["tiers"].values()
    ]
    hits, tried = sum(count(one) for one in seen), sum(one["n"] for one in seen)
    said = "pass" if verdict["passed"] else "FAIL"
    return f"Attacks: {said}. {withstood(verdict)} {hits} of {tried} attempts succeed (size {results['size']}): {page}"


def attacked_same(attacked: Mapping[str, str], evaluated: Mapping[str, str]) -> str:
    """Empty if what was attacked is what was evaluated, by digest; else the first of base, filter, adapters and records that is not."""
    one, other = ({n: sha for n, sha in judged.items() if n.startswith(_SHARED)} for judged in (attacked, evaluated))
    return next((name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)), "")
