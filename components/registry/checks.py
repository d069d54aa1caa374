"""What a release's own numbers say about its promotion: every gate judged again, its size, and a comparison with the champion.

Pure functions from a release's metrics, attacks, requests and params to findings. A finding that failed on a gate of utility can be answered for
by an override in force, one on erasure, attacks or evidence never (`UTILITY` in components/evaluate/gates.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from components.evaluate.attacks.params import TierGate
from components.evaluate.attacks.verdict import judge_attacks
from components.evaluate.gates import ON_IMAGES, UTILITY, Gate, judge_gates, variants_of
from components.evaluate.params import GateParams
from components.evaluate.summary import JOINT
from components.registry.params import PromoteParams
from components.requests.requests import Request

Result = Literal["PASSED", "WARNED", "FAILED"]
"""As in-toto's test-result has it; WARNED: somebody answers for what failed."""


class Evidence(NamedTuple):
    """What checks read of a release."""

    size: str
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """scope → variant → metric → record, the part `requests` of metrics.json."""
    requests: Mapping[str, Request]
    attacks: Mapping[str, Any] | None = None
    """The content of the attacks' results.json; None for a release without."""


class Finding(NamedTuple):
    """The outcome of one check."""

    gate: str
    """scope/variant/metric, `size` or `attacks`."""
    check: Literal["gate", "images", "champion", "size", "attack"]
    passed: bool
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    utility: bool = False
    """Whether a named person may answer for its failure."""


class Assessment(NamedTuple):
    """All findings on one release, and the gates among them that somebody answers for."""

    findings: tuple[Finding, ...]
    answered: tuple[str, ...]
    attacks: Mapping[str, Any] | None = None
    """Size of the release's attacks, the highest tier that is withstood and what was not tried; None without attacks."""

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What failed and nobody answers for."""
        return tuple(f for f in self.findings if not f.passed and not (f.utility and f.gate in self.answered))

    @property
    def result(self) -> Result:
        """FAILED without a finding too."""
        if self.failed or not self.findings:
            return "FAILED"
        return "PASSED" if all(finding.passed for finding in self.findings) else "WARNED"

    @property
    def overridable(self) -> tuple[str, ...]:
        """The gates that failed and that a named person may answer for."""
        blocked = {finding.gate for finding in self.findings if not finding.passed and not finding.utility}
        names = dict.fromkeys(f.gate for f in self.findings if not f.passed and f.utility)
        return tuple(name for name in names if name not in blocked)

    def record(self) -> dict[str, Any]:
        """The form of `expunge release show --json`."""
        return {
            "result": self.result,
            "overridden": sorted({f.gate for f in self.findings if not f.passed} & set(self.answered)),
            "attacks": self.attacks,
            "findings": [finding._asdict() for finding in self.findings],
        }


def assess(
    release: Evidence,
    gates: Sequence[GateParams],
    params: PromoteParams,
    *,
    champion: Evidence | None = None,
    overridden: Collection[str] = (),
    attacked: Sequence[Finding] = (),
) -> Assessment:
    """Judges a release by `gates`, those of params.yaml and its own, by its size and against the champion.

    `overridden` names the gates for which an override is in force; `attacked` is what `check_attacks` found.
    """
    findings = [
        check_size(release.size, params),
        *check_gates(release, gates, params),
        *(check_champion(release, champion, gates, params.margin) if champion else ()),
        *attacked,
    ]
    answered = {f.gate for f in findings if not f.passed and f.utility} & set(overridden)
    return Assessment(tuple(findings), tuple(sorted(answered)))


def check_size(size: str, params: PromoteParams) -> Finding:
    """Whether the evaluation was at least of the size that promotion asks for."""
    enough = params.images.get(size, 0) >= params.images[params.size]
    said = "is" if enough else f"is not {params.size!r}, which promotion asks for (promote.size)"
    return Finding("size", "size", enough, f"the evaluation's size {size!r} {said}{' enough' * enough}")


def check_gates(release: Evidence, gates: Sequence[GateParams], params: PromoteParams) -> list[Finding]:
    """Every gate held against the release's own metrics; a gate on erasure also has to rest on enough images."""
    findings, channels = [], scopes(release)
    for scope, present in channels.items():
        judged = [(gate, one) for gate in gates for one in _judged(release, scope, present, gate)]
        if not judged:
            findings.append(Finding(f"{scope}/-/-", "gate", passed=False, reason="no gate is held against it"))
        for gate, one in judged:
            name, numbers = _name(one), (one.value, one.low, one.high, one.n)
            utility = gate.metric in UTILITY and one.value is not None and one.n >= gate.n
            findings.append(Finding(name, "gate", one.passed, one.reason, *numbers, utility=utility))
            needed = params.images[params.size]
            if gate.metric in ON_IMAGES and one.n < needed:
                reason = f"{one.n} images are fewer than the {needed} that promotion asks for"
                findings.append(Finding(name, "images", passed=False, reason=reason, n=one.n))
    return findings


