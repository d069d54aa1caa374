"""Files that a user gives: regular files of a stated size, and text that is UTF-8; one sentence for anything else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from components.common.errors import UserError

MIB = 2**20
PROMPT = 10_000
"""Characters of the longest prompt."""
SHOWN = 60
"""Characters of a wrong value that a message shows."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; `UserError` for anything else, without waiting on it."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for its writer
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise UserError(f"{path} is no regular file", "name a file")
            with open(number, "rb", closefd=False) as file:
                size = os.fstat(number).st_size
                content = file.read(limit + 1) if size <= limit else b""
        finally:
            os.close(number)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run from the root of the project") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{shown(str(path))} cannot be read ({said})", "mend the path or its permissions") from error
    if size > limit or len(content) > limit:
        raise UserError(f"{path} is larger than {limit // MIB} MiB", "split it or leave out what is not needed")
    return content


def decode(content: bytes, path: Path) -> str:
    """UTF-8 bytes as text, without a byte order mark; `UserError` for another encoding or a NUL."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}, is not UTF-8", "save the file as UTF-8") from error
    if "\0" in text:
        raise UserError(
            f"{path}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}, holds a NUL", "save it as UTF-8"
        )
    return text


def check_prompt(text: str) -> str:
    """The prompt, if it is text of a length that somebody writes; `UserError` otherwise."""
    if len(text) > PROMPT:
        raise UserError(
            f"the prompt has {len(text):,} characters", f"use at most {PROMPT:,}: the encoder reads 77 tokens"
        )
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"the prompt {shown(text)} holds a NUL or half a character", "write it in UTF-8")
    return text


def shown(value: object) -> str:
    """A value as a message shows it: quoted, on one line, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
