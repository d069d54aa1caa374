"""An index of the words of many prompts, which finds those that contain a name without reading them all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
"""A run of letters, one digit, or one other sign: the units that CLIP's tokenizer never joins."""


def pieces(text: str) -> list[str]:
    """The words, digits and signs of `text`, whatever its case, spacing and Unicode form."""
    return _PIECE.findall(unicodedata.normalize("NFC", text.lower()))


class WordIndex:
    """Where each word occurs in some prompts."""

    def __init__(self, texts: Sequence[str]) -> None:
        known: dict[str, int] = {}
        listed = [[known.setdefault(piece, len(known)) for piece in pieces(text)] for text in texts]
        counts = np.array([len(each) for each in listed], dtype=np.int64)
        self.known, self.prompts = known, len(listed)
        self.words = np.array([word for each in listed for word in each], dtype=np.int64)  # (W,) of all prompts in turn
        self.prompt = np.repeat(np.arange(len(listed)), counts)  # (W,)
        self.places = self.words.argsort(kind="stable")  # (W,) by word
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(self.words, minlength=len(known)))])

    def find(self, forms: Iterable[str]) -> np.ndarray:
        """(P,) bool: which prompts contain one of `forms` as whole words."""
        found = np.zeros(self.prompts, bool)
        for form in forms:
            words = [self.known.get(piece) for piece in pieces(form)]
            if words and None not in words:
                found[self._occurrences(np.array(words))] = True
        return found

    def _occurrences(self, words: np.ndarray) -> np.ndarray:
        """The prompts of all places at which these words follow each other, searched from the rarest of them."""
        rarest = int((self.starts[words + 1] - self.starts[words]).argmin())
        first = self.places[self.starts[words[rarest]] : self.starts[words[rarest] + 1]] - rarest
        first = first[(first >= 0) & (first + len(words) <= len(self.words))]
        for offset, word in enumerate(words):
            first = first[self.words[first + offset] == word]
        return self.prompt[first[self.prompt[first] == self.prompt[first + len(words) - 1]]]
