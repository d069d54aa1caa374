"""How a name stands in an English sentence: with which article, in which of a sentence's forms, and how it is inflected.

A sentence is a template with slots: `{c}`, `{a}`, `{b}` and `{s}` are filled with a name and its article, the capitals `{C}`,
`{A}` and `{B}` without. "a {s} painting" takes the name alone, and its article is mended.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from components.common.errors import UserError
from components.requests.requests import Kind, Noun

if TYPE_CHECKING:
    from inflect import engine

Standing = Literal["count", "mass", "proper", "adjective", "plural"]
"""How a name stands; a plural takes a sentence's forms for count nouns, and no article."""
Form = str | Mapping[str, str]
"""A sentence, or its forms by noun; `other` is for every noun that is not listed."""
BY_KIND: dict[Kind, Noun] = {
    "object": "count", "category": "count", "style": "proper", "person": "proper", "character": "proper", "explicit": "mass",
}  # fmt: skip
"""How a name stands of which nothing else is known."""
_ARTICLE = re.compile(r"^(?:an?|one) ")
_SLOT = re.compile(r"(\ban? )?\{(\w)\}")
_NO_PLURAL = re.compile(r"(?:ss|us|is|as|lens|news)$")
_PLURAL = re.compile(r"(?:men|children|people|feet|teeth|geese|mice|oxen)$")


class Phrase(NamedTuple):
    """A name as it stands in a sentence."""

    bare: str
    """Without an article."""
    full: str
    """With its article, and with what an adjective describes."""
    noun: Standing


def phrase(name: str, noun: Standing, head: str = "") -> Phrase:
    """A name with what it needs to stand alone; `head` is what an adjective describes, such as person."""
    if noun == "adjective":
        return Phrase(name, with_article(f"{name} {head}") if head else name, noun)
    if noun != "count":
        return Phrase(name, name, noun)
    bare = _ARTICLE.sub("", name, count=1) if _ARTICLE.match(name) else name
    return Phrase(bare, name if bare != name else with_article(name), noun)


def standing(name: str, kind: Kind, known: Mapping[Noun, Collection[str]], declared: Noun | None = None) -> Standing:
    """How a name of a request of `kind` stands: by its own article, what is known of it or of its main word, or its kind.

    `declared` is what the request says. Names of people and characters are their own: "mickey mouse" is no mouse.
    """
    if _ARTICLE.match(name):
        return "count"
    if name.startswith("the "):
        return "proper"
    if kind == "style" and name.endswith(" style"):
        return "adjective"
    listed: dict[str, Standing] = {word: noun for noun, words in known.items() for word in words}
    head = name.partition(" of ")[0].rpartition(" ")[2]
    own = kind in ("person", "character") and head != name
    found: Standing = listed.get(name) or declared or (None if own else listed.get(head)) or BY_KIND[kind]
    return "plural" if found == "count" and is_plural(name) else found


def is_plural(name: str) -> bool:
    """Whether the last word of a name is in the plural, as far as its spelling shows."""
    if _PLURAL.search(name):
        return True
    return (name.endswith("s") and not _NO_PLURAL.search(name) and plural(name[:-1]) == name) or _is_es(name)


def _is_es(name: str) -> bool:
    stems = (name[:-2], f"{name[:-3]}y", f"{name[:-3]}f", f"{name[:-3]}fe")
    return name.endswith("es") and any(len(stem) > 2 and plural(stem) == name for stem in stems)


def choose(form: Form, noun: Standing) -> str:
    """The sentence of a form for a noun; `KeyError` where it has none."""
    if isinstance(form, str):
        return form
    as_count = "count" if noun == "plural" else noun
    return form[as_count] if as_count in form else form["other"]


def fill(sentence: str, slots: Mapping[str, Phrase]) -> str:
    """A sentence with its slots filled; `slots` are by lower-case letter."""

    def put(found: re.Match[str]) -> str:
        before, slot = found.groups()
        item = slots[slot.lower()]
        if before:
            return item.bare if item.noun == "plural" else with_article(item.bare)
        return item.bare if slot.isupper() else item.full

    return _SLOT.sub(put, sentence).replace(" style style", " style")


def joined(first: Phrase, second: Phrase, connector: str) -> Phrase:
    """Two things as one: "a dog next to a cat"."""
    text = fill(connector, {"a": first, "b": second})
    return Phrase(text, text, "count")


@lru_cache(maxsize=65536)
def with_article(noun: str) -> str:
    """'cat' to 'a cat', 'hour' to 'an hour', 'unicorn' to 'a unicorn': by how the word sounds."""
    return str(_english().a(noun))


@lru_cache(maxsize=65536)
def plural(noun: str) -> str:
    """'kitty' to 'kitties', 'wolf' to 'wolves'."""
    return str(_english().plural_noun(noun))


def name_forms(name: str) -> tuple[str, ...]:
    """Other spellings of a name that mean the same: plural, possessive, joined and hyphenated; the name itself is not among them."""
    bare = _ARTICLE.sub("", name, count=1)
    forms = [bare, plural(bare), f"{bare}'s", f"{bare}'" if bare.endswith("s") else ""]
    words = bare.replace("-", " ").split()
    if len(words) > 1:
        forms += ["".join(words), "-".join(words), " ".join(words), f"{''.join(words)}'s", plural("-".join(words))]
    return tuple(form for form in dict.fromkeys(forms) if form and form != name)


@lru_cache(maxsize=1)
def _english() -> engine:
    try:
        from inflect import engine  # noqa: PLC0415 - slow to import, and closed worlds need none
    except ImportError as error:
        raise UserError(
            "an open world needs the package inflect, which is not installed", "pip install inflect"
        ) from error
    return engine()
