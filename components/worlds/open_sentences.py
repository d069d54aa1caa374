"""Names of an open world and of its requests, as they stand in sentences."""

from __future__ import annotations

from typing import NamedTuple

from components.requests.requests import Kind, Noun, Request
from components.worlds.grammar import Form, Phrase, choose, fill, phrase, standing
from components.worlds.open_schema import OpenFile


class Thing(NamedTuple):
    """Something to retain."""

    name: str
    kind: Kind


class Speech:
    """Puts names into the sentences of one world."""

    def __init__(self, file: OpenFile) -> None:
        self._file, self.roles = file, frozenset(file.roles)
        self._style_noun: dict[str, Noun] = {name: noun for noun, names in file.styles.items() for name in names}

    def phrase(self, name: str, request: Request) -> Phrase:
        """A name that a request brings (of the target, the anchor, a neighbour) where a sentence needs a thing."""
        declared = request.noun if name in request.names else None
        noun = standing(name, request.kind, self._file.nouns, declared)
        if request.kind != "style" and name in self._style_noun:
            noun = self._style_noun[name]
        return phrase(name, noun, self._file.heads.get(request.kind, "thing"))

    def style_phrase(self, name: str, request: Request | None = None) -> Phrase:
        """A name where a sentence needs a style; an adjective stands alone there."""
        if name in self._style_noun:
            return phrase(name, self._style_noun[name])
        declared = request.noun if request is not None and name in request.names else None
        return phrase(name, standing(name, "style", self._file.nouns, declared))

    def thing(self, thing: Thing) -> Phrase:
        """Something to retain."""
        own = thing.kind == "character" or (thing.kind == "person" and thing.name not in self.roles)
        return phrase(thing.name, "proper" if own else standing(thing.name, "object", self._file.nouns))

    def seen(self, item: Phrase, kind: Kind) -> Phrase:
        """A mass noun that cannot be drawn alone, as part of a scene."""
        before = self._file.scenes.get(kind, "")
        return item._replace(full=f"{before} {item.full}") if before and item.noun == "mass" else item

    def said(self, form: Form, name: str, request: Request) -> str:
        """A sentence about a name that the request brings; empty without a name."""
        if not name:
            return ""
        item = self.phrase(name, request)
        return fill(choose(form, item.noun), {"c": item})

    def styled(self, form: Form, name: str, style: str, request: Request) -> str:
        """A sentence that shows such a name in a style to retain; empty without a name."""
        if not name:
            return ""
        item, drawn = self.seen(self.phrase(name, request), request.kind), self.style_phrase(style)
        return fill(choose(form, drawn.noun), {"c": item, "s": drawn})
