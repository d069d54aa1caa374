"""A world whose requests may name anything: its files say what stands beside a target and how prompts read.

Names stand in sentences as their nouns do (components/worlds/grammar.py); sentences are by kind of request and by split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from components.common.errors import UserError
from components.common.sections import validated
from components.common.splits import SPLITS, Split
from components.common.words import folded, mentions
from components.requests.requests import Kind, Request
from components.worlds.base import Counts, Prompt
from components.worlds.english import word_lists
from components.worlds.grammar import Phrase, choose, fill, is_plural, joined, name_forms, phrase
from components.worlds.open_schema import OpenFile
from components.worlds.open_sentences import Speech, Thing
from components.worlds.supplied import check_images, read_prompts
from components.worlds.templated import WORLD, of_split, read_files

T = TypeVar("T")
_PEOPLE: tuple[Kind, ...] = ("person", "explicit", "character")
"""Kinds whose prompts to retain show people half of the time."""


def is_open(folder: Path) -> bool:
    """Whether the world in a folder is an open one."""
    content = read_files(folder)
    return isinstance(content, dict) and "vocabulary" in content


def read_open_world(folder: Path) -> OpenWorld:
    """The open world in a folder; `UserError` for a file that is missing or does not make sense."""
    return OpenWorld(folder.resolve().name, validated(read_files(folder), OpenFile, str(folder / WORLD)))


class OpenWorld:
    """An open vocabulary, and sentences that are filled at random."""

    def __init__(self, name: str, file: OpenFile) -> None:
        self.name, self.file = name, file
        self.things = (
            *(Thing(n, "object") for names in file.things.values() for n in names),
            *(Thing(n, "person") for n in (*file.roles, *file.people)),
            *(Thing(n, "character") for n in file.characters),
        )
        self.style_names = tuple(name for names in file.styles.values() for name in names)
        self._speech = Speech(file)
        self._free_of: dict[Request, tuple[tuple[Thing, ...], tuple[str, ...]]] = {}

    def check(self, requests: Mapping[str, Request]) -> None:
        """Refuses requests whose kind has no sentences, whose anchor names a target, or whose files cannot be used."""
        for request_id, request in requests.items():
            for split in SPLITS[1:]:
                if not self.file.templates[split].of(request.kind):
                    raise UserError(
                        f"request {request_id}: the world {self.name} has no templates of kind {request.kind!r} for {split}",
                        f"add {split}.{request.kind} to the world's templates, or use another kind",
                    )
            for other_id, other in requests.items():
                if request.anchor and mentions(request.anchor, other.names):
                    raise UserError(
                        f"request {request_id}: the anchor {request.anchor!r} contains a name that {other_id} erases",
                        "describe something else to draw instead",
                    )
            if request.prompts is not None:
                _ = read_prompts(request.prompts, request, {s: self.names(request, s) for s in SPLITS[1:]})
            check_images(request.reference_images)

    def labels(self, request: Request) -> tuple[str, ...]:
        """What judges call the target: its name, and for a category that the world knows also its members."""
        members = self.file.things.get(request.target, ()) if request.kind == "category" else ()
        return (request.target, *members)

    def names(self, request: Request, split: Split) -> tuple[str, ...]:
        """Target, members of a category, and aliases; the last alias in the evaluation alone."""
        return of_split(tuple(dict.fromkeys((*self.labels(request), *request.aliases))), split)

    def forms(self, request: Request) -> tuple[str, ...]:
        """Plural, possessive, joined and hyphenated spellings of every name."""
        names = self.names(request, "evaluate")
        return tuple(form for form in dict.fromkeys(f for n in names for f in name_forms(n)) if form not in names)

    def candidates(self, kind: Kind) -> tuple[str, ...]:
        """Names among which neighbours of a request of `kind` may be found."""
        if kind == "style":
            return self.style_names
        wanted = {"person": ("person",), "explicit": ("person",), "character": ("character", "person")}
        kinds = wanted.get(kind, ("object",))
        return tuple(thing.name for thing in self.things if thing.kind in kinds)

    def known_names(self) -> tuple[str, ...]:
        """Every thing and style to retain."""
        return (*(thing.name for thing in self.things), *self.style_names)

    def known_words(self) -> frozenset[str]:
        """The word lists' words, those of the templates, and those of every name of the world."""
        texts = [*self.known_names(), *self.file.before, *self.file.after]
        texts += [word for listed in self.words.values() for word in listed]
        texts += [form for split in SPLITS for form in self.file.templates[split].all()]
        return frozenset(word for text in texts for word in text.replace("{", " {").split() if word.isalpha())

    @cached_property
    def words(self) -> dict[str, tuple[str, ...]]:
        """The words that fill each slot of everyday English."""
        return word_lists(self.file.words, self.name)

    def surround(self, text: str, rng: np.random.Generator, *, before: int = 4) -> str:
        """Every other text among phrases, up to half of `before` ahead of it and up to two behind."""
        if rng.random() >= 0.5:
            return text
        ahead = _some(self.file.before, int(rng.integers(before // 2 + 1)), rng)
        behind = _some(self.file.after, int(rng.integers(3)), rng)
        return ", ".join([*ahead, text, *(phrase for phrase in behind if phrase not in ahead)])

    def corpus(self, count: int, *, seed: int) -> Iterator[str]:
        """`count` captions of things to retain: alone, in pairs, in styles, and in everyday English."""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield self._retain(self.things, self.style_names, "train", rng).text

    def benign(self, count: int, *, split: Split, seed: int) -> Iterator[str]:
        """`count` phrases: half everyday English of any words, the others about things to retain."""
        rng, forms = np.random.default_rng([seed, SPLITS.index(split)]), self.file.templates[split]
        for _ in range(count):
            drawn = {k: v[rng.integers(len(v))] for k, v in self.words.items()}
            kind = rng.random()
            if kind < 0.5:
                slots = {k: phrase(v, "plural" if k in "nm" and is_plural(v) else "proper") for k, v in drawn.items()}
                yield fill(str(rng.choice(forms.english)), slots)
            elif kind < 0.75:
                something = phrase(f"the {drawn['j']} {drawn['n']}", "proper")
                yield fill(choose(_pick(forms.context, rng), "proper"), {"c": something})
            else:
                yield self._retain(self.things, self.style_names, split, rng).text

    def prompts(
        self, request: Request, split: Split, rng: np.random.Generator, counts: Counts
    ) -> Iterator[tuple[str, Prompt]]:
        """(role, prompt) of one request and split, as `World.prompts` says."""
        named = self.names(request, split)
        about = self._in_style if request.kind == "style" else self._of_thing
        yield from self._targets(request, split, rng, counts.per_name)
        for role, others in (("anchor", (request.anchor,)), ("neighbour", request.neighbours)):
            for other in filter(None, others):
                for _ in range(counts.per_name):
                    yield role, about(request, other, other, "", split, rng)
        free, styles = self._free(request)
        for _ in range(counts.mixed):
            name = str(rng.choice(named))
            mixed = self._mixed(request, name, self._label(name, request), free, split, rng)
            yield "mixed", mixed._replace(name_used=name)
        people = tuple(thing for thing in free if thing.kind == "person")
        for _ in range(counts.retain):
            near = bool(people) and request.kind in _PEOPLE and rng.random() < 0.5
            prompt = self._retain(people if near else free, styles, split, rng)
            if not mentions(prompt.text, self.names(request, "evaluate")):
                yield "retain", prompt

    def _targets(
        self, request: Request, split: Split, rng: np.random.Generator, count: int
    ) -> Iterator[tuple[str, Prompt]]:
        """Prompts about the target alone: `count` for each name, the request's own, and as many in everyday English."""
        targets, named = self.labels(request), self.names(request, split)
        about = self._in_style if request.kind == "style" else self._of_thing
        for name in named:
            for _ in range(count):
                prompt = about(request, name, self._label(name, request), request.anchor, split, rng)
                yield ("target" if name in targets else "alias"), prompt._replace(name_used=name)
        own = () if request.prompts is None else read_prompts(request.prompts, request, {split: named})
        for row in own:
            yield "target", Prompt(row.prompt, targets[:1], "", row.counterpart, row.name)
        for name in named:
            for _ in range(count):
                form = _pick(self.file.templates[split].context, rng)
                text, twin = (self._speech.said(form, n, request) for n in (name, request.anchor))
                yield "context", Prompt(text, (self._label(name, request),), "", twin, name)

    def _label(self, name: str, request: Request) -> str:
        """What judges call what a name of the target means."""
        targets = self.labels(request)
        return name if name in targets else targets[0]

    def _free(self, request: Request) -> tuple[tuple[Thing, ...], tuple[str, ...]]:
        """Things and styles that a request does not touch."""
        if request in self._free_of:
            return self._free_of[request]
        names = self.names(request, "evaluate")
        taken = {
            folded(self._speech.phrase(n, request).bare) for n in (*names, request.anchor, *request.neighbours) if n
        }

        def untouched(name: str) -> bool:
            return folded(name) not in taken and not mentions(name, names)

        self._free_of[request] = (
            tuple(t for t in self.things if untouched(t.name)), tuple(s for s in self.style_names if untouched(s))
        )  # fmt: skip
        return self._free_of[request]

    def _of_thing(
        self, request: Request, name: str, label: str, anchor: str, split: Split, rng: np.random.Generator
    ) -> Prompt:
        """A prompt about `name` alone: two in three in sentences of its kind, the others in a style."""
        forms = self.file.templates[split]
        if rng.random() < 2 / 3:
            form = _pick(forms.of(request.kind), rng)
            return Prompt(
                self._speech.said(form, name, request), (label,), "", self._speech.said(form, anchor, request)
            )
        form, style = _pick(forms.styled, rng), str(rng.choice(self._free(request)[1]))
        text, twin = (self._speech.styled(form, n, style, request) for n in (name, anchor))
        return Prompt(text, (label,), style, twin)

    def _in_style(
        self, request: Request, name: str, label: str, anchor: str, split: Split, rng: np.random.Generator
    ) -> Prompt:
        """Something to retain in the style `name`."""
        shown = _pick(
            tuple(t for t in self._free(request)[0] if t.kind == "object" or t.name in self._speech.roles), rng
        )
        return self._drawn(request, self._speech.thing(shown), (shown.name,), name, label, anchor, split, rng)

    def _drawn(
        self, request: Request, item: Phrase, concepts: tuple[str, ...], name: str, label: str, anchor: str, split: Split,
        rng: np.random.Generator,
    ) -> Prompt:  # fmt: skip
        form = _pick(self.file.templates[split].styled, rng)
        text, twin = (
            fill(choose(form, style.noun), {"c": item, "s": style}) if n else ""
            for n, style in ((n, self._speech.style_phrase(n or name, request)) for n in (name, anchor))
        )
        return Prompt(text, concepts, label, twin)

    def _mixed(
        self, request: Request, name: str, label: str, free: tuple[Thing, ...], split: Split, rng: np.random.Generator
    ) -> Prompt:
        """The target beside something to retain, or for a style two such things drawn in it."""
        connector = str(rng.choice(self.file.templates[split].pairs))
        small = self._movable(free)
        one, two = (small[int(i)] for i in rng.choice(len(small), 2, replace=False))
        if request.kind == "style":
            pair = joined(self._speech.thing(one), self._speech.thing(two), connector)
            return self._drawn(request, pair, (one.name, two.name), name, label, request.anchor, split, rng)
        first, other = bool(rng.integers(2)), self._speech.thing(one)

        def beside(name: str) -> str:
            item = self._speech.seen(self._speech.phrase(name, request), request.kind) if name else None
            return "" if item is None else joined(*((item, other) if first else (other, item)), connector).full

        return Prompt(beside(name), (label, one.name) if first else (one.name, label), "", beside(request.anchor))

    def _movable(self, things: tuple[Thing, ...]) -> tuple[Thing, ...]:
        """Things that can stand beside another: no places, where there are two others."""
        others = tuple(thing for thing in things if thing.name not in self.file.things.get("place", ()))
        return others if len(others) > 1 else things

    def _retain(
        self, things: tuple[Thing, ...], styles: tuple[str, ...], split: Split, rng: np.random.Generator
    ) -> Prompt:
        """One or two things to retain, half of the time in a style."""
        forms = self.file.templates[split]
        pair = rng.random() < 0.25
        things = self._movable(things) if pair else things
        shown: list[Thing] = [things[int(i)] for i in rng.choice(len(things), 1 + pair, replace=False)]
        item, names = self._speech.thing(shown[0]), tuple(thing.name for thing in shown)
        if len(shown) == 2:
            item = joined(item, self._speech.thing(shown[1]), str(rng.choice(forms.pairs)))
        if styles and rng.random() < 0.5:
            style = str(rng.choice(styles))
            drawn = self._speech.style_phrase(style)
            return Prompt(fill(choose(_pick(forms.styled, rng), drawn.noun), {"c": item, "s": drawn}), names, style)
        if len(shown) == 2:
            return Prompt(item.full, names, "")
        kind_forms = forms.of(shown[0].kind) or forms.object
        return Prompt(fill(choose(_pick(kind_forms, rng), item.noun), {"c": item}), names, "")


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def _some(phrases: tuple[str, ...], count: int, rng: np.random.Generator) -> list[str]:
    return [phrases[i] for i in rng.choice(len(phrases), min(count, len(phrases)), replace=False)]
