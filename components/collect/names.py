"""What a target is called in text: its names and their plurals, in the request's languages, its emoji, and what must not be taken for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import emoji
import inflect
from rapidfuzz.distance import OSA

from components.collect.compounds import COMPOUNDS
from components.common.errors import UserError
from components.common.lexicon import is_word
from components.common.words import folded

_ENGLISH = inflect.engine()


def plurals(name: str) -> tuple[str, ...]:
    """`name` and its English plurals, the irregular one first: "wolf", "wolves", "wolfs"."""
    regular = name if name.endswith("s") else f"{name}s"
    return tuple(dict.fromkeys([name, str(_ENGLISH.plural_noun(name) or name), regular]))  # type: ignore[arg-type] - takes any text


def target_forms(names: Sequence[str], languages: Sequence[str]) -> tuple[str, ...]:
    """All names with their plurals, what the emoji of a name is called in each of `languages` (Unicode's CLDR), and the emoji itself.

    A translation that is a real English word is left out, as "chat" of a cat. `UserError` for a language that has none.
    """
    found = [form for name in names for form in plurals(name)]
    for name in names:
        for sign, called in _signs(name):
            found.append(sign)
            abroad = [_called(called, language) for language in languages if language != "en"]
            found += [text for text in abroad if text and not is_word(text)]
    return tuple(dict.fromkeys(found))


def shields(names: Sequence[str], others: Iterable[str]) -> tuple[str, ...]:
    """Those of `others` and of the known compounds, with their plurals, that hold one of `names` among further words."""
    own = {form for name in names for form in plurals(name)}
    found = []
    for other in dict.fromkeys([*others, *COMPOUNDS]):
        pieces = other.split(" ")
        parts = {" ".join(pieces[i:j]) for i in range(len(pieces)) for j in range(i + 1, len(pieces) + 1)} - {other}
        if parts & own and other not in own:
            found += plurals(other)
    return tuple(dict.fromkeys(found))


def words_beside(forms: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Those of the `known` words that no dictionary lists and that are one slip away from one of `forms`, and none of them."""
    own = {piece for form in forms for piece in form.split(" ")}
    rare = [word for word in known if word.isalpha() and not is_word(word)]
    near = [word for word in rare if any(OSA.distance(word, piece, score_cutoff=1) <= 1 for piece in own)]
    return tuple(sorted(set(near) - own))


@lru_cache(maxsize=1)
def _emoji() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Emoji by what they are called in English, "cat face" also under "cat"."""
    out: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for sign, called in emoji.EMOJI_DATA.items():
        if name := _called(called, "en"):
            out.setdefault(name.removesuffix(" face"), []).append((sign, called))
    return out


def _signs(name: str) -> list[tuple[str, dict[str, Any]]]:
    return _emoji().get(folded(name), [])


def _called(called: dict[str, Any], language: str) -> str:
    """What an emoji is called in a language, its words apart."""
    if language not in emoji.LANGUAGES:
        raise UserError(
            f"emoji have no names in the language {language!r}", f"use some of: {', '.join(emoji.LANGUAGES)}"
        )
    emoji.config.load_language(language)
    return folded(re.sub(r"\(.*?\)", "", called.get(language, "").strip(":").replace("_", " ")))
