"""JSON that a user gives: UTF-8, at most 1 MiB, no key twice, no NaN, nested no deeper than YAML may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.inputs import decode, read_bytes, shown
from components.common.strict_yaml import DEPTH, LIMIT


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON
    """The content of a JSON file; `UserError` for anything that two readers could understand differently."""
    text = decode(read_bytes(path, LIMIT), path)
    try:
        content = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
        if _depth(content) > DEPTH:
            raise ValueError(f"it is nested more than {DEPTH} levels deep")
    except (ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else shown(str(error))[1:-1]
        raise UserError(f"{path} is not JSON ({said})", "mend the file") from error
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shown(next(key for key in keys if keys.count(key) > 1))} stands in it twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _depth(content: object) -> int:
    below = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return 1 + max(map(_depth, below), default=0) if isinstance(content, dict | list) else 0
