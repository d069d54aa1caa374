"""Promotion and its undoing: decisions on the ledger's history, made on a release's own bytes, with aliases that follow.

The ledger is the truth. An act fetches the release, checks every byte and number again, appends its event unless the history has changed
meanwhile, and then sets the aliases that the history gives. A crash in between leaves aliases that the next act mends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from components.common.errors import ArtifactError, ExpungeError, StageError, UserError
from components.common.sections import read_section
from components.evaluate.attacks.evidence import follows, wanted_attacks
from components.evaluate.attacks.params import AttackParams, TierGate
from components.evaluate.gates import judge_gates
from components.evaluate.params import EvaluateParams, GateParams
from components.ledger import releases
from components.ledger.events import Entry, Event, Ledger
from components.ledger.params import LedgerParams
from components.ledger.releases import ALIASES, History, known, read_history
from components.registry.checks import Assessment, Evidence, assess, check_attacks, scopes
from components.registry.params import PromoteParams, check_sizes
from components.registry.release import Release

_MOST_RACES = 5  # times that aliases are set anew because somebody has acted meanwhile


class RefusedError(ExpungeError):
    """A release whose numbers do not allow its promotion: the exit code of a failed verdict."""


class Version(Protocol):
    """One version of the registry."""

    @property
    def version(self) -> int:
        """Its number."""
        ...


class Store(Protocol):
    """What promotion asks of the model registry; components/registry/registry.py's `Registry` is one."""

    def fetch(self, which: int | str, out: Path) -> Release:
        """The release of a version, written to `out` and checked."""
        ...

    def versions(self) -> Sequence[Version]:
        """All versions."""
        ...

    def aliases(self) -> dict[str, int]:
        """The aliases and the versions that they name."""
        ...

    def set_aliases(self, wanted: Mapping[str, int]) -> None:
        """Makes `wanted` the aliases candidate, champion and previous."""
        ...


class Policy(NamedTuple):
    """What the current params.yaml asks of a promotion."""

    gates: tuple[GateParams, ...]
    promote: PromoteParams
    four_eyes: bool = False
    attack: AttackParams | None = None

    def tiers(self, size: str) -> tuple[TierGate, ...]:
        """The gates on attacks of a size; none for a size that params.yaml lacks."""
        return self.attack.sizes[size].gates if self.attack and size in self.attack.sizes else ()

    def attacks(self, size: str) -> set[str]:
        """The attacks of a size, `attack/variant`; none for a size that params.yaml lacks."""
        return wanted_attacks(self.attack.sizes[size]) if self.attack and size in self.attack.sizes else set()


class Act(NamedTuple):
    """What an act did, or would do."""

    did: str
    version: int
    digest: str
    result: str
    """PASSED or WARNED for a promotion, empty for other acts."""
    champion: int | None
    previous: int | None
    """Champion and the version that a rollback restores, after the act."""
    lagging: str = ""
    """Why the aliases do not follow the act yet; the act stands all the same, and `repair` is to be called again."""


