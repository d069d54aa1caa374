"""Mutated requests, params and tables of prompts, each with what a reader must do with it.

The list is written from the documentation, without the readers: `refuse` is what must be refused, `accept` what must be
read, and `either` bytes altered at random, which a reader may take or refuse but not stumble over.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

NoFile = Literal["fifo", "folder", "missing", "device", "loop", "large"]
Must = Literal["refuse", "accept", "either"]


class Case(NamedTuple):
    """One file and what must become of it."""

    what: str
    must: Must
    name: str
    content: bytes | NoFile
    value: list[str] | None = None
    """The prompts that must come out, if the file is accepted."""

    def put(self, folder: Path) -> Path:
        """Writes the file."""
        path = folder / self.name
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif self.content == "fifo":
            os.mkfifo(path)
        elif self.content == "folder":
            path.mkdir()
        elif self.content == "device":
            path.symlink_to("/dev/zero")
        elif self.content == "large":
            path.touch()
            os.truncate(path, 2**27)
        elif self.content == "loop":
            path.symlink_to(path)
        return path

    def remove(self, folder: Path) -> None:
        """Takes it away."""
        path = folder / self.name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def fuzzed(data: bytes, rng: random.Random) -> bytes:
    """`data` with up to eight bytes or pieces replaced, dropped or repeated."""
    for _ in range(rng.randint(1, 8)):
        at, length = rng.randrange(len(data) + 1), rng.randint(0, 12)
        piece = rng.choice([rng.randbytes(length), data[at : at + length] * 2, b"", rng.choice([b"\xff", b"\0", b"&a ", b"*a", b"[", b"{", b'"', b": ", b"\n", b"- ", b"\t", b"!!x ", b"?", b"|", b"%", b","])])  # fmt: skip
        data = data[:at] + piece + data[at + length :]
    return data


NO_FILES: tuple[NoFile, ...] = get_args(NoFile)


def encoded(text: str, rng: random.Random) -> tuple[str, bytes]:
    """A text in an encoding that must be refused."""
    name = rng.choice(["latin-1", "utf-16", "utf-16-le", "utf-32", "surrogate", "nul"])
    if name == "latin-1":
        return name, text.encode("latin-1", "replace") + "# é\n".encode("latin-1")
    if name == "surrogate":
        return name, text.encode() + b"# \xed\xa0\x80\n"
    if name == "nul":
        at = rng.randrange(len(text) + 1)
        return name, (text[:at] + "\0" + text[at:]).encode()
    return name, text.encode(name)


def _yaml_refused(text: str, rng: random.Random) -> tuple[str, bytes]:
    """A YAML text that no longer is strict YAML, whatever it says. Texts are block style and end with a line end."""
    lines = text.splitlines(keepends=True)
    keyed = [i for i, line in enumerate(lines) if re.match(r" *[\w-]+: \S", line)]
    at = rng.choice(keyed)
    indent, key, value = re.fullmatch(r"( *)([\w-]+): (.*)\n", lines[at]).groups()  # type: ignore[union-attr]
    where, bad = rng.choice(
        [
            ("key twice", lines[at] * 2), ("key twice, quoted", lines[at] + f'{indent}"{key}": {value}\n'),
            ("anchor", f"{indent}{key}: &a {value}\n"), ("alias", f"{indent}{key}: *a\n"),
            ("merge", f"{lines[at]}{indent}<<: {{{key}2: 1}}\n"), ("tag", f"{indent}{key}: !!str {value}\n"),
            ("python tag", f"{indent}{key}: !!python/object/apply:os.getcwd []\n"), ("nan", f"{indent}{key}: .nan\n"),
            ("infinity", f"{indent}{key}: -.INF\n"), ("overflow", f"{indent}{key}: 1e400\n"), ("null", f"{indent}{key}: ~\n"),
            ("long number", f"{indent}{key}: {'9' * rng.choice([20, 400, 5000])}\n"), ("date", f"{indent}{key}: 2024-01-31\n"),
            ("no date", f"{indent}{key}: 2024-13-45\n"), ("nested", f"{indent}{key}: {'[' * 5000}\n"),
            ("nested and closed", f"{indent}{key}: {'[' * 500}{']' * 500}\n"), ("unclosed", f'{indent}{key}: "{value}\n'),
            ("number as key", f"{lines[at]}{indent}7: x\n"), ("list as key", f"{lines[at]}{indent}? [a]\n{indent}: x\n"),
            ("unknown key", f"{lines[at]}{indent}colour{rng.randrange(9)}: red\n"), ("tab", f"{lines[at]}\t{key}: 1\n"),
            ("escaped NUL", f'{indent}{key}: "a\\0b"\n'), ("half a character", f'{indent}{key}: "\\ud800"\n'),
            ("mapping", f"{indent}{key}: {{a: 1}}\n"), ("list of lists", f"{indent}{key}: [[a]]\n"),
            ("line separator", f"{indent}{key}: {value}\u2028\n"), ("control character", f"{indent}{key}: {value}\x07\n"),
        ]
    )  # fmt: skip
    section = next((line for line in reversed(lines[: at + 1]) if not line.startswith(" ")), "")
    if where == "null" and (key in ("clip", "second_judge") or (section, key) == ("judge:\n", "path")):  # it may be
        where, bad = "tag", f"{indent}{key}: !x {value}\n"
    whole = rng.random()
    if whole < 0.05:
        where, lines = "second document", [*lines, "---\n", *lines]
    elif whole < 0.1:
        where, lines = "directive", ["%YAML 1.1\n---\n", *lines]
    elif whole < 0.15:
        where, lines = "not a mapping", [rng.choice(["- a\n", "text\n", "7\n", "[[]]\n", "true\n"])]
    elif whole < 0.17:
        where, lines = "large", [*lines, "# " + "x" * 2**20]
    elif whole < 0.19:
        where, lines = "many values", [*lines, "extra: [" + "1," * rng.choice([1000, 120_000]) + "]\n"]
    else:
        lines[at] = bad
    return where, "".join(lines).encode()


def _yaml_accepted(text: str, rng: random.Random) -> tuple[str, bytes]:
    """The same content written otherwise."""
    data: Any = yaml.safe_load(text)
    return rng.choice(
        [
            ("as it is", text.encode()), ("byte order mark", "\ufeff".encode() + text.encode()),
            ("CRLF", text.replace("\n", "\r\n").encode()), ("no line end", text.rstrip("\n").encode()),
            ("comments", ("# é\n" + re.sub(r"(?m)$", "  # c", text.rstrip("\n")) + "\n# end\n\n").encode()),
            ("flow", yaml.safe_dump(data, default_flow_style=True, sort_keys=False, width=9999, allow_unicode=True).encode()),
            ("JSON", json.dumps(data).encode()), ("quoted", yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=40).encode()),
            ("indented", yaml.safe_dump(data, sort_keys=True, indent=6, allow_unicode=True, width=9999).encode()),
            ("explicit", f"---\n{text}...\n".encode()),
        ]
    )  # fmt: skip


def _dumped(content: object) -> str:
    """Block style with short lists inline, one key a line."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=9999, default_flow_style=None)


def yaml_case(
    name: str, content: dict[str, Any], meaning: Callable[[dict[str, Any], random.Random], str], rng: random.Random
) -> Case:
    """One YAML file: as it should be, in another form, with bytes altered, or broken in form or, by `meaning`, in content."""
    text, sort = _dumped(content), rng.random()
    if sort < 0.03:
        return Case(kind := rng.choice(NO_FILES), "refuse", name, kind)
    if sort < 0.1:
        what, data = encoded(text, rng)
        return Case(what, "refuse", name, data)
    if sort < 0.3:
        what, data = _yaml_refused(text, rng)
        return Case(what, "refuse", name, data)
    if sort < 0.6:
        changed = copy.deepcopy(content)
        what = meaning(changed, rng)
        return Case(what, "refuse", name, _dumped(changed).encode("utf-8", "surrogatepass"))
    if sort < 0.8:
        what, data = _yaml_accepted(text, rng)
        return Case(what, "accept", name, data)
    return Case("altered bytes", "either", name, fuzzed(text.encode(), rng))
