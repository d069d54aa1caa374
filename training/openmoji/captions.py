"""How people mistype a prompt: what the text encoder of the embedded world must bear."""

from __future__ import annotations

import numpy as np


def misspell(text: str, rng: np.random.Generator) -> str:
    """`text` with one word of three or more letters misspelt: a letter doubled, dropped or swapped, or spaced out."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 3]
    if not long:
        return text
    index = int(rng.choice(long))
    word, at = words[index], int(rng.integers(1, len(words[index]) - 1))
    words[index] = (
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        " ".join(word),
    )[int(rng.integers(4))]
    return " ".join(words)
