"""The version that a reference names, where the ledger, which is the truth about releases, agrees with the registry."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from components.common.errors import ArtifactError, UserError
from components.common.sections import PARAMS, read_section
from components.ledger.database import UNCONFIGURED, VARIABLE, NoLedgerError, ledger_url
from components.ledger.events import Ledger
from components.ledger.params import LedgerParams
from components.ledger.releases import ALIASES, History, known, read_history
from components.registry.registry import Registry, Version, parse_reference

log = logging.getLogger("expunge")
_MENDS = "any `expunge release` command that acts mends the alias"


def find_version(registry: Registry, reference: int | str) -> Version:
    """The version of that number, alias or URI, as `Registry.version`.

    `ArtifactError` where the ledger has another version, or other bytes, under the name; without a ledger, as on a machine that
    knows the registry alone, a warning says that nobody confirms an alias.
    """
    found, wanted = registry.version(reference), parse_reference(reference)
    history = find_history(registry.root)
    if history is not None:
        check_named(history, found, wanted)
    elif wanted in ALIASES:
        log.warning(
            "no ledger is here that could confirm it: @%s is version %d, digest %s, as the registry says",
            wanted, found.version, found.digest[:12],
        )  # fmt: skip
    return found


def check_named(history: History, found: Version, wanted: int | str) -> None:
    """`ArtifactError` unless the history gives `found`, the registry's version, the name and the digest that it has there."""
    if wanted in ALIASES and (rightful := history.aliases().get(str(wanted))) != found.version:
        named = "none" if rightful is None else f"version {rightful}"
        raise ArtifactError(
            f"@{wanted} is version {found.version} in the registry and {named} in the ledger", f"{_MENDS}, or name a version by its number"
        )  # fmt: skip
    try:
        registered = known(history, found.version).digest
    except UserError as error:
        raise ArtifactError(
            f"the ledger does not know version {found.version} of the registry",
            f"name the ledger by {VARIABLE} or restore it from a backup",
        ) from error
    if registered != found.digest:
        raise ArtifactError(
            f"version {found.version} has digest {found.digest[:12]} in the registry and {registered[:12]} in the ledger",
            "it was altered: restore the registry, or name another version",
        )


def find_history(root: Path) -> History | None:
    """The history in the ledger of the project in `root`, or that EXPUNGE_LEDGER_URL names; None where there is none.

    One that was named and cannot be read is an error, as in `connect`.
    """
    params = root / PARAMS
    configured = read_section("ledger", LedgerParams, params).url if params.is_file() else UNCONFIGURED
    try:
        return read_history(Ledger(ledger_url(configured, root), must_exist=True))
    except NoLedgerError:
        if VARIABLE in os.environ:
            raise
        return None
