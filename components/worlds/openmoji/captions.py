"""Says what a scene shows: caption templates in four disjoint splits, and ordinary English beside them.

No function returns a template without a split, and every prompt carries the split it came from, so that prompts for
training, selection, calibration and evaluation cannot be mixed up unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from components.common.words import mend_articles, with_article
from components.worlds.openmoji import world
from components.worlds.openmoji.scenes import Scene

Split = Literal["train", "select", "calibrate", "evaluate"]
SPLITS: tuple[Split, ...] = ("train", "select", "calibrate", "evaluate")


class Templates(NamedTuple):
    """The caption forms of one split; `{c}`/`{a}`/`{b}` are concepts with their article, `{C}` one without, `{s}` a style."""

    styled: tuple[str, ...]
    plain: tuple[str, ...]
    """No style named: the drawing is a sticker."""
    styled_pair: tuple[str, ...]
    plain_pair: tuple[str, ...]


_TEMPLATES: dict[Split, Templates] = {
    "train": Templates(
        ("{c} in {s} style", "{s} {C}", "{C}, {s}", "a {s} drawing of {c}", "a picture of {c} in {s} style",
         "{c} drawn in {s} style", "{c} as {s}"),
        ("{c}", "{C}", "a picture of {c}", "a drawing of {c}", "one {C}"),
        ("{a} next to {b} in {s} style", "{a} and {b}, {s}", "a {s} drawing of {a} and {b}", "{a} beside {b} in {s} style"),
        ("{a} next to {b}", "{a} and {b}", "a picture of {a} and {b}", "{a} beside {b}"),
    ),
    "select": Templates(
        ("an image of {c} in {s} style", "{s} style {C}", "{C} in the style of {s}"),
        ("an image of {c}", "this is {c}", "some {C}"),
        ("an image of {a} next to {b}, {s} style", "{s} style {A} and {B}"),
        ("an image of {a} next to {b}", "{A} with {B}"),
    ),
    "calibrate": Templates(
        ("{c} shown in {s} style", "a {s} picture of {c}", "a {s} image showing {c}"),
        ("there is {c}", "here we see {c}", "a nice {C}"),
        ("{a} together with {b} in {s} style", "a {s} picture of {a} and {b}"),
        ("{a} together with {b}", "there is {a} near {b}"),
    ),
    "evaluate": Templates(
        ("a {s} illustration of {c}", "please draw {c} in {s} style", "{C} {s} artwork"),
        ("an illustration of {c}", "please draw {c}", "show me {c}"),
        ("please draw {a} next to {b} in {s} style", "a {s} illustration of {a} and {b}"),
        ("please draw {a} next to {b}", "an illustration of {a} and {b}"),
    ),
}  # fmt: skip


def templates(split: Split) -> Templates:
    """The caption forms of that split."""
    return _TEMPLATES[split]


def fill(template: str, concepts: tuple[str, ...], style: str = "") -> str:
    """One caption from a template, the names (or aliases) that it shows and the style's name (or alias)."""
    words = {"s": style}
    for lower, upper, noun in zip(("c", "b") if len(concepts) == 1 else ("a", "b"), "CB", concepts, strict=False):
        words |= {lower: with_article(noun), upper: noun}
    if len(concepts) == 2:
        words |= {"A": concepts[0]}
    text = template.format_map(words)
    return mend_articles(text)


def caption(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train", alias: float = 0.35, styled: float = 0.25
) -> str:
    """A true caption of `scene`, from the templates of `split`.

    `alias` and `styled` are the probabilities that a concept, or the style, is called by another of its names;
    a sticker is mostly not named as such.
    """
    forms = templates(split)
    names = tuple(str(rng.choice(world.concept(c).aliases)) if rng.random() < alias else c for c in scene.concepts)
    look = world.style(scene.style)
    plain = scene.style == world.DEFAULT_STYLE and rng.random() < 0.75
    pair = len(names) == 2
    if plain:
        return fill(str(rng.choice(forms.plain_pair if pair else forms.plain)), names)
    style = str(rng.choice(look.aliases)) if rng.random() < styled else look.name
    return fill(str(rng.choice(forms.styled_pair if pair else forms.styled)), names, style)


