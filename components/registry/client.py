"""The model registry: versions of the model `expunge`, each a release, and the aliases that name some of them.

MLflow keeps bytes, metrics and aliases. The ledger keeps the history, from which the aliases follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from components.registry.release import Release

MODEL = "expunge"


class Version(NamedTuple):
    """One registered version, as MLflow has it."""

    version: int
    digest: str
    """Of its release."""
    verdict: str
    """`pass` or `fail`."""
    size: str
    """Size of the evaluation, such as quick or full."""
    run_id: str
    aliases: tuple[str, ...]


class Registry:
    """The registry of one project: MLFLOW_TRACKING_URI, or a SQLite file in the project's root.

    Every method raises `UserError` for what does not exist and `StageError` for a server that cannot be used, with its URL.
    """

    def __init__(self, root: Path = Path()) -> None:
        """Opens the registry; nothing is asked of a server yet."""

    def versions(self) -> list[Version]:
        """All versions, the newest last; none if nothing was ever registered."""
        raise NotImplementedError

    def version(self, which: int | str) -> Version:
        """The version of that number, alias (`champion` or `@champion`) or URI (`models:/expunge@champion`, `models:/expunge/3`)."""
        raise NotImplementedError

    def fetch(self, which: int | str, out: Path) -> Release:
        """Downloads a version's release through the tracking server, checks every byte, and moves it to `out` in one step."""
        raise NotImplementedError

    def aliases(self) -> dict[str, int]:
        """The aliases and the versions that they name."""
        raise NotImplementedError

    def set_aliases(self, wanted: Mapping[str, int]) -> None:
        """Makes `wanted` the aliases candidate, champion and previous; one that `wanted` lacks is deleted."""
        raise NotImplementedError
