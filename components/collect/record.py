"""Records of requests, as the stage `concepts` writes them: `data/concepts/<id>/request.json`.

Later stages read these alone. What a world knows of a request stands in its record, so that nobody asks a world again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import ValidationError

from components.collect.tables import read_table
from components.common.errors import ArtifactError
from components.common.files import canonical
from components.common.paths import CONCEPTS
from components.common.sections import Section, first_problem
from components.common.splits import Split
from components.requests.requests import Request, check_id

RECORD = "request.json"
REQUEST_IDS = "requests.json"
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
    forms: tuple[str, ...] = ()
    """What the target is called in text: its names and their plurals, in the request's languages, and its emoji."""
    shields: tuple[str, ...] = ()
    """Longer names of other things that hold one of the target's, and words one slip away from it: text does not flag those."""
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
    path = folder / check_id(request_id) / RECORD
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
        listed = json.loads((folder / REQUEST_IDS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder} holds no {REQUEST_IDS}", "run the stage that writes it: dvc repro concepts"
        ) from error
    return {request_id: read_record(request_id, folder) for request_id in listed}


def write_record(folder: Path, record: RequestRecord) -> None:
    """Writes a record into a folder of its own, inside one that is being filled."""
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_text(canonical(record.model_dump(mode="json")), encoding="utf-8")


def write_request_ids(folder: Path, request_ids: list[str]) -> None:
    """Writes which requests there are, in the order of requests.yaml."""
    (folder / REQUEST_IDS).write_text(canonical(request_ids), encoding="utf-8")


def read_prompts(request_ids: Iterable[str], folder: Path = CONCEPTS) -> pd.DataFrame:
    """The prompts of these requests, in one table.

    Columns: request, split, role, prompt, concepts (tuple of labels), style, names_target (bool), name_used (str, empty
    where the target is not named), pair (bool), counterpart (the same prompt about the anchor, or empty).
    """
    return pd.concat([read_table(folder / request_id) for request_id in request_ids], ignore_index=True)
