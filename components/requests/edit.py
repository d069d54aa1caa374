"""Edits of requests.yaml in place: one entry goes in or out, every other byte stays as it is.

Positions come from the YAML reader; the edited text is read again and must say what was meant, or nothing is written.
Writers wait for each other on `.requests.yaml.lock`, which stays beside the file.
"""

from __future__ import annotations

import fcntl
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from components.common.errors import ArtifactError, UserError
from components.common.files import write_text
from components.common.inputs import decode, read_bytes
from components.common.sections import validated
from components.common.strict_yaml import LIMIT, parse_yaml
from components.requests.requests import REQUESTS, Request, RequestId, check_id, check_names, checked_requests

Check = Callable[[Mapping[RequestId, Request]], None]
_KEY = "requests"
_BOM = "\ufeff"
_PLAIN = re.compile(r"[^\W\d_](?:[^\W_]|['-](?=[^\W_])| (?=[^\W_]))*")
_NO_TEXT = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def add_request(
    request: Mapping[str, object],
    path: Path = REQUESTS,
    *,
    request_id: RequestId | None = None,
    check: Check | None = None,
    dry_run: bool = False,
) -> RequestId:
    """Appends a request under `request_id`, or a new random id, and returns the id; the file is unchanged unless all of it is valid.

    `check` sees all requests, the new one among them, before anything is written, and may refuse them.
    """
    with _locked(path, dry_run=dry_run) as file:
        text, requests = _read(file)
        request_id = f"r-{secrets.token_hex(4)}" if request_id is None else check_id(request_id)
        if request_id in requests:
            raise UserError(f"request {request_id!r} is in {path} already", "remove that one first, or use another id")
        added = validated(dict(request), Request, "the request")
        check_names(added)
        wanted = checked_requests({_KEY: {k: _plain(v) for k, v in (requests | {request_id: added}).items()}}, path)
        if check is not None:
            check(wanted)
        _write(file, _with_entry(text, request_id, added), wanted, dry_run=dry_run)
    return request_id


def remove_request(request_id: RequestId, path: Path = REQUESTS, *, dry_run: bool = False) -> Request:
    """Withdraws a request and returns it; `UserError` if there is none of that id."""
    check_id(request_id)
    with _locked(path, dry_run=dry_run) as file:
        text, requests = _read(file)
        if request_id not in requests:
            raise UserError(
                f"request {request_id!r} is not in {path}", f"use one of: {', '.join(requests) or 'there is none'}"
            )
        wanted = {i: request for i, request in requests.items() if i != request_id}
        _write(file, _without_entry(text, list(requests).index(request_id)), wanted, dry_run=dry_run)
    return requests[request_id]


@contextmanager
def _locked(path: Path, *, dry_run: bool) -> Iterator[Path]:
    """The file behind `path`, which no other writer changes meanwhile."""
    path = path.resolve() if path.is_symlink() else path
    if dry_run:
        yield path
        return
    read_bytes(path, LIMIT)  # where it cannot be read, no lock is left
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = lock.open("a")
    except OSError as error:
        raise ArtifactError(f"{lock} cannot be opened ({error.strerror})", "make the folder writable") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def _read(path: Path) -> tuple[str, dict[RequestId, Request]]:
    content = read_bytes(path, LIMIT)
    text = decode(content, path)
    requests = checked_requests(parse_yaml(text, path), path)
    return (_BOM if content.startswith(_BOM.encode()) else "") + text, requests


def _write(path: Path, text: str, wanted: Mapping[RequestId, Request], *, dry_run: bool) -> None:
    """Writes `text` if it says `wanted`."""
    try:
        found = checked_requests(parse_yaml(text.removeprefix(_BOM), path), path)
    except UserError:
        found = None
    if found != wanted or len(text.encode()) > LIMIT:
        raise UserError(f"{path} cannot be edited in place", "edit it by hand, or write one key a line")
    if not dry_run:
        write_text(path, text)


def _plain(request: Request) -> dict[str, Any]:
    return request.model_dump(mode="json")


class _Place(NamedTuple):
    """Where an entry stands in the text, as offsets: of its key, and behind its last value."""

    key: int
    end: int
    column: int


class _Layout(NamedTuple):
    """Where the requests stand in the text."""

    entries: list[_Place]
    key_end: int
    """Behind `requests:`; -1 without that key."""
    flow: bool
    """Whether the entries stand in braces."""
    braces: tuple[int, int]
    """Of the empty mapping `{}`, of the requests or of the whole file; (-1, -1) without one."""


