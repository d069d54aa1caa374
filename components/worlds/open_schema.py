"""What may stand in the files of an open world, whose requests may name anything."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from components.common.sections import Section
from components.common.splits import SPLITS, Split
from components.requests.requests import Kind, Noun
from components.worlds.grammar import Form
from components.worlds.schema import Words

_SLOTS = {"styled": "cCs", "pairs": "aAbB", "context": "cC", "english": "nmvj"}
_NOUNS = {"count", "mass", "proper", "adjective", "other"}


def _complete(form: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(form, dict):
        if unknown := sorted(set(form) - _NOUNS):
            raise ValueError(f"{unknown[0]!r} is no noun; use {', '.join(sorted(_NOUNS))}")
        if "other" not in form and (missing := sorted(_NOUNS - {"other"} - set(form))):
            raise ValueError(
                f"a sentence by noun has no {missing[0]!r}; add it, or `other` for all that are not listed"
            )
    return form


Sentence = Annotated[
    Annotated[str, Tag("one")] | Annotated[dict[str, str], Tag("by noun")],
    Discriminator(lambda given: "by noun" if isinstance(given, dict) else "one"),
    AfterValidator(_complete),
]
Sentences = Annotated[tuple[Sentence, ...], Field(min_length=1)]


class OpenTemplates(Section):
    """The sentences of one split; those of a kind may be missing where no request is of that kind."""

    styled: Sentences
    """`{c}` drawn in the style `{s}`; forms are by the style's noun."""
    pairs: tuple[str, ...] = Field(min_length=1)
    """`{a}` and `{b}` as one thing."""
    context: Sentences
    """Everyday English about anything."""
    english: tuple[str, ...] = Field(min_length=1)
    """Everyday English: `{n}` and `{m}` are nouns, `{v}` a verb, `{j}` an adjective."""
    object: Sentences
    character: Sentences | None = None
    person: Sentences | None = None
    explicit: Sentences | None = None
    category: Sentences | None = None
    """Default those of objects."""

    @model_validator(mode="after")
    def _slots_fit(self) -> OpenTemplates:
        for name in OpenTemplates.model_fields:
            allowed = _SLOTS.get(name, "cC")
            needed = {"styled": ("cC", "s"), "pairs": ("aA", "bB"), "english": ()}.get(name, ("cC",))
            for form in sentences(getattr(self, name) or ()):
                slots = {slot for _, slot, _, _ in Formatter().parse(form) if slot is not None}
                if missing := [group for group in needed if not slots & set(group)]:
                    raise ValueError(f"template {form!r} has no {{{missing[0][0]}}}; name there what it shows")
                if unknown := sorted(slots - set(allowed)):
                    raise ValueError(f"template {form!r} has a slot {{{unknown[0]}}} that nothing fills; take it out")
        if not any("{n}" in form for form in self.english):
            raise ValueError("no template has {n}; add one that speaks of a noun")
        return self

    def of(self, kind: Kind) -> tuple[Form, ...]:
        """The sentences of a kind; empty where there are none. A style's are `styled`."""
        if kind == "style":
            return self.styled
        return (self.category or self.object) if kind == "category" else getattr(self, kind) or ()

    def all(self) -> list[str]:
        """Every sentence, whatever its kind."""
        return [form for name in OpenTemplates.model_fields for form in sentences(getattr(self, name) or ())]


def sentences(forms: tuple[Form, ...]) -> list[str]:
    """Every sentence of some forms."""
    return [text for form in forms for text in ((form,) if isinstance(form, str) else form.values())]


class OpenFile(Section):
    """Both files of an open world, as one."""

    vocabulary: Literal["open"]
    words: Annotated[
        Annotated[Literal["wonderwords"], Tag("package")] | Annotated[Words, Tag("lists")],
        Discriminator(lambda given: "package" if isinstance(given, str) else "lists"),
    ]
    before: tuple[str, ...] = ()
    """Phrases that may stand before a prompt."""
    after: tuple[str, ...] = ()
    """Phrases that may stand behind one."""
    nouns: dict[Noun, tuple[str, ...]] = Field(default_factory=dict)
    """How names and last words of names stand that requests may bring."""
    heads: dict[Kind, str] = Field(default_factory=dict)
    """What an adjective describes, by kind of request."""
    scenes: dict[Kind, str] = Field(default_factory=dict)
    """What stands before a mass noun where a sentence needs something that can be seen, by kind of request."""
    things: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Things to retain, by category; a request of kind `category` targets every member of one. What is in the category
    `place` never stands beside something else."""
    roles: tuple[str, ...] = ()
    """What people are, such as teacher."""
    people: tuple[str, ...] = ()
    """People by name."""
    characters: tuple[str, ...] = ()
    styles: dict[Noun, tuple[str, ...]] = Field(min_length=1)
    """Styles to retain, by how their names stand."""
    templates: dict[Split, OpenTemplates]

    @model_validator(mode="after")
    def _fits_together(self) -> OpenFile:
        styles = [name for names in self.styles.values() for name in names]
        things = [*(n for names in self.things.values() for n in names), *self.roles, *self.people, *self.characters]
        if len(things) < 4 or len(styles) < 2:
            raise ValueError("there are fewer than four things or two styles to retain; add some")
        if missing := [split for split in SPLITS if split not in self.templates]:
            raise ValueError(f"templates has no split {missing[0]!r}; each of {', '.join(SPLITS)} needs its own")
        names = [*things, *styles]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"{twice[0]!r} is listed twice; take one of them out")
        if untidy := [n for n in names if n != " ".join(n.lower().split())]:
            raise ValueError(
                f"the name {untidy[0]!r} is not in lower case with single spaces; requests are, so write it so"
            )
        splits: dict[str, Split] = {}
        for split in SPLITS:
            for form in self.templates[split].all():
                if splits.setdefault(form, split) != split:
                    raise ValueError(f"template {form!r} is in {splits[form]} and {split}; leave it to one of them")
        return self
