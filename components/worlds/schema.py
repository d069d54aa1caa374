"""What may stand in a world's files: concepts, styles, words and sentences, and what must fit together."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from components.common.sections import Section
from components.common.splits import SPLITS, Split
from components.requests.requests import Kind

_NEEDED = {
    "styled": ("cC", "s"), "plain": ("cC",), "styled_pair": ("aA", "bB", "s"), "plain_pair": ("aA", "bB"), "english": (),
}  # fmt: skip
"""The slots of each kind of sentence: one of each group at least."""
_ENGLISH = "nmvj"


class Concept(Section):
    """One drawable thing."""

    kind: Kind = "object"
    category: str = ""
    """The broad group: a request of kind `category` targets every member."""
    aliases: tuple[str, ...] = Field(min_length=1)
    """Other names; the last one is reserved for evaluation (invariant 6)."""
    neighbours: tuple[str, ...] = ()
    """Concepts that look or mean nearly the same and must survive its erasure."""


class Style(Section):
    """One way to draw."""

    aliases: tuple[str, ...] = Field(min_length=1)
    """Other names; the last one is reserved for evaluation."""


class Words(Section):
    """The words of everyday English that fill `{n}` and `{m}`, `{v}` and `{j}`."""

    nouns: tuple[str, ...] = Field(min_length=2)
    verbs: tuple[str, ...] = Field(min_length=1)
    adjectives: tuple[str, ...] = Field(min_length=1)


class Templates(Section):
    """The sentences of one split.

    `{c}` is a concept with its article, `{a}` and `{b}` are two of them, `{C}`, `{A}` and `{B}` the same without, `{s}` a style.
    """

    styled: tuple[str, ...] = Field(min_length=1)
    plain: tuple[str, ...] = Field(min_length=1)
    """No style named: the default style is meant."""
    styled_pair: tuple[str, ...] = Field(min_length=1)
    plain_pair: tuple[str, ...] = Field(min_length=1)
    english: tuple[str, ...] = Field(min_length=1)
    """Everyday English: `{n}` and `{m}` are nouns, `{v}` a verb, `{j}` an adjective."""

    @field_validator(*_NEEDED)
    @classmethod
    def _has_its_slots(cls, forms: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        needed = _NEEDED[str(info.field_name)]
        for form in forms:
            slots = {name for _, name, _, _ in Formatter().parse(form) if name is not None}
            if missing := [group for group in needed if not slots & set(group)]:
                raise ValueError(f"template {form!r} has no {{{missing[0][0]}}}; name there what it shows")
            if unknown := sorted(slots - set("".join(needed) or _ENGLISH)):
                raise ValueError(f"template {form!r} has a slot {{{unknown[0]}}} that nothing fills; take it out")
        if not needed and not any("{n}" in form for form in forms):
            raise ValueError("no template has {n}; add one that speaks of a noun")
        return forms

    def all(self) -> list[str]:
        """Every sentence, whatever its kind."""
        return [form for kind in _NEEDED for form in getattr(self, kind)]


class WorldFile(Section):
    """Both files of a world, as one."""

    default_style: str
    """What a prompt that names no style is drawn in."""
    words: Annotated[
        Annotated[Literal["wonderwords"], Tag("package")] | Annotated[Words, Tag("lists")],
        Discriminator(lambda given: "package" if isinstance(given, str) else "lists"),
    ]
    """Lists of words, or the name of the package that has them."""
    fillers: str = ""
    """Words that stand around what a prompt names, wherever; no negations."""
    concepts: dict[str, Concept] = Field(min_length=4)
    styles: dict[str, Style] = Field(min_length=2)
    templates: dict[Split, Templates]

    @model_validator(mode="after")
    def _fits_together(self) -> WorldFile:
        if self.default_style not in self.styles:
            raise ValueError(f"default_style {self.default_style!r} is not among the styles ({', '.join(self.styles)})")
        if missing := [split for split in SPLITS if split not in self.templates]:
            raise ValueError(f"templates has no split {missing[0]!r}; each of {', '.join(SPLITS)} needs its own")
        for name, concept in self.concepts.items():
            if unknown := [n for n in concept.neighbours if n not in self.concepts]:
                raise ValueError(f"neighbour {unknown[0]!r} of concept {name!r} is no concept; add it or take it out")
        things = [item for group in (self.concepts, self.styles) for item in group.items()]
        names = [n for name, thing in things for n in (name, *thing.aliases)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"{twice[0]!r} names two things; every name and alias means one")
        if untidy := [n for n in names if n != " ".join(n.lower().split())]:
            raise ValueError(
                f"the name {untidy[0]!r} is not in lower case with single spaces; requests are, so write it so"
            )
        forms: list[tuple[str, Split]] = [(form, split) for split in SPLITS for form in self.templates[split].all()]
        splits: dict[str, Split] = {}
        for form, split in forms:
            if splits.setdefault(form, split) != split:
                raise ValueError(f"template {form!r} is in {splits[form]} and {split}; leave it to one of them")
        for name in (thing.aliases[-1] for _, thing in things):
            if found := [form for form, split in forms if split == "train" and name in form]:
                raise ValueError(f"template {found[0]!r} of train holds {name!r}, which is reserved for the evaluation")
        return self
