"""requests.yaml: a mapping from random request ids to what must be erased and what is drawn instead."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from components.common.errors import UserError
from components.common.inputs import shown
from components.common.sections import Section, validated
from components.common.strict_yaml import read_yaml
from components.common.words import folded

REQUESTS = Path("requests.yaml")
Channel = Literal["filter", "guidance"]
Kind = Literal["object", "style", "character", "category", "person", "explicit"]
Noun = Literal["count", "mass", "proper", "adjective"]
"""How a name stands in a sentence: "a cat", "nudity", "Snoopy", "a cubist picture"."""

RequestId = str
LONGEST_NAME, MOST_ALIASES, MOST_IMAGES = 200, 100, 200
LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
"""Those of which both the words and the names of emoji are known (wordfreq, Unicode CLDR)."""
_EVERYDAY = frozenset((
    "a", "about", "all", "an", "and", "are", "as", "at", "be", "but", "by", "can", "do", "for", "from", "had", "has",
    "have", "he", "her", "his", "i", "if", "in", "is", "it", "just", "like", "me", "more", "my", "not", "of", "on", "one",
    "or", "out", "so", "that", "the", "their", "there", "they", "this", "to", "up", "was", "we", "were", "what", "when",
    "which", "who", "will", "with", "you", "your",
))  # fmt: skip
"""The words of English that stand in nearly every text (wordfreq, Zipf frequency 6.3 and more; without "no", which is rare in prompts)."""
_OPTIONAL = ("noun", "prompts", "reference_images")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_JOINT = "joint"
"""Scope of what all requests have in common; no request may be called so."""
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
"""Letters and marks without a shape; the other such characters have a category of their own (Cf)."""


def check_id(request_id: RequestId) -> RequestId:
    """`request_id`, safe as part of a path and of a command; `UserError` if it is not."""
    if not _ID.fullmatch(request_id) or request_id == _JOINT:
        raise UserError(
            f"request id {shown(request_id)} is not allowed",
            f"use at most 63 of a-z, 0-9 and -, the first no -, and not {_JOINT!r}",
        )
    return request_id


def _name(text: str) -> str:
    """A name in lower case with single spaces; `ValueError` if nothing can be found by it."""
    text = text.strip()
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text) or _INVISIBLE.search(text):
        raise ValueError("a name holds an invisible or control character; take it out")
    if "," in folded(text):
        raise ValueError("a name holds a comma; list each name on its own")
    tidy = " ".join(text.lower().split())
    if tidy and not any(c.isalnum() for c in tidy):
        raise ValueError("a name holds no letter or digit; write it in words")
    if len(tidy) > LONGEST_NAME:
        raise ValueError(f"a name is longer than {LONGEST_NAME} characters; shorten it")
    return tidy


def _some_name(text: str) -> str:
    if not (tidy := _name(text)):
        raise ValueError("a name is empty; write it or take it out")
    return tidy


Name = Annotated[str, AfterValidator(_some_name)]
"""A name of a concept: trimmed, in lower case, with a letter or digit, without commas and invisible characters."""


class Request(Section):
    """One deletion request; it holds no personal data."""

    target: Name
    """The concept that must no longer be drawn."""
    kind: Kind
    """What sort of thing the target is."""
    aliases: tuple[Name, ...] = Field(default=(), max_length=MOST_ALIASES)
    """Other names of the target; they are erased too."""
    anchor: Annotated[str, AfterValidator(_name)] = ""
    """What is drawn instead; empty for nothing in particular."""
    neighbours: tuple[Name, ...] = ()
    """Concepts close to the target that must survive."""
    languages: tuple[str, ...] = Field(default=("en",), min_length=1, max_length=14)
    """Languages of the prompts (ISO 639-1): their real words are no slips of a name, and their names of the target's emoji count."""
    channels: tuple[Channel, ...] = ("filter", "guidance")
    """Which erasers act: the text filter, the U-Net adapter, or both."""
    noun: Noun | None = None
    """How the target and those of its aliases that an open world does not know stand in a sentence; default by their kind."""
    prompts: Path | None = None
    """Your own prompts about the target: a CSV file with the columns prompt, counterpart and split."""
    reference_images: tuple[Path, ...] = Field(default=(), max_length=MOST_IMAGES)
    """Images of the target, for judges that compare with them."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A request that names no `noun`, `prompts` or `reference_images` is written without these keys."""
        return {key: value for key, value in plain(self).items() if key not in _OPTIONAL or value}

    @model_validator(mode="after")
    def _makes_sense(self) -> Request:
        names: dict[str, str] = {}
        for name in self.names:
            if (first := names.setdefault(folded(name), name)) is not name:
                raise ValueError(f"{first!r} and {name!r} are one name; take one of them out")
        if folded(self.anchor) in names:
            raise ValueError(f"the anchor {self.anchor!r} is the target itself; name something else to draw instead")
        if both := names.keys() & set(map(folded, self.neighbours)):
            raise ValueError(f"{names[min(both)]!r} is target and neighbour at once; take it out of neighbours")
        if unknown := [language for language in self.languages if language not in LANGUAGES]:
            raise ValueError(f"the language {unknown[0]!r} is unknown; use some of {', '.join(LANGUAGES)}")
        if not self.channels:
            raise ValueError("channels is empty; use filter, guidance or both")
        if len(set(self.channels)) < len(self.channels):
            raise ValueError("channels names one twice; use filter, guidance or both")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Target and aliases."""
        return (self.target, *self.aliases)


def check_names(request: Request) -> None:
    """`UserError` for a name of everyday words alone, which would be found in nearly every prompt.

    Asked where a request comes in, and before a run; what was accepted once can always be read.
    """
    for name in request.names:
        words = re.findall(r"[^\W_]+", folded(name))
        if words and _EVERYDAY.issuperset(words):
            raise UserError(
                f"the name {name!r} stands in nearly every prompt", "add a word that tells the target apart"
            )


class Requests(Section):
    """The whole file."""

    requests: dict[RequestId, Request] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fit_together(self) -> Requests:
        owner: dict[str, RequestId] = {}
        for request_id, request in self.requests.items():
            for name in request.names:
                if owner.setdefault(folded(name), request_id) != request_id:
                    raise ValueError(
                        f"{name!r} is a name of both {owner[folded(name)]} and {request_id}; leave it to one of them"
                    )
        for request_id, request in self.requests.items():
            if erased_by := owner.get(folded(request.anchor)):
                raise ValueError(
                    f"the anchor {request.anchor!r} of {request_id} is erased by {erased_by}; "
                    "draw something that no request erases"
                )
        return self


def load_requests(path: Path = REQUESTS) -> dict[RequestId, Request]:
    """The requests by id, in the file's order, none if it is empty; `UserError` for anything that does not make sense."""
    return checked_requests(read_yaml(path), path)


def checked_requests(content: object, path: Path = REQUESTS) -> dict[RequestId, Request]:
    """The requests in the content of a requests.yaml; `path` is for the message of a `UserError`."""
    requests = content.get("requests") if isinstance(content, dict) else None
    for request_id in requests if isinstance(requests, dict) else ():
        try:
            check_id(request_id)
        except UserError as error:
            raise UserError(f"{path}: {error.fact}", error.remedy) from error
    return validated({} if content is None else content, Requests, str(path)).requests
