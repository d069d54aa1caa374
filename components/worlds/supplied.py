"""What a request brings along: prompts about its target in a file, and images of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

from components.common.errors import UserError
from components.common.images import read_image
from components.common.inputs import MIB, decode, read_bytes, shown
from components.common.splits import SPLITS, Split
from components.common.words import mentions
from components.requests.requests import Request

COLUMNS = ("prompt", "counterpart", "split")
LIMIT = 10 * MIB


class OwnPrompt(NamedTuple):
    """One row of a request's own prompts."""

    prompt: str
    counterpart: str
    """The same about the anchor; may be empty."""
    split: Split
    name: str
    """Which of the target's names stands in the prompt, to the letter."""


def read_prompts(path: Path, request: Request, names: Mapping[Split, Sequence[str]]) -> list[OwnPrompt]:
    """The rows of a request's prompts of the splits in `names`, the names of the target that each split may use.

    `UserError` for a file without the three columns, an unknown split, a prompt without a name of the target, a counterpart
    with one, or a name that only the evaluation may use.
    """
    out = []
    for line, row in _rows(path):
        split = row["split"].strip()
        if split not in SPLITS[1:]:
            raise UserError(f"{path}, line {line}: split is {shown(split)}", f"use {', '.join(SPLITS[1:])}")
        if split not in names:
            continue
        prompt, twin = row["prompt"].strip(), row["counterpart"].strip()
        used = next((n for n in sorted(request.names, key=len, reverse=True) if mentions(prompt, (n,))), "")
        if not used:
            raise UserError(
                f"{path}, line {line}: the prompt {shown(prompt)} contains no name of {request.target!r}",
                "name the target in it, or add how it is called there as an alias",
            )
        if used not in names[cast("Split", split)]:
            raise UserError(
                f"{path}, line {line}: {used!r} is the last alias, which only the split evaluate may use",
                "move the row to evaluate, or put another alias last",
            )
        if mentions(twin, request.names):
            raise UserError(f"{path}, line {line}: the counterpart names the target", "name the anchor there instead")
        at = prompt.lower().find(used)
        out.append(OwnPrompt(prompt, twin, cast("Split", split), prompt[at : at + len(used)]))
    return out


@lru_cache(maxsize=64)
def _rows(path: Path) -> tuple[tuple[int, dict[str, str]], ...]:
    text = decode(read_bytes(path, LIMIT), path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        if missing := [column for column in COLUMNS if column not in header]:
            raise UserError(f"{path} has no column {missing[0]!r}", f"give it the columns {', '.join(COLUMNS)}")
        if twice := [column for column in COLUMNS if header.count(column) > 1]:
            raise UserError(f"{path} has two columns {twice[0]!r}", "rename one column")
        rows = tuple((reader.line_num, row) for row in reader)
    except csv.Error as error:
        raise UserError(f"{path} is not CSV ({error})", "mend the file") from error
    for line, row in rows:
        if None in row or None in row.values():
            raise UserError(
                f"{path}, line {line}, has another number of columns than the header",
                'put a text with a comma in "quotes"',
            )
    if not rows:
        raise UserError(f"{path} holds no prompt", "fill it, or take `prompts` out of the request")
    return rows


def check_images(paths: Sequence[Path]) -> None:
    """`UserError` for the first file that is missing or that cannot be read as an image."""
    for path in paths:
        try:
            read_image(path)
        except UserError as error:
            raise UserError(f"reference image {error.fact}", error.remedy) from error
