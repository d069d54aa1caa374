"""A world that fills templates: concepts, styles and sentences from two YAML files, `world.yaml` and `templates.yaml`.

Every template belongs to one split, and every prompt says which split it came from, so that prompts for training,
selection, calibration and evaluation cannot be mixed up unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from components.common.errors import UserError
from components.common.sections import read_yaml, validated
from components.common.splits import SPLITS, Split
from components.common.words import mend_articles, mentions, with_article
from components.requests.requests import Kind, Request
from components.worlds.base import Counts, Prompt
from components.worlds.english import word_lists
from components.worlds.schema import Concept, Style, WorldFile

WORLD, TEMPLATES = "world.yaml", "templates.yaml"


class Shown(NamedTuple):
    """What one caption of the corpus is about."""

    concepts: tuple[str, ...]
    style: str


def read_world(folder: Path) -> TemplatedWorld:
    """The world in a folder; `UserError` for a file that is missing or does not make sense."""
    return TemplatedWorld(folder.resolve().name, validated(read_files(folder), WorldFile, str(folder / WORLD)))


def read_files(folder: Path) -> Any:  # noqa: ANN401 - YAML
    """The content of a world's files, as one; `UserError` for one that is missing."""
    path = folder / WORLD
    if not path.is_file():
        raise UserError(f"{folder} is no world: it has no {WORLD}", "mend `world` in params.yaml")
    content = read_yaml(path)
    if isinstance(content, dict) and "templates" not in content:
        if not (folder / TEMPLATES).is_file():
            raise UserError(f"world {folder} has no {TEMPLATES}", f"add it, or a key `templates` in {WORLD}")
        content = content | {"templates": read_yaml(folder / TEMPLATES)}
    return content


