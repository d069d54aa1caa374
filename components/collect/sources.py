"""A user's own prompts: the column `prompt` of a CSV, Parquet or JSONL file, or of a Hugging Face dataset.

Prompts are text as it stands in the file (`007`, `NA` and `null` are words), and blank ones are left out. CSV has commas,
double quotes and as many columns in each row as in the header. A reader never guesses: anything else is refused.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import UserError
from components.common.inputs import MIB, PROMPT, decode, read_bytes, shown

COLUMN = "prompt"
LIMIT = 100 * MIB
_QUOTED = f'"{COLUMN}"'
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
Rows = Iterator[tuple[int, object]]
"""Number of the line or row, and what stands in the column."""


def read_source(name: str) -> list[str]:
    """The prompts of a file that ends in .csv, .parquet or .jsonl, or of the train split of a dataset named hf:NAME.

    `UserError` for a file that is missing, larger than 100 MiB or not what its name says, and for one without prompts.
    """
    suffix = Path(name).suffix.lower()
    if name.startswith("hf:"):
        found = _hugging_face(name)
    else:
        path = Path(name)
        reader = _READERS.get(suffix)
        if reader is None:
            raise UserError(
                f"corpus.sources names {shown(name)}", f"use a file that ends in {', '.join(_READERS)}, or hf:NAME"
            )
        content = read_bytes(path, LIMIT)
        if not content.strip():
            raise UserError(f"{name} is empty", "fill it or take it out of corpus.sources")
        found = reader(content, path)
    prompts = []
    for number, value in found:
        if fault := _fault(value):
            unit = "line" if suffix in (".csv", ".jsonl") else "row"
            raise UserError(f"{name}, {unit} {number}: the prompt {fault}", "write one prompt a row, as text")
        if value and not value.isspace():  # type: ignore[attr-defined] - a text, since it has no fault
            prompts.append(value)
    if not prompts:
        raise UserError(f"{name} holds no prompt", "fill it or take it out of corpus.sources")
    return prompts


def _fault(value: object) -> str:
    """What is wrong with a prompt; empty for a text and for a missing one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return f"{shown(value)} is no text"
    if len(value) > PROMPT:
        return f"has {len(value):,} characters, more than {PROMPT:,}"
    plain = value.isascii() and "\0" not in value
    return "" if plain or not _NO_TEXT.search(value) else "holds a NUL or half a character"


def _column(names: list[str], where: str) -> int:
    """Which column has the prompts."""
    if names.count(COLUMN) != 1:
        said = "has two columns" if COLUMN in names else "has no column"
        listed = "" if COLUMN in names else f" but {', '.join(map(shown, names[:20]))}"
        raise UserError(f"{where} {said} {COLUMN!r}{listed}", "rename one column, or separate columns by commas")
    return names.index(COLUMN)


def _csv(content: bytes, path: Path) -> Rows:
    decode(content, path)
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = next((row for row in rows if row), [])
        column = _column(header, str(path))
        for row in rows:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {rows.line_num}, has {len(row)} columns, the header {len(header)}",
                    'put prompts with a comma in "quotes"',
                )
            yield rows.line_num, row[column] if row else None
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}, is not CSV ({error})", "mend the line") from error


def _jsonl(content: bytes, path: Path) -> Rows:
    decode(content, path)
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="\n")
    for number, line in enumerate(lines, 1):
        text = line.strip(" \t\r\n")
        if not text:
            continue
        try:
            once = "\\" not in text and text.count(_QUOTED) == 1
            row, end = (_DECODER if once else _CAREFUL_DECODER).raw_decode(text)
            if end < len(text):
                raise ValueError("more than one value")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}, is not JSON ({shown(str(error))})", "write one object a line, and all of it"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}, is no object", f"write {{{_QUOTED}: …}} on each line")
        if COLUMN not in row:
            _column(list(row), f"{path}, line {number},")
        yield number, row[COLUMN]


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands in it twice")
    return row


_DECODER, _CAREFUL_DECODER = json.JSONDecoder(), json.JSONDecoder(object_pairs_hook=_distinct)
"""The careful one is slower, for lines that may hold a key twice."""


def _parquet(content: bytes, path: Path) -> Rows:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        column = file.schema_arrow.field(_column(file.schema_arrow.names, str(path)))
        if not _is_text(column.type):
            raise UserError(
                f"{path}: the column {COLUMN!r} holds {shown(str(column.type))}, no text", "write it as text"
            )
        row = size = 0
        for batch in file.iter_batches(batch_size=10_000, columns=[COLUMN]):
            for value in batch.column(0).to_pylist():
                row += 1
                size += len(value or "")
                if size > LIMIT:
                    raise UserError(f"{path} holds more than {LIMIT // MIB} MiB of text", "split it")
                yield row, value
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:  # what pyarrow raises for bytes of all sorts
        raise UserError(f"{path} is not Parquet ({shown(str(error))})", "write it again") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


_READERS = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}


def _hugging_face(name: str) -> Rows:
    try:
        from datasets import load_dataset  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UserError(
            f"corpus.sources names {name!r} but datasets is not installed", "pip install datasets"
        ) from error
    try:
        table = load_dataset(name.removeprefix("hf:"), split="train")
    except (OSError, ValueError) as error:
        raise UserError(f"{name} cannot be loaded ({shown(str(error))})", "mend the name or go online") from error
    _column(table.column_names, name)
    return enumerate(table[COLUMN], 1)