class Registrar:
    """Acts of one account on the releases of one ledger and one registry; with `dry_run` all is checked and nothing is changed."""

    def __init__(self, ledger: Ledger, store: Store, policy: Policy, actor: str, *, dry_run: bool = False) -> None:
        """Opens nothing; the ledger and the registry are asked when an act needs them."""
        self.ledger, self.store, self.policy = ledger, store, policy
        self.actor, self.dry_run = actor, dry_run

    def approve(self, version: int, digest: str | None = None) -> Act:
        """Approves exactly the bytes that were registered under a version, after reading them."""
        history = self._history()
        digest = _digest(history, version, digest)
        entry = releases.approval(history, version, digest, self.actor, four_eyes=self.policy.four_eyes)
        with fetched(self.store, version, digest):
            return self._write(history, entry, "approved")

    def reject(self, version: int, reason: str) -> Act:
        """Rejects a version, which takes its approvals away."""
        history = self._history()
        return self._write(history, releases.rejection(history, version, reason), "rejected")

    def promote(self, version: int, digest: str | None = None) -> Act:
        """Makes a version champion whose bytes are those registered and approved, and whose numbers pass.

        `UserError` if the history does not allow it, `RefusedError` if a number does not, `ArtifactError` for altered bytes, `StageError`
        if somebody else acted meanwhile. Nothing has moved then.
        """
        history = self._history()
        digest = _digest(history, version, digest)
        entry = releases.promotion(history, version, digest, _now(), four_eyes=self.policy.four_eyes)
        assessment = self.assess(history, version)
        if assessment.failed:
            first, *more = assessment.failed
            others = f" and {len(more)} more" if more else ""
            remedy = "mend and evaluate again"
            if first.check == "size":
                size = self.policy.promote.size
                remedy = f"set evaluate.size and attack.size to {size} in params.yaml and retrain: expunge retrain"
            if not more and first.gate in assessment.overridable:
                remedy = f"override it: expunge release override {version} --gate {first.gate}"
            raise RefusedError(f"version {version} fails {first.gate}{others} ({first.reason})", remedy)
        body = {**entry.body, "result": assessment.result, "overridden": list(assessment.answered)}
        return self._write(history, entry._replace(body=body), "promoted", assessment.result)

    def rollback(self, version: int | None = None) -> Act:
        """Makes an earlier champion the champion again, by default the one before, once its bytes are shown to be whole."""
        history = self._history()
        target = history.previous if version is None else version
        if target is None:
            raise UserError("there is no earlier champion to roll back to", "promote a version instead")
        digest = known(history, target).digest
        entry = releases.rollback(history, target, digest)
        with fetched(self.store, target, digest):
            return self._write(history, entry, "rolled back to")

    def override(self, version: int, gate: str, reason: str, expires: datetime) -> Act:
        """Answers by name for one gate on utility that a version fails, until a date."""
        history = self._history()
        known(history, version)
        gates = self.assess(history, version, overridden=()).overridable
        entry = releases.override(history, version, gate, reason, expires, _now(), gates)
        return self._write(history, entry, "overrode")

    def assess(self, history: History, version: int, *, overridden: Sequence[str] | None = None) -> Assessment:
        """All checks on a version's own bytes, against the champion if that is another one."""
        if overridden is None:
            overridden = [override.gate for override in history.releases[version].in_force(_now())]
        champion = None
        if history.champion not in (None, version):
            with fetched(self.store, history.champion, known(history, history.champion).digest) as release:
                champion = evidence(release)
        with fetched(self.store, version, known(history, version).digest) as release:
            found = evidence(release)
            gates = list(dict.fromkeys([*self.policy.gates, *judged_again(release, found, version)]))
            tiers = list(dict.fromkeys([*self.policy.tiers(release.attack_size), *attacked_again(release, version)]))
            facts, wanted = attack_facts(release), self.policy.attacks(release.attack_size)
        attacked = check_attacks(found, tiers, self.policy.promote, wanted)
        found = assess(found, gates, self.policy.promote, champion=champion, overridden=overridden, attacked=attacked)
        return found._replace(attacks=facts)

    def repair(self) -> History:
        """As `repair`."""
        return repair(self.ledger, self.store)

    def _history(self) -> History:
        """The history to decide on, with the aliases mended first."""
        return read_history(self.ledger) if self.dry_run else self.repair()

    def _write(self, history: History, entry: Entry, did: str, result: str = "") -> Act:
        version, lagging = int(entry.body["version"]), ""
        if self.dry_run:
            event = Event(history.seq + 1, entry.subject, _now(), self.actor, entry.kind, dict(entry.body), "", "")
            after, did = releases.apply(history, event), f"would have {did}"
        else:
            releases.append(self.ledger, history, entry, self.actor)
            try:
                after = self.repair()
            except StageError as error:  # the registry has gone since
                after, lagging = read_history(self.ledger), error.fact
        return Act(did, version, known(after, version).digest, result, after.champion, after.previous, lagging)


def repair(ledger: Ledger, store: Store) -> History:
    """Sets the aliases until they are those that the history gives, and returns the history; `ArtifactError` as in `check_same`."""
    for _ in range(_MOST_RACES):
        history = read_history(ledger)
        found, wanted = own_aliases(store), wanted_aliases(history, store)
        check_same(history, found)
        if found == wanted:
            return history
        store.set_aliases(wanted)
    raise StageError("the aliases could not be set: others keep changing the releases", "repeat the command")


