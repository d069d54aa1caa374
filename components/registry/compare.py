"""What differs between two releases, as `expunge release diff` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.evaluate.attacks.evidence import success_rates
from components.registry.release import Release


def compare(old: Release, new: Release) -> dict[str, Any]:
    """What differs between two releases: requests, params, metrics, attacks and digests, each as {name: [old, new]} or lists of names."""
    before, after = old.requests, new.requests
    return {
        "requests": {
            "added": {i: after[i].target for i in after if i not in before},
            "removed": {i: before[i].target for i in before if i not in after},
            "changed": {i: after[i].target for i in after if i in before and after[i] != before[i]},
        },
        "params": _changes(_flat(old.params), _flat(new.params)),
        "metrics": _changes(_records(old.metrics["requests"]), _records(new.metrics["requests"])),
        "attacks": _changes(_attacks(old), _attacks(new)),
        "digests": _changes(old.record.get("files", {}), new.record.get("files", {})),
    }


def _attacks(release: Release) -> dict[str, Any]:
    """The verdict on a release's attacks, the highest tier that is withstood, what was not tried, and success rates; empty without attacks."""
    if release.attacks is None:
        return {}
    results, verdict = release.attacks
    said = {name: verdict[name] for name in ("passed", "highest_tier", "not_tried")}
    return said | {"size": results["size"]} | success_rates(results)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*old, *new])
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 - YAML
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    out: dict[str, Any] = {}
    for key, value in content.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out


def _records(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in metrics.items():
        leaf = isinstance(value, Mapping) and "value" in value
        out |= {f"{prefix}{key}": value} if leaf else _records(value, f"{prefix}{key}/")
    return out