def check_attacks(
    release: Evidence, gates: Sequence[TierGate], params: PromoteParams, wanted: Collection[str] = ()
) -> list[Finding]:
    """The size of a release's attacks, that all `wanted` ones (`attack/variant`) were tried, and every gate on them; no override counts."""
    if release.attacks is None:
        return [Finding("attacks", "attack", passed=False, reason="the release carries no attacks")]
    size, results = release.attacks["size"], release.attacks["requests"]
    enough = params.images.get(size, 0) >= params.images[params.size]
    said = "is enough" if enough else f"is not {params.size!r}, which promotion asks for (promote.size)"
    findings = [Finding("attacks", "attack", enough, f"the attacks' size {size!r} {said}")]
    for i, found in results.items():
        if untried := sorted({*wanted} - {*found["attacks"]}):
            reason = f"{untried[0]} was not tried, which attack.sizes lists"
            findings.append(Finding(f"{i}/attacks", "attack", passed=False, reason=reason))
    judged = judge_attacks({i: results[i] for i in release.requests if i in results}, gates)
    findings += [
        Finding(_name(one), "attack", one.passed, one.reason, one.value, one.low, one.high, one.n) for one in judged
    ]
    if lacking := [i for i in release.requests if i not in results or not gates]:
        findings.append(
            Finding(f"{lacking[0]}/-/-", "attack", passed=False, reason="no gate on attacks is held against it")
        )
    return findings


def check_champion(
    release: Evidence, champion: Evidence, gates: Sequence[GateParams], margin: Mapping[str, float]
) -> list[Finding]:
    """Each gate's value against the champion's, for the requests that both have.

    A candidate is worse if its value is worse by more than the metric's margin and the 95 % interval of the difference excludes none.
    A value that only the candidate lacks is worse; one that the champion lacks is not compared.
    """
    findings, theirs = [], scopes(champion)
    absolute = {
        (gate.metric, gate.variant, gate.direction): gate.model_copy(update={"relative_to_base": False})
        for gate in gates
        if gate.variant != "base"
    }
    for scope, present in scopes(release).items():
        common = [variant for variant in present if variant in theirs.get(scope, ())]
        for gate in absolute.values():
            old = next(iter(_judged(champion, scope, common, gate)), None)
            new = next(iter(_judged(release, scope, common, gate)), None)
            if old is None or new is None or old.value is None:
                continue
            findings.append(_compared(new, old, gate, margin.get(gate.metric, 0.0)))
    return findings


def loss_interval(new: Sequence[float | None], old: Sequence[float | None]) -> tuple[float, float, float]:
    """(loss, low, high) of old − new, each (value, low, high) where more is better.

    The interval is MOVER's (Zou and Donner 2008), for proportions Newcombe's (1998); an end that is unknown counts as the value, which
    makes the interval narrow and the comparison strict.
    """
    (a, a_low, a_high), (b, b_low, b_high) = (_filled(old), _filled(new))
    loss = a - b
    return loss, loss - math.hypot(a - a_low, b_high - b), loss + math.hypot(a_high - a, b - b_low)


def scopes(release: Evidence) -> dict[str, list[str]]:
    """The variants on which gates bind, of each request and of all at once."""
    found = {request_id: variants_of([request]) for request_id, request in release.requests.items()}
    return found | {JOINT: variants_of(list(release.requests.values()))}


def _judged(release: Evidence, scope: str, present: Collection[str], gate: GateParams) -> Iterable[Gate]:
    return judge_gates(release.metrics, [gate], {scope: list(present)}, {}).gates


def _compared(new: Gate, old: Gate, gate: GateParams, margin: float) -> Finding:
    name = _name(new)
    if new.value is None:
        return Finding(name, "champion", passed=False, reason="the champion has a value, this release has none")
    assert old.value is not None  # the caller compares with values alone
    sign = 1.0 if gate.direction == "at_least" else -1.0
    loss, low, high = loss_interval(_oriented(new, sign), _oriented(old, sign))
    worse = loss > margin and low > 0
    reason = (
        f"{new.value:.4g} against the champion's {old.value:.4g}: worse by {loss:.4g} [{low:.4g}, {high:.4g}], margin {margin:g}"
        if worse
        else f"{new.value:.4g} against the champion's {old.value:.4g}"
    )
    return Finding(name, "champion", not worse, reason, loss, low, high, new.n, utility=gate.metric in UTILITY)


def _oriented(judged: Gate, sign: float) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) where more is better."""
    assert judged.value is not None  # compared are values alone
    ends = (judged.low, judged.high) if sign > 0 else (judged.high, judged.low)
    low, high = (None if end is None else sign * end for end in ends)
    return sign * judged.value, low, high


def _filled(triple: Sequence[float | None]) -> tuple[float, float, float]:
    value, low, high = triple
    assert value is not None  # compared are values alone
    low = value if low is None or not math.isfinite(low) else min(low, value)
    high = value if high is None or not math.isfinite(high) else max(high, value)
    return value, low, high


def _name(gate: Gate) -> str:
    return f"{gate.request}/{gate.variant}/{gate.metric}"
