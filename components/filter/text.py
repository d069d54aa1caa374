"""Finds the names of many requests in the text of a prompt, before it is cut into tokens: also hidden, split and misspelt ones.

    B prompts, L token positions, R requests

All names lie in one index (Garbe's SymSpell: a form one edit away shares a string with one letter deleted), so that a prompt
costs a few look-ups for each of its words, however many requests there are. Three rules keep everyday English out. A real word
is no slip of another: "neo", "catalog" (components/common/lexicon.py). A longer phrase that must survive shields a name inside it:
"palm tree". Fragments are one name only where they are no common words of their own: "k i t t e n", not "he at".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jellyfish import metaphone
from rapidfuzz.distance import OSA
from transformers import CLIPTokenizer

from components.common.lexicon import COMMON, WORD, words
from components.diffusion.encode import tokens_of
from components.filter.normal import Reading, readings
from components.filter.targets import TargetNames

_WORD = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\d_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)
"""A word: a run of letters, or one sign of a script without spaces."""
_GAP = 3  # signs between the fragments of a name
_LONG, _MIDDLE = 5, 4
"""Letters of names of which every one-edit form is a slip, and of which a form that sounds alike is."""
_ENDS = (
    "like",
    "ish",
    "esque",
    "core",
    "punk",
    "wave",
    "ness",
    "ized",
    "ify",
    "oid",
    "zilla",
    "y",
    "ie",
    "z",
    "o",
    "es",
    "ies",
    "ed",
    "ing",
    "let",
    "ling",
    "girl",
    "boy",
)
_STARTS = ("mini", "super", "mega", "ultra", "micro", "cyber", "robo", "hyper", "anti", "semi")
_RUN = re.compile(r"(.)\1+")


class Found(NamedTuple):
    """A name in a prompt."""

    request: str
    name: str
    """As the request lists it."""
    kind: str
    """name, emoji, apart (split or run together), long (drawn out, or with an ending), slip, sound; look-alike and digits for such signs."""
    start: int
    end: int
    """Where it stands: prompt[start:end]."""

    def reason(self, prompt: str) -> str:
        """For people."""
        return f"{prompt[self.start : self.end]!r} is the name {self.name!r}" + (
            "" if self.kind == "name" else f" ({self.kind})"
        )


class _Word(NamedTuple):
    text: str
    start: int
    end: int


class Names:
    """The index of the names of R requests."""

    def __init__(self, targets: Mapping[str, TargetNames]) -> None:
        self.requests = tuple(targets)
        self._phrases: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
        self._shields: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._solid: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._signs: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._languages = {request: item.languages for request, item in targets.items()}
        listed: set[str] = set()
        for request, item in targets.items():
            for form in item.forms:
                for reading in dict.fromkeys(each.text for each in readings(form)[:2]):
                    pieces = tuple(_WORD.findall(reading))
                    listed.update(pieces)
                    if not pieces:
                        self._signs[reading.strip()].append((request, form))
                    elif (request, form) not in self._phrases[pieces]:
                        self._phrases[pieces].append((request, form))
                        self._solid["".join(pieces)].append((request, form))
            for shield in item.shields:
                pieces = tuple(_WORD.findall(readings(shield)[0].text))
                listed.update(pieces)
                if pieces:
                    self._shields[pieces].add(request)
        self._listed = frozenset(listed)
        self._longest: dict[str, int] = defaultdict(int)
        for phrase in (*self._phrases, *self._shields):
            self._longest[phrase[0]] = max(self._longest[phrase[0]], len(phrase))
        self._width = max((len(phrase) for phrase in self._phrases), default=1)
        self._forms: dict[int, set[str]] = defaultdict(set)
        """By their number of words, the names without spaces."""
        for phrase in self._phrases:
            self._forms[len(phrase)].add("".join(phrase))
        self._begins = {solid[:n] for solid in self._solid for n in range(1, len(solid) + 1)}
        self._near: dict[str, list[str]] = defaultdict(list)
        self._sounds: dict[str, list[str]] = defaultdict(list)
        self._runs: dict[str, list[str]] = defaultdict(list)
        for solid in filter(str.isascii, self._solid):
            self._runs[_RUN.sub(r"\1", solid)].append(solid)
            if len(solid) >= _MIDDLE:
                self._sounds[metaphone(solid)].append(solid)
                for key in _deletions(solid):
                    self._near[key].append(solid)
        every = {language for item in targets.values() for language in item.languages} | {"en"}
        self._known = {language: words(language, WORD) for language in every}
        self._common = words("en", COMMON) - {letter for letter in map(chr, range(97, 123)) if letter not in "ai"}

    def find(self, prompt: str) -> list[Found]:
        """Every name in `prompt`, in its order, each place once for a request."""
        found: dict[tuple[str, int, int], Found] = {}
        for reading in readings(prompt):
            for hit in self._read(reading):
                if reading.kind == "plain" or not _covered(hit, found):
                    found.setdefault((hit.request, hit.start, hit.end), hit)
        return sorted(found.values(), key=lambda hit: (hit.start, hit.end, hit.request))

    def _read(self, reading: Reading) -> Iterator[Found]:
        seen = [_Word(m[0], m.start(), m.end()) for m in _WORD.finditer(reading.text)]
        shielded = self._shielded(seen)
        for first, last, solid, kind in self._candidates(seen, reading):
            for request, name in solid:
                if kind not in ("name", "apart") and (
                    reading.kind == "digits" or self._is_word(seen[first : last + 1], request)
                ):
                    continue
                if not any(request in who and a <= first and last <= b for a, b, who in shielded):
                    start, end = reading.span(seen[first].start, seen[last].end)
                    yield Found(request, name, kind if reading.kind == "plain" else reading.kind, start, end)
        if self._signs and reading.kind == "plain" and not reading.text.isascii():
            for sign, owners in self._signs.items():
                at = reading.text.find(sign)
                while at >= 0:
                    for request, name in owners:
                        yield Found(request, name, "emoji", *reading.span(at, at + len(sign)))
                    at = reading.text.find(sign, at + 1)

    def _shielded(self, seen: Sequence[_Word]) -> list[tuple[int, int, set[str]]]:
        """(first word, last word, requests) of every longer phrase."""
        if not self._shields:
            return []
        return [
            (at, at + n - 1, self._shields[phrase])
            for at, word in enumerate(seen)
            for n in range(2, min(self._longest.get(word.text, 0), len(seen) - at) + 1)
            if (phrase := tuple(w.text for w in seen[at : at + n])) in self._shields
        ]

    def _is_word(self, part: Sequence[_Word], request: str) -> bool:
        known = [self._known[language] for language in self._languages[request]]
        return all(any(text in listed for listed in known for text in self._numbers(w.text)) for w in part)

    def _candidates(
        self, seen: Sequence[_Word], reading: Reading
    ) -> Iterator[tuple[int, int, list[tuple[str, str]], str]]:
        """(first word, last word, [(request, name)], kind) of whatever may be a name."""
        for at, word in enumerate(seen):
            for n in range(1, min(self._longest.get(word.text, 0), len(seen) - at) + 1):
                if (phrase := tuple(w.text for w in seen[at : at + n])) in self._phrases:
                    yield at, at + n - 1, self._phrases[phrase], "name"
            yield from self._apart(seen, at, reading)
            if not self._is_known(word.text):
                yield from self._misspelt(seen, at)

    def _is_known(self, word: str) -> bool:
        return word in self._listed or any(text in self._known["en"] for text in self._numbers(word))

    def _numbers(self, word: str) -> Iterator[str]:
        """What makes `word` a real word if one knows it; a wrong plural of a name, "neones", is none because the name is one."""
        return (text for text in _numbers(word) if text == word or text not in self._solid)

    def _apart(
        self, seen: Sequence[_Word], at: int, reading: Reading
    ) -> Iterator[tuple[int, int, list[tuple[str, str]], str]]:
        """Names whose letters are spread over words, or whose words are run together."""
        solid, end, spaces, letters = "", seen[at].start, True, True
        for last in range(at, len(seen)):
            word = seen[last]
            solid += word.text
            gap = reading.text[end : word.start]
            if solid not in self._begins or len(gap) > _GAP or any(c.isdigit() for c in gap):
                return
            letters, end = letters and len(word.text) == 1, word.end
            if not letters and gap.strip() and gap != gap.strip():
                return  # the end of a phrase: "hat, red"
            spaces = spaces and not gap.strip(" ")
            if solid in self._solid and len(solid) > 2:
                part = tuple(w.text for w in seen[at : last + 1])
                if part in self._phrases or (last > at and spaces and all(text in self._common for text in part)):
                    continue
                if part[-1] == "s" and part[:-1] in self._phrases:
                    continue  # a possessive
                yield at, last, self._solid[solid], "apart"

    def _misspelt(self, seen: Sequence[_Word], at: int) -> Iterator[tuple[int, int, list[tuple[str, str]], str]]:
        """Names of which a word that no language knows is a slip: alone, or with the words beside it."""
        word = seen[at].text
        if not word.isascii():
            return
        for form, kind in {**self._begun(word, 1), **self._drawn_out(word), **self._slips(word)}.items():
            yield at, at, self._solid[form], kind
        for n in range(2, self._width + 1):
            for first in range(max(0, at - n + 1), min(at, len(seen) - n) + 1):
                solid = "".join(w.text for w in seen[first : first + n])
                alike = (
                    {**self._begun(solid, n), **self._drawn_out(solid), **self._slips(solid)} if solid.isascii() else {}
                )
                for form, kind in alike.items():
                    yield first, first + n - 1, self._solid[form], kind

    def _slips(self, word: str) -> dict[str, str]:
        """Forms of which `word` is a slip."""
        out = {}
        for key in _deletions(word):
            for form in self._near.get(key, ()):
                if is_slip(word, form):
                    out[form] = "slip"
        if len(word) >= _MIDDLE:
            for form in self._sounds.get(metaphone(word), ()):
                edits = 1 if len(form) <= _LONG else 2
                if OSA.distance(word, form, score_cutoff=edits) <= edits:
                    out.setdefault(form, "sound")
        return out

    def _begun(self, solid: str, words: int) -> dict[str, str]:
        """Names of so many words with which `solid` begins: "kittengirl"."""
        begins = (solid[:n] for n in range(_LONG, len(solid)))
        return {form: "long" for form in begins if form in self._forms[words]}

    def _drawn_out(self, word: str) -> dict[str, str]:
        """Forms that `word` repeats letters of, or gives a beginning or an end."""
        out = {form: "long" for form in self._runs.get(_RUN.sub(r"\1", word), ()) if len(form) > 2}
        for end in _ENDS:
            if word.endswith(end) and (form := word.removesuffix(end)) in self._solid and len(form) > 2:
                out[form] = "long"
        for start in _STARTS:
            if word.startswith(start) and (form := word.removeprefix(start)) in self._solid and len(form) > 2:
                out[form] = "long"
        return out


def is_slip(word: str, form: str) -> bool:
    """Whether `word` is one slip of the pen from `form`: any edit of five letters or more; of four, none that changes a letter."""
    if OSA.distance(word, form, score_cutoff=1) > 1:
        return False
    return len(form) >= _LONG or len(word) != len(form) or sorted(word) == sorted(form)


def _numbers(word: str) -> tuple[str, ...]:
    """`word`, its plural, and what it may be the plural of: "mitten" is a word because "mittens" is one."""
    alone = (word, f"{word}s")
    return (
        (*alone, word[:-1], word[:-2]) if word.endswith("es") else (*alone, word[:-1]) if word.endswith("s") else alone
    )


def _deletions(word: str) -> set[str]:
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


def _covered(hit: Found, found: Mapping[tuple[str, int, int], Found]) -> bool:
    """Whether a plainer reading has found the request there."""
    return any(r == hit.request and a <= hit.start and hit.end <= b for r, a, b in found)


def positions(
    tokenizer: CLIPTokenizer, prompts: Sequence[str], found: Sequence[Sequence[Found]], requests: Sequence[str]
) -> torch.Tensor:
    """(B, L, R) bool: the tokens of each name; nowhere for one that the tokenizer cuts off."""
    out = torch.zeros(len(prompts), tokenizer.model_max_length, len(requests), dtype=torch.bool)
    column = {request: i for i, request in enumerate(requests)}
    for row, (prompt, hits) in enumerate(zip(prompts, found, strict=True)):
        if not hits:
            continue
        spans = tokens_of(tokenizer, [prompt])[0].spans
        for hit in hits:
            for at, (start, end) in enumerate(spans):
                if hit.request in column and start < hit.end and end > hit.start:
                    out[row, at, column[hit.request]] = True
    return out
