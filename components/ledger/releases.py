"""The history of releases: who registered, approved, rejected, promoted, rolled back and overrode what, and what follows from it.

    registered ⇄ rejected          approve leads back from a rejection
        └► approved ► champion ► previous ► retired      rollback makes either champion again

Each decision is a pure rule from a history to the `Entry` that states it, or a `UserError`; `append` writes it unless the history has
changed meanwhile. Gates, bytes and aliases are the registry's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Literal, NamedTuple

from components.common.errors import ArtifactError, UserError
from components.ledger.events import Entry, Event, Ledger, stamp

FAMILY = "release"
ALIASES = ("candidate", "champion", "previous")
"""The aliases of the model registry that follow from the history."""
State = Literal["registered", "approved", "rejected", "champion", "previous", "retired"]
FINAL: tuple[State, ...] = ("champion",)
"""States in which nothing is left to do: a champion leaves its place when another takes it."""


class Override(NamedTuple):
    """A gate that somebody answers for, until a date."""

    gate: str
    by: str
    reason: str
    expires: datetime


class Release(NamedTuple):
    """One version and what was decided about it."""

    version: int
    digest: str
    verdict: str
    submitter: str
    approvers: tuple[str, ...] = ()
    """Who approved exactly this digest since the last rejection."""
    rejected: bool = False
    """Whether the last decision was a rejection."""
    served: bool = False
    """Whether it has been champion."""
    overrides: tuple[Override, ...] = ()

    def in_force(self, at: datetime) -> tuple[Override, ...]:
        """The overrides that have not expired at a date."""
        return tuple(override for override in self.overrides if at < override.expires)


class History(NamedTuple):
    """All releases after some events."""

    releases: Mapping[int, Release] = {}
    champions: tuple[int, ...] = ()
    """The way back: a promotion adds a version, a rollback takes off those that came after its target."""
    seq: int = 0
    """The last event that went in."""

    @property
    def champion(self) -> int | None:
        """The version that is served."""
        return self.champions[-1] if self.champions else None

    @property
    def previous(self) -> int | None:
        """The version that a rollback restores: the last champion before this one that nobody has rejected."""
        back = (v for v in reversed(self.champions) if v != self.champion and not self.releases[v].rejected)
        return next(back, None)

    def aliases(self) -> dict[str, int]:
        """The aliases that the model registry should have: candidate (the newest version), champion and previous."""
        named = {"candidate": max(self.releases, default=None), "champion": self.champion, "previous": self.previous}
        return {name: version for name, version in named.items() if version is not None}

    def state(self, version: int) -> State:
        """The state of a version; `UserError` if it is not registered."""
        release = known(self, version)
        if version == self.champion:
            return "champion"
        if release.rejected:
            return "rejected"
        if release.served:
            return "previous" if version == self.previous else "retired"
        return "approved" if release.approvers else "registered"


def replay(events: Iterable[Event], at: datetime | None = None) -> History:
    """The history after the events, or after those up to a date; events of other families are skipped."""
    history = History()
    for event in events:
        if at is None or event.at <= at:
            history = apply(history, event)
    return history


def apply(history: History, event: Event) -> History:
    """The history after one more event; `ArtifactError` for an event about a version that was never registered."""
    if not event.kind.startswith(f"{FAMILY}."):
        return history
    body, version, champions = event.body, event.body["version"], history.champions
    if event.kind == "release.registered":
        release = Release(version, body["digest"], body["verdict"], event.actor)
    elif version in history.releases:
        release = history.releases[version]
    else:
        raise ArtifactError(f"event {event.seq} is about version {version}, never registered", "see the ledger's log")
    if event.kind == "release.approved" and body["digest"] == release.digest:
        release = release._replace(approvers=(*release.approvers, event.actor), rejected=False)
    elif event.kind == "release.rejected":
        release = release._replace(approvers=(), rejected=True)
    elif event.kind == "release.overridden":
        override = Override(body["gate"], event.actor, body["reason"], datetime.fromisoformat(body["expires"]))
        release = release._replace(overrides=(*release.overrides, override))
    elif event.kind in ("release.promoted", "release.rolled_back"):
        release = release._replace(served=True)
        last = max((i for i, v in enumerate(champions) if v == version), default=None)
        cut = len(champions) if last is None or event.kind == "release.promoted" else last
        champions = (*champions[:cut], version)
    return History({**history.releases, version: release}, champions, event.seq)


def read_history(ledger: Ledger, at: datetime | None = None) -> History:
    """The history as it is now, or as it was at a date."""
    return replay(ledger.events(FAMILY), at)


def append(ledger: Ledger, history: History, entry: Entry, actor: str) -> Event:
    """Writes a decision that was made on `history`; `StageError` if another was written meanwhile."""
    return ledger.append(entry.kind, entry.subject, actor, entry.body, expect=history.seq)


def known(history: History, version: int, digest: str | None = None) -> Release:
    """The release of that version; `UserError` if it is not registered, or with another digest."""
    if version not in history.releases:
        versions = ", ".join(map(str, sorted(history.releases))) or "there is none"
        raise UserError(f"version {version} is not registered", f"use one of: {versions}")
    release = history.releases[version]
    if digest is not None and digest != release.digest:
        raise UserError(
            f"version {version} was registered with digest {release.digest[:12]}, not {digest[:12]}",
            "decide on what was evaluated: look at the release again",
        )
    return release


def registration(history: History, version: int, digest: str, verdict: str) -> Entry:
    """Registering a version; the event's actor is its submitter. A version is registered once."""
    if version < 1 or not re.fullmatch(r"[0-9a-f]{64}", digest) or verdict not in ("pass", "fail"):
        raise UserError(
            f"version {version}, digest {digest!r}, verdict {verdict!r} are no release",
            "give a positive version, a SHA-256 and pass or fail",
        )
    if version in history.releases:
        raise UserError(f"version {version} is registered already", "register the next version")
    return _entry("registered", version, digest=digest, verdict=verdict)


