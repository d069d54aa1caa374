"""Gates: what a candidate must reach. A gate without evidence fails; it is never passed by default.

A metric that is missing, null or NaN, rests on fewer observations than declared, or comes with an error of the judge
fails the gate, and the reason says which: `untold` in a metric's record says why no judge's word counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.evaluate.params import GateParams
from components.requests.requests import Request

UTILITY = frozenset({"ssim_unrelated", "clip_unrelated", "ira", "cra", "fpr", "fpr_neighbours", "fpr_traffic"})
"""Metrics of what must survive. A named person may answer for a gate on one of them, never for one on erasure or evidence."""
ON_IMAGES = frozenset({"ua", "anchor_rate"})
"""Metrics of erasure that count images."""


class Gate(NamedTuple):
    """One gate held against one request (or `joint`)."""

    request: str
    metric: str
    variant: str
    direction: str
    threshold: float
    value: float | None
    low: float | None
    high: float | None
    n: int
    passed: bool
    reason: str


class Verdict(NamedTuple):
    """All gates of one evaluation."""

    passed: bool
    gates: list[Gate]
    judged: dict[str, str]
    """Digests of everything that was judged: base, judge, filter, adapters and requests."""

    def record(self) -> dict[str, Any]:
        """The form of verdict.json."""
        return {"passed": self.passed, "gates": [gate._asdict() for gate in self.gates], "judged": self.judged}


def variants_of(requests: Sequence[Request]) -> list[str]:
    """Variants on which gates bind: the channels that any of the requests has, `summed`, and `gated` where all have a filter."""
    channels = sorted({channel for request in requests for channel in request.channels})
    gated = ["gated"] if all("filter" in request.channels for request in requests) else []
    return [*channels, "summed", *gated]


def judge_gates(
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]],
    gates: Sequence[GateParams],
    channels: Mapping[str, Sequence[str]],
    judged: Mapping[str, str],
) -> Verdict:
    """Holds every gate against every request and `joint`; passes only if there are gates and all of them pass.

    `channels` says which variants a request has: a gate on the filter does not concern a request without one.
    """
    results = [
        _judge(scope, metrics.get(scope, {}), gate)
        for scope, present in channels.items()
        for gate in gates
        if gate.variant == "base" or gate.variant in present
    ]
    evidence = bool(results) and {result.request for result in results} == set(
        channels
    )  # a scope without a gate is no pass
    return Verdict(evidence and all(r.passed for r in results), results, dict(judged))


def _judge(scope: str, variants: Mapping[str, Mapping[str, Any]], gate: GateParams) -> Gate:
    found = variants.get(gate.variant, {}).get(gate.metric)
    records = _buckets(found)
    baseline = 0.0
    if gate.relative_to_base:
        reference = (variants.get("base", {}).get(gate.metric) or {}).get("value")
        baseline = math.nan if reference is None else float(reference)
    worst: Gate | None = None
    for record in records or [{}]:
        one = _judge_record(scope, record, gate, baseline)
        if worst is None or (worst.passed and not one.passed) or _worse(one, worst, gate):
            worst = one
    assert worst is not None  # there is always one record, if only an empty one
    return worst


def _buckets(found: Any) -> list[Mapping[str, Any]]:  # noqa: ANN401 - JSON
    """The records of a metric: itself, or one for each bucket."""
    if not isinstance(found, Mapping):
        return []
    return [found] if "value" in found else [r for r in found.values() if isinstance(r, Mapping)]


def _worse(one: Gate, other: Gate, gate: GateParams) -> bool:
    if one.value is None or other.value is None or one.passed != other.passed:
        return False
    return one.value > other.value if gate.direction == "at_most" else one.value < other.value


def _judge_record(scope: str, record: Mapping[str, Any], gate: GateParams, baseline: float) -> Gate:
    value, n = record.get("value"), int(record.get("n") or 0)
    shown = None if value is None else value - baseline
    threshold = gate.threshold
    if not record:
        passed, reason = False, "the metric is missing"
    elif record.get("untold"):
        passed, reason = False, str(record["untold"])
    elif value is None or not math.isfinite(value):
        passed, reason = False, "the metric has no value"
    elif not math.isfinite(baseline):
        passed, reason, shown = False, "the base has no value to compare with", None
    elif n < gate.n:
        passed, reason = False, f"{n} observations are fewer than the {gate.n} declared"
    else:
        assert shown is not None  # value is not None here
        passed = shown >= threshold if gate.direction == "at_least" else shown <= threshold
        relation = "reaches" if gate.direction == "at_least" else "stays within"
        reason = f"{shown:.4g} {relation if passed else 'misses'} {threshold:g}"
    return Gate(
        scope, gate.metric, gate.variant, gate.direction, threshold, shown, record.get("low"), record.get("high"),
        n, passed, reason,
    )  # fmt: skip
