"""requests.yaml: a mapping from random request ids to what must be erased and what is drawn instead."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from components.common.errors import UserError
from components.common.files import write_text
from components.common.sections import Section, first_problem, read_yaml

REQUESTS = Path("requests.yaml")
Channel = Literal["filter", "guidance"]
Kind = Literal["object", "style", "character", "category", "person", "explicit"]


class Request(Section):
    """One deletion request; it holds no personal data."""

    target: str = Field(min_length=1)
    """The concept that must no longer be drawn."""
    kind: Kind
    """What sort of thing the target is."""
    aliases: tuple[str, ...] = ()
    """Other names of the target; they are erased too."""
    anchor: str = ""
    """What is drawn instead; empty for nothing in particular."""
    neighbours: tuple[str, ...] = ()
    """Concepts close to the target that must survive."""
    channels: tuple[Channel, ...] = ("filter", "guidance")
    """Which erasers act: the text filter, the U-Net adapter, or both."""

    @field_validator("target", "anchor")
    @classmethod
    def _tidy(cls, text: str) -> str:
        return " ".join(text.lower().split())

    @field_validator("aliases", "neighbours")
    @classmethod
    def _tidy_all(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(" ".join(n.lower().split()) for n in names)

    @model_validator(mode="after")
    def _makes_sense(self) -> Request:
        if not self.target:
            raise ValueError("the target is empty; name what must no longer be drawn")
        if self.anchor in self.names:
            raise ValueError(f"the anchor {self.anchor!r} is the target itself; name something else to draw instead")
        if both := set(self.names) & set(self.neighbours):
            raise ValueError(f"{min(both)!r} is target and neighbour at once; take it out of neighbours")
        if not self.channels:
            raise ValueError("channels is empty; use filter, guidance or both")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Target and aliases."""
        return (self.target, *self.aliases)


class Requests(Section):
    """The whole file."""

    requests: dict[str, Request]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Requests:
        owner: dict[str, str] = {}
        for request_id, request in self.requests.items():
            for name in request.names:
                if owner.setdefault(name, request_id) != request_id:
                    raise ValueError(
                        f"{name!r} is a name of both {owner[name]} and {request_id}; leave it to one of them"
                    )
        for request_id, request in self.requests.items():
            if request.anchor in owner:
                raise ValueError(
                    f"the anchor {request.anchor!r} of {request_id} is erased by {owner[request.anchor]}; "
                    "draw something that no request erases"
                )
        return self


def load_requests(path: Path = REQUESTS) -> dict[str, Request]:
    """The requests by id, in the file's order; `UserError` for anything that does not make sense."""
    return _checked(read_yaml(path) or {"requests": {}}, str(path)).requests


def _checked(content: object, where: str) -> Requests:
    try:
        return Requests.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, where) from error


def add_request(request: Mapping[str, object], path: Path = REQUESTS, *, dry_run: bool = False) -> str:
    """Appends a request under a new random id, which it returns; the file is unchanged unless all of it is valid."""
    request_id = f"r-{secrets.token_hex(4)}"
    content = read_yaml(path) or {"requests": {}}
    content["requests"][request_id] = dict(request)
    _save(content, path, dry_run=dry_run)
    return request_id


def remove_request(request_id: str, path: Path = REQUESTS, *, dry_run: bool = False) -> Request:
    """Withdraws a request and returns it; `UserError` if there is none of that id."""
    requests = load_requests(path)
    if request_id not in requests:
        raise UserError(
            f"request {request_id!r} is not in {path}", f"use one of: {', '.join(requests) or 'there is none'}"
        )
    content = read_yaml(path)
    del content["requests"][request_id]
    _save(content, path, dry_run=dry_run)
    return requests[request_id]


def _save(content: Mapping[str, object], path: Path, *, dry_run: bool) -> None:
    checked = _checked(content, str(path))
    if dry_run:
        return
    plain = {
        "requests": {
            key: {k: list(v) if isinstance(v, tuple) else v for k, v in request.model_dump().items()}
            for key, request in checked.requests.items()
        }
    }
    write_text(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))
