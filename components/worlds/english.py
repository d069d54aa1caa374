"""Words of everyday English that fill templates."""

from __future__ import annotations

from components.common.errors import UserError
from components.worlds.schema import Words


def word_lists(given: Words | str, world: str) -> dict[str, tuple[str, ...]]:
    """The words of each slot: n and m (nouns), v (verbs), j (adjectives); `UserError` where their package is not installed."""
    if isinstance(given, Words):
        return {"n": given.nouns, "v": given.verbs, "j": given.adjectives, "m": given.nouns}
    try:
        from wonderwords import RandomWord  # noqa: PLC0415 - worlds with lists of their own do not need it
    except ImportError as error:
        raise UserError(
            f"world {world} takes its words from wonderwords, which is not installed", "pip install wonderwords"
        ) from error
    source, part = RandomWord(), {"n": "nouns", "v": "verbs", "j": "adjectives"}
    words = {
        k: tuple(sorted({w for w in source.filter(include_categories=[p]) if w.isascii()})) for k, p in part.items()
    }
    return words | {"m": words["n"]}