def approval(history: History, version: int, digest: str, by: str, *, four_eyes: bool = False) -> Entry:
    """Approving exactly this version and digest, also after a rejection; with `four_eyes` not by its submitter."""
    release = known(history, version, digest)
    if version == history.champion:
        raise UserError(f"version {version} is the champion", "there is nothing to approve")
    if _same(by, release.approvers):
        raise UserError(f"{by} has approved version {version} already", "promote it, or ask someone else")
    if four_eyes and _same(by, [release.submitter]):
        raise UserError(f"{by} submitted version {version} and cannot approve it", "ask someone else")
    return _entry("approved", version, digest=digest)


def rejection(history: History, version: int, reason: str) -> Entry:
    """Rejecting a version, which takes its approvals away; the champion has to be rolled back first."""
    release = known(history, version)
    if version == history.champion:
        raise UserError(f"version {version} is the champion", "roll back or promote another version first")
    if release.rejected:
        raise UserError(f"version {version} was rejected already", "there is nothing left to do")
    return _entry("rejected", version, reason=_reason(reason))


def promotion(history: History, version: int, digest: str, at: datetime, *, four_eyes: bool = False) -> Entry:
    """Making a version champion: its own digest, an approval newer than any rejection, and a verdict `pass` or an override in force.

    With `four_eyes` an approval by its submitter does not count. That the override covers the gates that failed is for the registry to check.
    """
    release = known(history, version, digest)
    if version == history.champion:
        raise UserError(f"version {version} is the champion already", "there is nothing left to do")
    if release.rejected:
        raise UserError(f"version {version} was rejected", "approve it first, or promote another version")
    if not any(not four_eyes or not _same(by, [release.submitter]) for by in release.approvers):
        alone = " by anyone but its submitter" if four_eyes and release.approvers else ""
        raise UserError(f"version {version} is not approved{alone}", f"approve it: expunge release approve {version}")
    if release.verdict != "pass" and not release.in_force(at):
        raise UserError(f"version {version} has the verdict fail", "promote one that passes, or override the gate")
    return _entry("promoted", version, digest=digest)


def rollback(history: History, version: int, digest: str) -> Entry:
    """Making a version champion again that was one before; no approval is asked for, but a rejected version stays out."""
    release = known(history, version, digest)
    if version == history.champion:
        raise UserError(f"version {version} is the champion already", "there is nothing left to do")
    if not release.served:
        raise UserError(f"version {version} was never champion", f"promote it: expunge release promote {version}")
    if release.rejected:
        raise UserError(f"version {version} was rejected since", "approve it first, or choose another version")
    return _entry("rolled_back", version, digest=digest)


def override(
    history: History,
    version: int,
    gate: str,
    reason: str,
    expires: datetime,
    at: datetime,
    overridable: Collection[str],
) -> Entry:
    """Answering for one gate of a version until a date; `overridable` are the gates on utility, never one on erasure or evidence."""
    known(history, version)
    if gate not in overridable:
        names = ", ".join(sorted(overridable)) or "there is none"
        raise UserError(f"gate {gate!r} cannot be overridden", f"use one on utility: {names}")
    if expires.tzinfo is None or expires <= at:
        raise UserError(f"the override ends at {expires.isoformat()}", "give a date to come, with its time zone")
    return _entry("overridden", version, gate=gate, reason=_reason(reason), expires=stamp(expires))


def actions(history: History, version: int, at: datetime, *, four_eyes: bool = False) -> tuple[str, ...]:
    """What may be done next with a version, by whoever is allowed to: some of approve, reject, promote, rollback."""
    digest = known(history, version).digest
    rules = {
        "approve": lambda: approval(history, version, digest, "", four_eyes=four_eyes),
        "reject": lambda: rejection(history, version, "a reason"),
        "promote": lambda: promotion(history, version, digest, at, four_eyes=four_eyes),
        "rollback": lambda: rollback(history, version, digest),
    }
    return tuple(name for name, rule in rules.items() if _allowed(rule))


def _allowed(rule: Callable[[], Entry]) -> bool:
    try:
        rule()
    except UserError:
        return False
    return True


def _entry(name: str, version: int, **body: str) -> Entry:
    return Entry(f"{FAMILY}.{name}", f"release/{version}", {"version": version, **body})


def _reason(reason: str) -> str:
    if not reason.strip():
        raise UserError("the reason is empty", "say why")
    return " ".join(reason.split())


def _same(name: str, names: Iterable[str]) -> bool:
    return name.strip().casefold() in {other.strip().casefold() for other in names}
