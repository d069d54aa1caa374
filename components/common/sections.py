"""Sections of params.yaml: each lives beside its owner as a frozen class, and is read alone.

A stage that reads one section does not depend on the schema of another, so that a new section re-runs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from components.common.errors import UserError

PARAMS = Path("params.yaml")
T = TypeVar("T")


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, attribute docstrings become field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def read_section(name: str, kind: type[T], path: Path = PARAMS) -> T:
    """Section `name` of params.yaml as a `kind`; `UserError` if it is missing, has an unknown key or a value out of range."""
    content = read_yaml(path)
    if not isinstance(content, dict) or name not in content:
        raise UserError(f"{path} has no section {name!r}", "add it, as in the params.yaml that ships")
    try:
        return TypeAdapter(kind).validate_python(content[name])
    except ValidationError as error:
        raise first_problem(error, str(path), name) from error


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - YAML
    """The content of a YAML file; `UserError` if it is missing or no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run from the root of the project") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]})", "mend the file") from error


def first_problem(error: ValidationError, where: str, section: str = "") -> UserError:
    """The first thing that pydantic found, as one sentence."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in ((section,) if section else ()) + problem["loc"])
    if problem["type"] == "extra_forbidden":
        return UserError(f"{where} has an unknown key {key!r}", "remove it or mend its spelling")
    value = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {key}{value}" if key else where, message[0].lower() + message[1:])
