"""A prompt as a person reads it: without invisible characters and accents, look-alikes as the letters that they imitate.

A reading keeps, for each of its characters, where that stands in the prompt, so that a name that is found in a reading is found
in the prompt. Confusable characters are those of Unicode's table (UTS #39), as the package confusable_homoglyphs has it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from confusable_homoglyphs.confusables import confusables_data

from components.common.errors import UserError

LONGEST = 100_000
_SPECIAL = re.compile(r"<\|[a-z_]{1,24}\|>|</?s>|</w>")
"""Text that a tokenizer takes for one of its special tokens; a person reads nothing there."""
_MARKS = (
    range(0x300, 0x370),
    range(0x1AB0, 0x1B00),
    range(0x1DC0, 0x1E00),
    range(0x20D0, 0x2100),
    range(0xFE00, 0xFE30),
)
"""Combining marks that may sit on any letter; the vowel signs of a script are letters."""
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters that are letters or signs by their category and show nothing."""
_LEET = {"0": "o", "1": "il", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s", "!": "i", "|": "l", "+": "t"}  # fmt: skip
_LATIN = re.compile(r"(?:LATIN|REGIONAL)\b.* ([A-Z])$")
"""The name of a character that is drawn after one Latin letter: squared, small capital, indicator."""
_MAYBE_LEET = re.compile(r"[^\W\d_][0-9@$!|+]+[^\W\d_]|[0-9@$|]+[^\W\d_]{2}|[^\W\d_]{2}[0-9@$|]+")


class Reading(NamedTuple):
    """One way to read a prompt."""

    text: str
    """In lower case."""
    origins: tuple[int, ...] | None
    """Where each character stands in the prompt; None where both are the same."""
    kind: str
    """plain, look-alike or digits: what was taken for letters."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where text[start:end] stands in the prompt."""
        if self.origins is None:
            return start, end
        return self.origins[start], self.origins[end - 1] + 1


@lru_cache(maxsize=65536)
def _plain(char: str) -> str:
    """`char` without marks and in lower case; empty for what nobody sees."""
    out = []
    for part in unicodedata.normalize("NFKD", char):
        category = unicodedata.category(part)
        if part.isspace():
            out.append(" ")
        elif part in _BLANK or category in ("Cc", "Cf", "Cs", "Me"):
            continue
        elif category != "Mn" or not any(ord(part) in marks for marks in _MARKS):
            out.append(part.casefold())
    return "".join(out)


@lru_cache(maxsize=65536)
def _skeleton(char: str) -> str:
    """`char` as the Latin letters that it looks like, in lower case; `_plain` where there are none."""
    if char.isascii() or not (plain := _plain(char)) or plain.isascii():
        return _plain(char)
    if named := _LATIN.search(unicodedata.name(char, "")):
        return named[1].lower()
    base = unicodedata.normalize("NFKD", char)[0]
    for form in (char, base, base.lower(), base.upper()):
        for entry in confusables_data.get(form, ()):
            if re.fullmatch("[A-Za-z]+", entry["c"]):
                return entry["c"].lower()
            if named := _LATIN.search(entry["n"]):
                return named[1].lower()
    return plain


def check_prompt(prompt: str) -> None:
    """`UserError` for a prompt that no tokenizer can read: of half a character, or longer than `LONGEST`."""
    if len(prompt) > LONGEST:
        raise UserError(f"a prompt has {len(prompt)} characters", f"use at most {LONGEST}; few text encoders read 400")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a prompt holds half a character at position {error.start}", "take it out, or send whole characters"
        ) from error


def readings(prompt: str) -> list[Reading]:
    """The ways in which a person may read `prompt`, the plainest first; any text, also one of half a character."""
    prompt = _SPECIAL.sub(lambda found: " " * len(found[0]), prompt)
    if prompt.isascii() and prompt.isprintable():
        out = [Reading(prompt.lower(), None, "plain")]
    else:
        out = [_read(prompt, _plain, "plain")]
        if not out[0].text.isascii():
            out.append(_read(prompt, _skeleton, "look-alike"))
    last = out[-1]
    if _MAYBE_LEET.search(last.text):
        for one in "il" if "1" in last.text else "i":
            table = str.maketrans({sign: one if sign == "1" else letter for sign, letter in _LEET.items()})
            out.append(Reading(last.text.translate(table), last.origins, "digits"))
    return out


def _read(prompt: str, plain: Callable[[str], str], kind: str) -> Reading:
    chars: list[str] = []
    origins: list[int] = []
    for at, char in enumerate(prompt):
        for part in plain(char):
            chars.append(part)
            origins.append(at)
    return Reading("".join(chars), tuple(origins), kind)
