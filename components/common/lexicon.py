"""The real words of a language: a slip of a name that is a word of its own is no slip (wordfreq, Speer 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from wordfreq import available_languages, get_frequency_dict

from components.common.errors import UserError

WORD = 2.5
"""Zipf frequency (log10 of uses in 10⁹ words) from which on a string of letters is a word: "neo" (4.0), not "kiten" (0)."""
COMMON = 4.5
"""Zipf frequency of words that stand beside each other by chance: "he" and "at" are no "heat"."""


@lru_cache(maxsize=16)
def words(language: str, zipf: float = WORD) -> frozenset[str]:
    """The words of `language` (ISO 639-1) with at least that Zipf frequency, in lower case; `UserError` for an unknown one."""
    known = available_languages()
    if language not in known:
        raise UserError(f"there is no list of words for the language {language!r}", f"use some of: {', '.join(known)}")
    return frozenset(word for word, often in get_frequency_dict(language).items() if often >= 10 ** (zipf - 9))


def is_word(word: str, languages: Sequence[str] = ("en",)) -> bool:
    """Whether `word`, in lower case, is one in some of `languages`."""
    return any(word in words(language) for language in languages)
