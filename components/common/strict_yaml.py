"""The one reader of YAML: what two readers could understand differently is refused.

YAML 1.2 as dvc reads it (`yes` is a word, `010` is ten), without what configuration does not need: no duplicate keys,
anchors, aliases, merges, tags, directives, dates or second documents. Every key is a text, every number is finite.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    ScalarEvent,
)

from components.common.errors import UserError
from components.common.inputs import MIB, decode, read_bytes, shown

LIMIT = MIB
DEPTH = 32
VALUES = 100_000
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Characters that some readers take for the end of a line."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - YAML
    """The content of a YAML file, None if it is empty; `UserError` unless it is strict YAML of at most 1 MiB."""
    return parse_yaml(decode(read_bytes(path, LIMIT), path), path)


def parse_yaml(text: str, path: Path) -> Any:  # noqa: ANN401 - YAML
    """The content of a YAML text; `path` is for the message of a `UserError`."""
    if found := _LINE_BREAKS.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise UserError(f"{path}, line {line}, holds the character U+{ord(found[0]):04X}", "take it out")
    try:
        _check_events(text, path)
        content = YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        key = re.search(r'found duplicate key "(.*?)" with value', str(error), re.DOTALL)
        named = f" {shown(key[1])}" if key else ""
        raise UserError(f"{path}{_at(error)} has the key{named} twice", "keep one of them") from error
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}{_at(error)} is not YAML ({problem})", "mend the file") from error
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # dates that are none, numbers of 5,000 digits, keys that are lists
        raise UserError(
            f"{path} has a value or key that cannot be read ({shown(str(error))})", "put it in quotes"
        ) from error
    _check_values(content, str(path), ())
    return content


def _at(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return "" if mark is None else f", line {mark.line + 1},"


def _check_events(text: str, path: Path) -> None:
    """Refuses, before anything is built, what strict YAML does not have."""
    depth = documents = values = 0
    for event in YAML(typ="safe").parse(text):
        where = f"{path}, line {event.start_mark.line + 1},"
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise UserError(f"{where} begins a second document", "keep one")
            if event.version or event.tags:
                raise UserError(f"{where} has a directive", "remove the line that begins with %")
            continue
        if isinstance(event, CollectionEndEvent):
            depth -= 1
        if not isinstance(event, (AliasEvent, ScalarEvent, CollectionStartEvent)):
            continue
        if event.anchor is not None:
            raise UserError(f"{where} has an anchor or alias {shown(event.anchor)}", "write the value out")
        values += 1
        depth += isinstance(event, CollectionStartEvent)
        if depth > DEPTH:
            raise UserError(f"{where} is nested more than {DEPTH} levels deep", "mend the file")
        if values > VALUES:
            raise UserError(f"{path} has more than {VALUES} values", "leave out what is not needed")
        if not isinstance(event, AliasEvent):  # whose anchor was refused above
            _check_node(event, where)


def _check_node(event: ScalarEvent | CollectionStartEvent, where: str) -> None:
    if event.tag is not None:
        raise UserError(f"{where} has a tag {shown(event.tag)}", "remove it")
    if isinstance(event, ScalarEvent):
        if event.value == "<<" and not event.style:
            raise UserError(f"{where} has a merge key <<", "write the values out")
        if _CONTROL.search(event.value):
            raise UserError(f"{where} holds a control character or half a character", "take it out")


def _check_values(value: object, path: str, key: tuple[str, ...]) -> None:
    """Refuses keys that are no text, numbers that are not finite or too long, and dates."""
    where = f"{path}: {'.'.join(key)}" if key else path
    if isinstance(value, dict):
        for name, below in value.items():
            if not isinstance(name, str):
                raise UserError(f"{where} has the key {shown(name)}, which is no text", "put it in quotes")
            _check_values(below, path, (*key, name if name.isprintable() else shown(name)))
    elif isinstance(value, list):
        for i, below in enumerate(value):
            _check_values(below, path, (*key, str(i)))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}", "use a finite number, or put a word in quotes")
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            raise UserError(f"{where} is a number of more than 64 bits", "use a smaller one, or put a word in quotes")
    elif value is not None and not isinstance(value, str):
        raise UserError(f"{where} is a {type(value).__name__}", "put it in quotes")
