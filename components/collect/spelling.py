"""How people misspell a name: every form that is one slip of the pen, or one habit of evasion, away from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from components.common.lexicon import is_word

LONG = 4
"""Letters from which on a word may lose one or swap two: shorter ones have too many other words beside them."""


def slips(word: str) -> Iterator[str]:
    """`word` with one letter doubled and, if it is long enough, one dropped, or two neighbours swapped."""
    for i in range(len(word)):
        yield word[: i + 1] + word[i:]
    if len(word) < LONG:
        return
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
    for i in range(len(word) - 1):
        yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def misspellings(names: Sequence[str], known: Collection[str], languages: Sequence[str] = ("en",)) -> list[str]:
    """Forms of `names` with one word misspelt or spaced out, or all of it spaced out.

    None consists of `known` words and real ones of `languages`: "her" is no slip of "hero".
    """
    found: dict[str, None] = {}
    for name in names:
        words = name.split(" ")
        for i, word in enumerate(words):
            for form in (*slips(word), " ".join(word)) if len(word) > 2 else ():
                found.setdefault(" ".join([*words[:i], form, *words[i + 1 :]]))
        if len(name) > 2:
            found.setdefault(" ".join(name.replace(" ", "")))
    return [form for form in found if not all(_is_known(word, known, languages) for word in form.split(" "))]


def _is_known(word: str, known: Collection[str], languages: Sequence[str]) -> bool:
    return word in known or (len(word) > 1 and is_word(word, languages))