def check_same(history: History, aliases: Mapping[str, int]) -> None:
    """`ArtifactError` if the registry's `aliases` name a champion and the ledger, which has none, does not know that version.

    An empty ledger in the place of the one that was lost, or was meant, would take the champion away.
    """
    champion = aliases.get("champion")
    if champion is not None and history.champion is None and champion not in history.releases:
        raise ArtifactError(
            f"the registry's champion is version {champion}, and the ledger does not know it",
            "name the ledger by EXPUNGE_LEDGER_URL or restore it from a backup",
        )


def own_aliases(store: Store) -> dict[str, int]:
    """What the registry's candidate, champion and previous name; other aliases are their makers' business."""
    return {name: version for name, version in store.aliases().items() if name in ALIASES}


def wanted_aliases(history: History, store: Store) -> dict[str, int]:
    """The aliases that the history gives; one whose version the registry has lost is none, so that nothing else takes its place."""
    there = {one.version for one in store.versions()}
    return {name: version for name, version in history.aliases().items() if version in there}


def read_policy(root: Path = Path()) -> Policy:
    """The policy of the params.yaml in `root`."""
    path = root / "params.yaml"
    evaluate = read_section("evaluate", EvaluateParams, path)
    promote, attack = read_section("promote", PromoteParams, path), read_section("attack", AttackParams, path)
    check_sizes(promote, evaluate, attack)
    return Policy(evaluate.gates, promote, read_section("ledger", LedgerParams, path).four_eyes, attack)


@contextmanager
def fetched(store: Store, version: int, digest: str) -> Iterator[Release]:
    """The release of a version in a folder that goes away again; `ArtifactError` unless its digest is `digest`."""
    with tempfile.TemporaryDirectory(prefix="expunge-") as folder:
        release = store.fetch(version, Path(folder) / "release")
        if release.digest != digest:
            raise ArtifactError(
                f"version {version} of the registry has digest {release.digest[:12]}, not {digest[:12]} as it was registered",
                "restore the registry from a backup, or promote another version",
            )
        yield release


def evidence(release: Release) -> Evidence:
    """What the checks read of a release."""
    metrics = release.metrics
    return Evidence(metrics["size"], metrics["requests"], release.requests, release.attacks and release.attacks[0])


def judged_again(release: Release, found: Evidence, version: int) -> tuple[GateParams, ...]:
    """The release's own gates; `ArtifactError` unless its verdict is what they make of its metrics."""
    gates = read_section("evaluate", EvaluateParams, release.params_file).gates
    verdict = judge_gates(found.metrics, gates, scopes(found), {})
    if verdict.passed != release.verdict["passed"]:
        said = "pass" if release.verdict["passed"] else "fail"
        raise ArtifactError(
            f"version {version} says {said}, which its metrics do not",
            "evaluate and register it again: expunge retrain",
        )
    return gates


def attack_facts(release: Release) -> dict[str, Any] | None:
    """Size of a release's attacks, the highest tier that is withstood and what was not tried; None without attacks."""
    if release.attacks is None:
        return None
    results, verdict = release.attacks
    return {"size": results["size"], "highest_tier": verdict["highest_tier"], "not_tried": verdict["not_tried"]}


def attacked_again(release: Release, version: int) -> tuple[TierGate, ...]:
    """The release's own gates on attacks, none if it carries no attacks; `ArtifactError` unless their verdict follows from their results."""
    if release.attacks is None:
        return ()
    results, verdict = release.attacks
    params = read_section("attack", AttackParams, release.params_file)
    if results["size"] not in params.sizes or not follows(verdict, results, params):
        raise ArtifactError(
            f"the verdict on the attacks of version {version} does not follow from their results",
            "attack and register it again: expunge retrain",
        )
    return params.sizes[results["size"]].gates


def _digest(history: History, version: int, digest: str | None) -> str:
    """The digest to decide on: the registered one, which `digest` must name, whole or by its first twelve digits or more."""
    registered = known(history, version).digest
    if digest is None or (len(digest) >= 12 and registered.startswith(digest.lower())):
        return registered
    return known(history, version, digest).digest


def _now() -> datetime:
    return datetime.now(UTC)