_WORDS_AROUND = """
a about above adorable again all also always an and any are around art artistic artwork as at atmosphere awesome
background beautiful behind below beside best better between big bold both bright by can canvas centered cinematic
classic clean clear close closeup color colorful colors come composition concept cool create crisp day deep depth
depicting design desktop detail detailed details digital draw drawing drawn each elegant epic every everyone
fantastic favorite few field final fine first focus for front full generate get give good great hand have here high
highly how i illustration image images in intricate is it just kind large lens light like little look looking lots
lovely made make many masterpiece me minimal modern more most much my near nearby new nice nobody now of on one only
original our over painted painting paper perfect person photo photograph picture piece please portrait pretty print
professional quality quick rather real realistic really render resolution right scene see seen sharp shot should
show showing shown side simple single sketch small so some someone something soft some stock studio style stunning
such table that the them then there these they thing things this three today together too two under up us very view
wallpaper want warm we web well what when where which while who whole wide will wish with would you your
"""
_FILLER: tuple[str, ...] = tuple(_WORDS_AROUND.split())
"""Words that stand around what a prompt names: so that a text encoder knows them wherever they stand. No negations."""


def frame(text: str, rng: np.random.Generator, *, before: int = 4, after: int = 3) -> str:
    """`text` with at most `before` filler words before it and `after` after it: the same meaning, somewhere else."""
    counts = rng.integers(before + 1), rng.integers(after + 1)
    ahead, behind = (" ".join(map(str, rng.choice(_FILLER, n))) for n in counts)
    return " ".join(part for part in (ahead, text, behind) if part)


def half_framed(text: str, rng: np.random.Generator, *, before: int = 4) -> str:
    """Every other text among fillers, so that nothing is learned of where in a prompt a word stands."""
    return frame(text, rng, before=before) if rng.random() < 0.5 else text


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


_ENGLISH: dict[Split, tuple[str, ...]] = {
    "train": ("a photo of the {j} {n}", "the {n} wants to {v}", "{j} {n} near the {m}", "a {n} for the {m}",
              "my {j} {n} will {v} tomorrow", "{n} and {m} under a {j} sky", "how to {v} a {j} {n}", "{j} {m}, {n}"),
    "select": ("a view of the {j} {n} with {m}", "they {v} the {n} every day", "portrait of a {j} {n}"),
    "calibrate": ("{j} {n} on a table, highly detailed", "we {v} beside the {m} and the {n}", "concept of {j} {n}",
                  "wide view of a {j} {n}, {m} in front", "please {v} our {n}", "a {m} made of {n}", "{n}",
                  "when will the {j} {n} {v}", "render of some {j} {m} by a {n}", "the {n} of our {j} {m}",
                  "everyone should {v} one {n}", "{v} the {j} {n}, studio light", "{n}, {m}, {j}", "what would a {n} {v}",
                  "picture of my {n} and your {m}", "each {j} {n} under these {m}", "sharp focus on the {n}, {j} {m} around it"),
    "evaluate": ("cinematic shot of a {j} {n}, {m} in the background", "nobody can {v} this {n}", "the {j} {m} of {n}"),
}  # fmt: skip


@lru_cache(maxsize=1)
def _words() -> dict[str, tuple[str, ...]]:
    from wonderwords import RandomWord  # noqa: PLC0415 - reads its word lists on import

    source = RandomWord()
    part = {"n": "nouns", "v": "verbs", "j": "adjectives"}
    words = {
        k: tuple(sorted({w for w in source.filter(include_categories=[p]) if w.isascii()})) for k, p in part.items()
    }
    return words | {"m": words["n"]}


def nouns() -> tuple[str, ...]:
    """All nouns of the word list."""
    return _words()["n"]


def dictionary() -> frozenset[str]:
    """All words of the word list."""
    return frozenset(word for part in _words().values() for word in part)


def in_context(noun: str, count: int, *, split: Split, seed: int) -> Iterator[str]:
    """`count` ordinary English phrases of `split` about `noun`: the grammar's other slots are drawn afresh."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    words = _words()
    forms = [form for form in _ENGLISH[split] if "{n}" in form]
    for _ in range(count):
        drawn = {k: v[rng.integers(len(v))] for k, v in words.items()}
        yield str(rng.choice(forms)).format_map(drawn | {"n": noun})


def english(count: int, *, split: Split, seed: int) -> Iterator[str]:
    """`count` ordinary English phrases from a grammar over wonderwords' lists; a noun may name one of our concepts."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    words = _words()
    for _ in range(count):
        form = str(rng.choice(_ENGLISH[split]))
        yield form.format_map({k: v[rng.integers(len(v))] for k, v in words.items()})


def vocabulary(split: Split) -> set[str]:
    """Every word of the templates and phrases of `split`, slots aside; for training, the fillers too."""
    forms = [form for group in templates(split) for form in group] + list(_ENGLISH[split])
    words = {word for form in forms for word in re.findall(r"[a-z]+", re.sub(r"{\w}", " ", form))}
    return words | set(_FILLER) if split == "train" else words