def _layout(text: str) -> _Layout:
    """Finds the entries of a requests.yaml, which is strict YAML: lines end nowhere but at LF, CRLF or CR."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line] + column + (line == 0 and text.startswith(_BOM))

    def end(node: Node) -> int:
        """Behind the last character of a node; the reader says where the next token begins."""
        if isinstance(node, MappingNode) and node.value and not node.flow_style:
            return max(end(part) for part in node.value[-1])
        if isinstance(node, SequenceNode) and node.value and not node.flow_style:
            return max(end(part) for part in node.value)
        at = offset(node.end_mark.line, node.end_mark.column)
        return at if node.end_mark.column else len(text[:at].rstrip())

    def start(node: Node) -> int:
        return offset(node.start_mark.line, node.start_mark.column)

    root = YAML(typ="safe").compose(text.removeprefix(_BOM))
    if root is None:
        return _Layout([], -1, flow=False, braces=(-1, -1))
    if not root.value:
        return _Layout([], -1, flow=False, braces=(start(root), end(root)))
    key, value = root.value[0]
    key_end = text.index(":", end(key)) + 1
    if not value.value:
        return _Layout([], key_end, flow=bool(root.flow_style), braces=(start(value), end(value)))
    entries = [_Place(start(k), max(end(k), end(v)), k.start_mark.column) for k, v in value.value]
    return _Layout(entries, key_end, flow=bool(value.flow_style), braces=(-1, -1))


def _with_entry(text: str, request_id: RequestId, request: Request) -> str:
    """`text` with one entry more behind the last one."""
    layout, line_end = _layout(text), "\r\n" if "\r\n" in text else "\n"
    if layout.entries and layout.flow:
        at = layout.entries[-1].end
        return f"{text[:at]}, {_flow_entry(request_id, request)}{text[at:]}"
    if layout.entries:
        last = layout.entries[-1]
        at = _line_end(text, last.end)
        return text[:at] + line_end + _block_entry(request_id, request, last.column, line_end) + text[at:]
    if layout.flow:
        first, behind = layout.braces
        return f"{text[:first]}{{{_flow_entry(request_id, request)}}}{text[behind:]}"
    entry = line_end + _block_entry(request_id, request, 2, line_end)
    first, behind = layout.braces
    if layout.key_end < 0:
        head = text if first < 0 else text[:first] + text[behind:].lstrip(" ")
        glue = "" if not head.removeprefix(_BOM) or head.endswith(("\n", "\r")) else line_end
        return f"{head}{glue}{_KEY}:{entry}{line_end}"
    if first >= 0:
        text = text[: first - (text[first - 1] == " ")] + text[behind:]
    at = _line_end(text, layout.key_end)
    return text[:at] + entry + text[at:]


def _without_entry(text: str, index: int) -> str:
    """`text` without its entry number `index`; comments on lines between entries stay."""
    layout = _layout(text)
    entries, place = layout.entries, layout.entries[index]
    if layout.flow:
        first = entries[index - 1].end if index else place.key
        behind = entries[1].key if not index and len(entries) > 1 else place.end
        return text[:first] + text[behind:]
    line = len(text[: place.key].rstrip(" "))
    line -= 2 if text[:line].endswith("\r\n") else 1
    behind = _line_end(text, place.end)
    if len(entries) > 1:
        return text[:line] + text[behind:]
    return f"{text[: layout.key_end]} {{}}{text[layout.key_end : line]}{text[behind:]}"


def _line_end(text: str, at: int) -> int:
    """Where the line ends in which `at` stands, before its line end."""
    found = re.compile(r"[\r\n]").search(text, at)
    return found.start() if found else len(text)


def _scalar(text: str) -> str:
    """A text as YAML that every version reads as that text."""
    return text if _PLAIN.fullmatch(text) and text not in _NO_TEXT else json.dumps(text, ensure_ascii=False)


def _fields(request: Request) -> dict[str, str]:
    return {
        key: f"[{', '.join(map(_scalar, value))}]" if isinstance(value, list) else _scalar(value)
        for key, value in _plain(request).items()
    }


def _flow_entry(request_id: RequestId, request: Request) -> str:
    return f"{_id(request_id)}: {{{', '.join(f'{k}: {v}' for k, v in _fields(request).items())}}}"


def _block_entry(request_id: RequestId, request: Request, indent: int, line_end: str) -> str:
    lines = [f"{_id(request_id)}:", *(f"  {key}: {value}" for key, value in _fields(request).items())]
    return line_end.join(" " * indent + line for line in lines)


def _id(request_id: RequestId) -> str:
    return request_id if _PLAIN.fullmatch(request_id) and request_id not in _NO_TEXT else json.dumps(request_id)
