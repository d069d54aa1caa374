"""Sections of params.yaml: each lives beside its owner as a frozen class, and is read alone.

A stage that reads one section does not depend on the schema of another, so that a new section re-runs nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from components.common.errors import UserError
from components.common.inputs import shown
from components.common.strict_yaml import read_yaml

PARAMS = Path("params.yaml")
T = TypeVar("T")


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, attribute docstrings become field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("list at least one")
    if twice := [n for n, value in enumerate(values) if value in values[:n]]:
        raise ValueError(f"number {twice[0] + 1} stands there before; take one out")
    return values


Some = Annotated[tuple[T, ...], AfterValidator(_distinct)]
"""A list of one value at least, and none twice."""


def read_section(name: str, kind: type[T], path: Path = PARAMS) -> T:
    """Section `name` of params.yaml as a `kind`; `UserError` if it is missing, has an unknown key or a value out of range."""
    content = read_yaml(path)
    if not isinstance(content, dict) or name not in content:
        raise UserError(f"{path} has no section {name!r}", "add it, as in the params.yaml that ships")
    return validated(content[name], kind, str(path), name)


def validated(content: object, kind: type[T], where: str, section: str = "") -> T:
    """Plain content of a file as a `kind`; `UserError` for the first thing wrong with it.

    As strict as JSON has types: `true` and "3" are no numbers, 3 is no text; a list is a tuple, a text is a path.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise first_problem(error, where, section) from error


def first_problem(error: ValidationError, where: str, section: str = "") -> UserError:
    """The first thing that pydantic found, as one sentence."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return UserError(f"{where} holds half a character", "write it in UTF-8")
    parts = [str(part) for part in ((section,) if section else ()) + problem["loc"]]
    key = ".".join(part if part.isprintable() and len(part) <= 64 else shown(part) for part in parts)
    if problem["type"] == "extra_forbidden":
        return UserError(f"{where} has an unknown key {key!r}", "remove it or mend its spelling")
    if problem["type"] == "missing":
        return UserError(f"{where} lacks the key {key!r}", "add it")
    value = "" if isinstance(problem["input"], dict) else f" is {shown(problem['input'])}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not key and "; " in message:  # of the whole, and a sentence with its remedy
        fact, _, remedy = message.rpartition("; ")
        return UserError(f"{where}: {fact}", remedy)
    return UserError(f"{where}: {key}{value}" if key else where, message)
