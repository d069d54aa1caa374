"""What stands beside an exported graph: parity.json, sealed so that an altered byte is noticed. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.errors import ArtifactError
from components.common.files import canonical

REPORT = "parity.json"
RESTORE = "restore both files: dvc checkout, or dvc repro export"


def write_sealed(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report with a seal: the digest of the rest."""
    path.write_text(canonical({**report, "seal": _seal(report)}), encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """The report at `path`, without its seal; `ArtifactError` if it is missing or a byte of it was altered."""
    try:
        text = path.read_text(encoding="utf-8")
        report = json.loads(text)
        whole = isinstance(report, dict) and text == canonical(report)
    except OSError as error:
        raise ArtifactError(f"{path} is missing", RESTORE) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON", RESTORE) from error
    if not whole or report.pop("seal", None) != _seal(report):
        raise ArtifactError(f"{path} was altered", RESTORE)
    return report


def write_no_graph(path: Path, made_from: Mapping[str, object]) -> None:
    """Writes the report of a project in which no request has a filter: it has no graph, for one of the stock encoder erases nothing."""
    write_sealed(path, {"sha256": None, "requests": [], "made_from": dict(made_from)})


def _seal(report: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(dict(report)).encode()).hexdigest()
