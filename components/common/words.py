"""Words on the surface: which texts are one, whether a text contains a name, and which article a noun takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

_NO_ARTICLE = re.compile(r"(glasses|spectacles|lenses|cattle|swine|percussion)$")
_AN = r"(?:8 bit|[aeio]|u(?!n)|um|und)"


def folded(text: str) -> str:
    """What two spellings of one text have in common: compatibility form (NFKC) and case folded, single spaces."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.split())


def with_article(noun: str) -> str:
    """'cat' to 'a cat', 'apple' to 'an apple'; plural nouns stay bare."""
    if _NO_ARTICLE.search(noun):
        return noun
    return f"{'an' if re.match(_AN, noun) else 'a'} {noun}"


def mend_articles(text: str) -> str:
    """`text` with 'a' turned into 'an' in front of a vowel: 'a old photo' to 'an old photo'."""
    return re.sub(rf"\ba (?={_AN})", "an ", text)


def mentions(text: str, names: Sequence[str]) -> bool:
    """Whether `text` contains one of `names` as whole words, singular or plural, in any case."""
    return bool(names) and _named(tuple(names)).search(text) is not None


@lru_cache(maxsize=1024)
def _named(names: tuple[str, ...]) -> re.Pattern[str]:
    """What finds one of `names` as whole words."""
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})(?:s|es)?\b", re.IGNORECASE)