class TemplatedWorld:
    """A world whose prompts are templates that are filled at random."""

    def __init__(self, name: str, file: WorldFile) -> None:
        self.name, self.file = name, file
        self.concepts, self.styles = file.concepts, file.styles
        self.concept_names, self.style_names = tuple(file.concepts), tuple(file.styles)
        self.default_style = file.default_style
        self._fillers = tuple(file.fillers.split())

    # what there is

    def concept(self, name: str) -> Concept:
        """The concept of that name; `UserError` if there is none."""
        if name not in self.concepts:
            raise UserError(
                f"concept {name!r} is not in the world {self.name}", f"use one of: {', '.join(self.concepts)}"
            )
        return self.concepts[name]

    def style(self, name: str) -> Style:
        """The style of that name; `UserError` if there is none."""
        if name not in self.styles:
            raise UserError(f"style {name!r} is not in the world {self.name}", f"use one of: {', '.join(self.styles)}")
        return self.styles[name]

    def members(self, category: str) -> tuple[str, ...]:
        """Names of the concepts of a category; `UserError` if it has none."""
        names = tuple(name for name, concept in self.concepts.items() if concept.category == category)
        if not names or not category:
            listed = sorted({concept.category for concept in self.concepts.values()} - {""})
            raise UserError(
                f"category {category!r} is not in the world {self.name}", f"use one of: {', '.join(listed)}"
            )
        return names

    def labels(self, request: Request) -> tuple[str, ...]:
        """The concepts or styles that the request erases; `UserError` for a name that the world does not have."""
        if request.kind == "category":
            return self.members(request.target)
        self._lookup(request.target, request)
        return (request.target,)

    def _lookup(self, name: str, request: Request) -> Concept | Style:
        return self.style(name) if request.kind == "style" else self.concept(name)

    def check(self, requests: Mapping[str, Request]) -> None:
        """Refuses requests that name what the world does not have, that overlap or leave too little of it, or whose anchor is erased."""
        owner: dict[str, str] = {}
        for request_id, request in requests.items():
            for label in self.labels(request):
                if owner.setdefault(label, request_id) != request_id:
                    raise UserError(
                        f"request {request_id}: {label!r} is erased by {owner[label]} already",
                        "withdraw one of the two",
                    )
        for request_id, request in requests.items():
            if request.anchor in owner:
                raise UserError(
                    f"request {request_id}: the anchor {request.anchor!r} is erased by {owner[request.anchor]}",
                    "draw something that no request erases",
                )
            for role, name in (("anchor", request.anchor), *(("neighbour", n) for n in request.neighbours)):
                try:
                    _ = self._lookup(name, request) if name else None
                except UserError as error:
                    raise UserError(
                        f"request {request_id}: the {role} {name!r} is not in the world {self.name}", error.remedy
                    ) from error
            for key in ("noun", "prompts", "reference_images"):
                if getattr(request, key):
                    raise UserError(
                        f"request {request_id}: the world {self.name} has sentences and images of its own and takes no {key}",
                        f"take {key} out, or set `world: open`",
                    )
            for kind, listed, least in (("concepts", self.concept_names, 2), ("styles", self.style_names, 1)):
                if len(set(listed) - self._avoided(request)) < least:
                    raise UserError(
                        f"request {request_id} leaves fewer than {least} {kind} of the world {self.name} alone",
                        f"name fewer neighbours, or add {kind} to the world",
                    )

    def _avoided(self, request: Request) -> set[str]:
        """What prompts to retain do not show."""
        return {*self.labels(request), request.anchor, *request.neighbours}

    def names(self, request: Request, split: Split) -> tuple[str, ...]:
        """Names of the target that prompts of `split` use: the last alias in the evaluation alone."""
        if request.kind == "category":
            return tuple(n for c in self.labels(request) for n in of_split((c, *self.concept(c).aliases), split))
        return of_split(request.names, split)

    def forms(self, request: Request) -> tuple[str, ...]:  # noqa: ARG002 - a closed world lists what things are called
        """No other spellings: the names that the world lists are all that there are."""
        return ()

    def candidates(self, kind: Kind) -> tuple[str, ...]:
        """Styles for a style, otherwise concepts."""
        return self.style_names if kind == "style" else self.concept_names

    # how it is phrased

    def caption(
        self,
        shown: Shown,
        rng: np.random.Generator,
        *,
        split: Split = "train",
        alias: float = 0.35,
        styled: float = 0.25,
    ) -> str:
        """A true caption from the templates of `split`.

        `alias` and `styled` are the probabilities that a concept, or the style, is called by another of its names; the
        default style is mostly not named.
        """
        forms = self.file.templates[split]
        names = tuple(str(rng.choice(self.concept(c).aliases)) if rng.random() < alias else c for c in shown.concepts)
        pair = len(names) == 2
        if shown.style == self.default_style and rng.random() < 0.75:
            return fill(str(rng.choice(forms.plain_pair if pair else forms.plain)), names)
        style = str(rng.choice(self.style(shown.style).aliases)) if rng.random() < styled else shown.style
        return fill(str(rng.choice(forms.styled_pair if pair else forms.styled)), names, style)

    def frame(self, text: str, rng: np.random.Generator, *, before: int = 4, after: int = 3) -> str:
        """`text` with at most `before` fillers before it and `after` after it: the same meaning, somewhere else."""
        if not self._fillers:
            return text
        counts = rng.integers(before + 1), rng.integers(after + 1)
        ahead, behind = (" ".join(map(str, rng.choice(self._fillers, n))) for n in counts)
        return " ".join(part for part in (ahead, text, behind) if part)

    def surround(self, text: str, rng: np.random.Generator, *, before: int = 4) -> str:
        """Every other text among fillers, so that nothing is learned of where in a prompt a word stands."""
        return self.frame(text, rng, before=before) if rng.random() < 0.5 else text

    def corpus(self, count: int, *, seed: int) -> Iterator[str]:
        """`count` training captions; names and styles that are reserved for evaluation never occur in them."""
        reserved = {item.aliases[-1] for group in (self.concepts, self.styles) for item in group.values()}
        rng, listed = np.random.default_rng(seed), self._everything()
        drawn = 0
        while drawn < count:
            text = self.caption(listed[int(rng.integers(len(listed)))], rng, split="train")
            if not any(name in text for name in reserved):
                drawn += 1
                yield text

    def _everything(self) -> list[Shown]:
        """Every concept in every style, then as many pairs."""
        out = [Shown((c,), s) for c in self.concept_names for s in self.style_names]
        rng = np.random.default_rng(0)
        for i in range(len(out)):
            left, right = rng.choice(len(self.concept_names), size=2, replace=False).tolist()
            names = (self.concept_names[left], self.concept_names[right])
            out.append(Shown(names, self.style_names[i % len(self.style_names)]))
        return out

    # everyday English

    @cached_property
    def words(self) -> dict[str, tuple[str, ...]]:
        """The words that fill each slot of everyday English."""
        return word_lists(self.file.words, self.name)

    def benign(self, count: int, *, split: Split, seed: int) -> Iterator[str]:
        """`count` phrases of everyday English; a noun may name one of the world's concepts."""
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        for _ in range(count):
            form = str(rng.choice(self.file.templates[split].english))
            yield form.format_map({k: v[rng.integers(len(v))] for k, v in self.words.items()})

    def in_context(self, noun: str, count: int, *, split: Split, seed: int) -> Iterator[str]:
        """`count` phrases of everyday English about `noun`: the other slots are drawn afresh."""
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        forms = [form for form in self.file.templates[split].english if "{n}" in form]
        for _ in range(count):
            drawn = {k: v[rng.integers(len(v))] for k, v in self.words.items()}
            yield str(rng.choice(forms)).format_map(drawn | {"n": noun})

    def vocabulary(self, split: Split) -> set[str]:
        """Every word of the templates of `split`, slots aside; for training, the fillers too."""
        words = {
            word
            for form in self.file.templates[split].all()
            for word in re.findall(r"[a-z]+", re.sub(r"{\w}", " ", form))
        }
        return words | set(self._fillers) if split == "train" else words

    def known_words(self) -> frozenset[str]:
        """The word list's words, those of the templates, and those of every name of the world."""
        dictionary = (word for listed in self.words.values() for entry in listed for word in entry.split(" "))
        return frozenset(
            {w for split in SPLITS for w in self.vocabulary(split)}.union(_split(self.known_names()), dictionary)
        )

    def known_names(self) -> tuple[str, ...]:
        """Every concept and style and all their aliases."""
        return tuple(n for group in (self.concepts, self.styles) for k, v in group.items() for n in (k, *v.aliases))

    # a request's prompts

    def prompts(
        self, request: Request, split: Split, rng: np.random.Generator, counts: Counts
    ) -> Iterator[tuple[str, Prompt]]:
        """(role, prompt) of one request and split, as `World.prompts` says."""
        targets, style_kind = self.labels(request), request.kind == "style"
        owner = {n: c for c in targets for n in (c, *(self.styles if style_kind else self.concepts)[c].aliases)}
        named = self.names(request, split)
        make = self._style_prompt if style_kind else self._concept_prompt
        for name in named:
            shown = owner.get(name, targets[0])
            for _ in range(counts.per_name):
                prompt = make(shown, name, request.anchor, split, rng)
                yield ("target" if name in targets else "alias"), prompt._replace(name_used=name)
        for index, name in enumerate(named):
            twins: Iterable[str] = repeat("")
            if request.anchor:
                twins = self.in_context(request.anchor, counts.per_name, split=split, seed=index)
            texts = self.in_context(name, counts.per_name, split=split, seed=index)
            for text, twin in zip(texts, twins, strict=False):
                yield "context", Prompt(text, (owner.get(name, targets[0]),), "", twin, name)
        for role, others in (
            ("anchor", (request.anchor,) if request.anchor else ()),
            ("neighbour", request.neighbours),
        ):
            for other in others:
                for _ in range(counts.per_name):
                    yield role, make(other, other, "", split, rng)
        for _ in range(counts.mixed):
            name = str(rng.choice(named))
            mixed = self._mixed_prompt(owner.get(name, targets[0]), name, request, split, rng)
            yield "mixed", mixed._replace(name_used=name)
        forbidden = self._avoided(request)
        for _ in range(counts.retain):
            prompt = self._retain_prompt(forbidden, split, rng)
            if not mentions(prompt.text, tuple(owner)):
                yield "retain", prompt

    def _concept_prompt(self, shown: str, name: str, anchor: str, split: Split, rng: np.random.Generator) -> Prompt:
        """The concept `shown`, called `name`, in a random style."""
        forms, style = self.file.templates[split], str(rng.choice(self.style_names))
        plain = style == self.default_style
        form, noun = str(rng.choice(forms.plain if plain else forms.styled)), "" if plain else style
        return Prompt(fill(form, (name,), noun), (shown,), style, fill(form, (anchor,), noun) if anchor else "")

    def _style_prompt(self, shown: str, name: str, anchor: str, split: Split, rng: np.random.Generator) -> Prompt:
        """A random concept in the style `shown`, called `name`."""
        form = str(rng.choice(self.file.templates[split].styled))
        concept = str(rng.choice(self.concept_names))
        return Prompt(fill(form, (concept,), name), (concept,), shown, fill(form, (concept,), anchor) if anchor else "")

    def _mixed_prompt(self, shown: str, name: str, request: Request, split: Split, rng: np.random.Generator) -> Prompt:
        """The target beside something else: another concept, or for a style two concepts drawn in it."""
        forms = self.file.templates[split]
        taken = self._avoided(request)
        free = [c for c in self.concept_names if c not in taken]
        other, third = (str(n) for n in rng.choice(free, 2, replace=False))
        if request.kind == "style":
            form = str(rng.choice(forms.styled_pair))
            text, twin = (fill(form, (other, third), s) for s in (name, request.anchor or name))
            return Prompt(text, (other, third), shown, twin if request.anchor else "")
        style = str(rng.choice(self.style_names))
        plain = style == self.default_style
        form, noun = str(rng.choice(forms.plain_pair if plain else forms.styled_pair)), "" if plain else style
        first = bool(rng.integers(2))
        pair, twin = ((n, other) if first else (other, n) for n in (name, request.anchor or name))
        both = (shown, other) if first else (other, shown)
        return Prompt(fill(form, pair, noun), both, style, fill(form, twin, noun) if request.anchor else "")

    def _retain_prompt(self, forbidden: set[str], split: Split, rng: np.random.Generator) -> Prompt:
        """One or two concepts in a style, none of which the request touches; sometimes by an alias."""
        forms = self.file.templates[split]
        free = [c for c in self.concept_names if c not in forbidden]
        style = str(rng.choice([s for s in self.style_names if s not in forbidden]))
        shown = tuple(str(c) for c in rng.choice(free, 2 if rng.random() < 0.25 else 1, replace=False))
        names = tuple(str(rng.choice(self.concept(c).aliases)) if rng.random() < 0.25 else c for c in shown)
        plain, pair = style == self.default_style, len(shown) > 1
        choices = (
            (forms.plain_pair if pair else forms.plain) if plain else (forms.styled_pair if pair else forms.styled)
        )
        return Prompt(fill(str(rng.choice(choices)), names, "" if plain else style), shown, style)


def fill(template: str, concepts: Sequence[str], style: str = "") -> str:
    """One caption from a template, the names that it shows and the style's name; articles are mended."""
    words = {"s": style}
    for lower, upper, noun in zip(("c", "b") if len(concepts) == 1 else ("a", "b"), "CB", concepts, strict=False):
        words |= {lower: with_article(noun), upper: noun}
    if len(concepts) == 2:
        words |= {"A": concepts[0]}
    return mend_articles(template.format_map(words))


def of_split(names: Sequence[str], split: Split) -> tuple[str, ...]:
    """The names that prompts of a split use: all names in the evaluation; elsewhere all but the last, if there are two."""
    return tuple(names) if split == "evaluate" or len(names) == 1 else tuple(names[:-1])


def _split(names: Iterable[str]) -> set[str]:
    return {word for name in names for word in name.split(" ")}
