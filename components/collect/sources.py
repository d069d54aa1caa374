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
from components.common.inputs import MIB, decode, read_bytes, shown

COLUMN = "prompt"
LIMIT = 100 * MIB
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_source(name: str) -> list[str]:
    """The prompts of a file that ends in .csv, .parquet or .jsonl, or of the train split of a dataset named hf:NAME.

    `UserError` for a file that is missing, larger than 100 MiB or not what its name says, and for one without prompts.
    """
    if name.startswith("hf:"):
        found = _hugging_face(name)
    else:
        path = Path(name)
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise UserError(
                f"corpus.sources names {shown(name)}", f"use a file that ends in {', '.join(_READERS)}, or hf:NAME"
            )
        content = read_bytes(path, LIMIT)
        if not content.strip():
            raise UserError(f"{name} is empty", "fill it or take it out of corpus.sources")
        found = reader(content, path)
    prompts = [prompt for where, value in found if (prompt := _prompt(value, where)).strip()]
    if not prompts:
        raise UserError(f"{name} holds no prompt", "fill it or take it out of corpus.sources")
    return prompts


def _prompt(value: object, where: str) -> str:
    """A prompt as it stands in the file, empty for a missing one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: the prompt {shown(value)} is no text", "write it in quotes, one prompt a row")
    if (not value.isascii() and _NO_TEXT.search(value)) or "\0" in value:
        raise UserError(f"{where}: the prompt holds a NUL or half a character", "take it out")
    return value


def _column(names: list[str], where: str) -> int:
    """Which column has the prompts."""
    if names.count(COLUMN) != 1:
        said = "has two columns" if COLUMN in names else "has no column"
        listed = "" if COLUMN in names else f" but {', '.join(map(shown, names[:20]))}"
        raise UserError(f"{where} {said} {COLUMN!r}{listed}", "rename one column, or separate columns by commas")
    return names.index(COLUMN)


def _csv(content: bytes, path: Path) -> Iterator[tuple[str, object]]:
    decode(content, path)
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = next((row for row in rows if row), [])
        column = _column(header, str(path))
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if row and len(row) != len(header):
                raise UserError(
                    f"{where}, has {len(row)} columns, the header {len(header)}", 'put prompts with a comma in "quotes"'
                )
            yield where, row[column] if row else None
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}, is not CSV ({error})", "mend the line") from error


def _jsonl(content: bytes, path: Path) -> Iterator[tuple[str, object]]:
    decode(content, path)
    lines = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, is not JSON", "write one object a line, and all of it") from error
        if not isinstance(row, list) or not all(isinstance(pair, tuple) for pair in row):
            raise UserError(f"{where}, is no object", f'write {{"{COLUMN}": "…"}} on each line')
        yield where, row[_column([key for key, _ in row], f"{where},")][1]


def _parquet(content: bytes, path: Path) -> Iterator[tuple[str, object]]:
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
                yield f"{path}, row {row}", value
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


def _hugging_face(name: str) -> Iterator[tuple[str, object]]:
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
    return ((f"{name}, row {i}", value) for i, value in enumerate(table[COLUMN], 1))
