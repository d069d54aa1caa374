"""Registering what was evaluated: a release, a version of it, and the ledger's event about that, each at most once.

A run that is killed anywhere in between is completed by the next one: an equal release keeps its version, and a version
that the ledger does not know yet gets its event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from components.common.errors import ArtifactError
from components.common.paths import CACHE
from components.common.sections import PARAMS, read_section
from components.ledger.database import ledger_url
from components.ledger.events import Ledger
from components.ledger.params import LedgerParams
from components.ledger.releases import append, read_history, registration
from components.registry.promotion import check_same, repair
from components.registry.registry import Registry, Version
from components.registry.release import build_release


def register_tree(
    root: Path, actor: str, tags: Mapping[str, str] | None = None, *, last_look: Callable[[], None] = lambda: None
) -> Version:
    """Builds the release of the working tree in `root` and registers it, whatever the verdict; `actor` is its submitter.

    `last_look` may raise, right before the version is made; then nothing is registered.
    Returns the version that it has from now on, or had already. Errors are those of `build_release`, `Registry` and the ledger.
    """
    ledger, registry = open_ledger(root), Registry(root)
    check_same(read_history(ledger), registry.aliases())
    release = build_release(root, root / CACHE / "release")
    version = registry.register(release, tags, last_look=last_look)
    note_version(ledger, version, actor)
    repair(ledger, registry)
    return version


def note_version(ledger: Ledger, version: Version, actor: str) -> None:
    """Writes the event that a version was registered, unless the ledger has it; `ArtifactError` if it has another digest."""
    history = read_history(ledger)
    known = history.releases.get(version.version)
    if known is None:
        append(ledger, history, registration(history, version.version, version.digest, version.verdict), actor)
    elif known.digest != version.digest:
        raise ArtifactError(
            f"the ledger has version {version.version} with digest {known.digest[:12]}, the registry with {version.digest[:12]}",
            "they are of two installations: restore the one that was lost, or use a new ledger",
        )


def open_ledger(root: Path) -> Ledger:
    """The ledger of the project in `root`, made if there is none; a SQLite file's path is relative to `root`."""
    return Ledger(ledger_url(read_section("ledger", LedgerParams, root / PARAMS).url, root))
