"""Tables of prompts and records of requests, as the stages `corpus` and `concepts` write them.

Later stages read these alone: what a world knows of a request stands in its record, so that nobody asks a world again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
from pydantic import ValidationError

from components.common.errors import ArtifactError
from components.common.paths import CONCEPTS
from components.common.sections import Section, first_problem
from components.common.splits import Split
from components.requests.requests import Request

TABLE = "prompts.parquet"
COUNTS = "counts.json"
RECORD = "request.json"
SOURCES = "sources"
"""Where a prompt of `corpus.sources` says that it comes from."""
RECORD_VERSION = 1


class RequestRecord(Section):
    """What a world knows of one request: `data/concepts/<id>/request.json`."""

    version: Literal[1] = RECORD_VERSION
    id: str
    request: Request
    names: dict[Split, tuple[str, ...]]
    """The target's names that the prompts of each split use; the last alias is in the evaluation alone (invariant 6)."""
    misspellings: tuple[str, ...]
    """Forms of the names one slip away from them that are no words of the world; the filter finds them too."""
    labels: tuple[str, ...]
    """What the judge calls the target: several for a category."""
    is_style: bool
    """Whether the labels are styles; otherwise they are concepts."""
    avoid: tuple[str, ...]
    """Labels that prompts to retain do not show: the target's, the anchor's, the neighbours'."""

    @property
    def anchor(self) -> str:
        """What the judge calls the anchor; empty without one."""
        return self.request.anchor


def read_record(request_id: str, folder: Path = CONCEPTS) -> RequestRecord:
    """The record of one request; `ArtifactError` if it is missing, no JSON, or of another version."""
    path = folder / request_id / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} is missing", "run the stage that writes it: dvc repro concepts") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON", "write it again: dvc repro concepts") from error
    found = content.get("version") if isinstance(content, dict) else None
    if found != RECORD_VERSION:
        raise ArtifactError(f"{path} has version {found!r}, not {RECORD_VERSION}", "write it again: dvc repro concepts")
    try:
        return RequestRecord.model_validate(content)
    except ValidationError as error:
        raise ArtifactError(first_problem(error, str(path)).fact, "write it again: dvc repro concepts") from error


def read_records(folder: Path = CONCEPTS) -> dict[str, RequestRecord]:
    """The records of all requests by id, in the order in which requests.yaml lists them."""
    try:
        listed = json.loads((folder / "requests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no requests.json", "run the stage that writes it: dvc repro concepts") from error
    return {request_id: read_record(request_id, folder) for request_id in listed}


def read_table(folder: Path) -> pd.DataFrame:
    """The prompts of a stage, lists as tuples; `ArtifactError` if the stage has not run."""
    path = folder / TABLE
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "run the stage that writes it: dvc repro concepts")
    table = pd.read_parquet(path)
    if "concepts" in table:
        table["concepts"] = table["concepts"].map(tuple)
    return table


def read_prompts(records: dict[str, RequestRecord], folder: Path = CONCEPTS) -> pd.DataFrame:
    """The prompts of these requests, in one table.

    Columns: request, split, role, prompt, concepts (tuple of labels), style, names_target (bool), name_used (str, empty
    where the target is not named), pair (bool), counterpart (the same prompt about the anchor, or empty).
    """
    return pd.concat([read_table(folder / request_id) for request_id in records], ignore_index=True)


def where(table: pd.DataFrame, keep: Any) -> pd.DataFrame:  # noqa: ANN401 - pandas types no comparison
    """The rows of `table` that `keep` (N,) bool marks; the index stays as it is."""
    return cast("pd.DataFrame", table[keep])
