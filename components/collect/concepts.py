"""For each request: the prompts that its features are selected, calibrated and evaluated on.

The templates of the three splits are disjoint, and so are the aliases: the last alias of the target is only ever in the
evaluation. A prompt carries the target when one of its names is in it, whatever its role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pandas as pd

from components.common.errors import UserError
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.requests.requests import Request
from components.worlds.openmoji import world
from components.worlds.openmoji.captions import Split, fill, half_framed, in_context, templates

PROMPT_COLUMNS = ("request", "split", "role", "prompt", "concepts", "style", "carries", "pair")
MEASURED: tuple[Split, ...] = ("select", "calibrate", "evaluate")


class Prompt(NamedTuple):
    """One prompt, and what it should draw from the unedited model."""

    text: str
    concepts: tuple[str, ...]
    style: str
    counterpart: str = ""
    """The same prompt about the anchor, where there is one."""
    spoken: str = ""
    """How the target is called in it, to the letter; empty where it is not."""


def _half_framed(prompt: Prompt, seed: int) -> Prompt:
    """Every other prompt among fillers, its counterpart among the same ones; one in three of those far from its start."""
    before = 10 if seed % 3 == 0 else 4
    text, twin = (
        half_framed(t, np.random.default_rng(seed), before=before) if t else ""
        for t in (prompt.text, prompt.counterpart)
    )
    return prompt._replace(text=text, counterpart=twin)


def known_targets(request: Request) -> tuple[str, ...]:
    """The world's concepts or styles that the request erases; `UserError` for a name that the world does not have."""
    if request.kind == "category":
        return world.members(request.target)
    if request.kind == "style":
        return (world.style(request.target).name,)
    return (world.concept(request.target).name,)


def names_for(request: Request, split: Split) -> list[str]:
    """Names of the target that the prompts of `split` use: the last alias in the evaluation alone."""
    if request.kind == "category":
        return [n for c in known_targets(request) for n in _split_names((c, *world.concept(c).aliases), split)]
    return _split_names(request.names, split)


def _split_names(names: tuple[str, ...], split: Split) -> list[str]:
    if len(names) == 1:
        return list(names)
    return list(names) if split == "evaluate" else list(names[:-1])


def carried(prompts: Sequence[str], requests: Mapping[str, Request], split: Split) -> np.ndarray:
    """(P, R) bool: which prompts carry which request's target, by the names that `split` uses, whatever they were made for."""
    names = [tuple(names_for(request, split)) for request in requests.values()]
    return np.array([[mentions(prompt, each) for each in names] for prompt in prompts], dtype=bool).reshape(
        -1, len(names)
    )


def build_prompts(requests: dict[str, Request], *, per_name: int, retain: int, mixed: int, seed: int) -> pd.DataFrame:
    """All prompts of all requests as one table with `PROMPT_COLUMNS` and `counterpart`.

    Roles: target, alias, context (the target in ordinary English), anchor, neighbour, mixed (the target beside
    something else), retain (anything else).
    """
    rows: list[dict[str, object]] = []
    for request_id, request in requests.items():
        for split in MEASURED:
            rng = np.random.default_rng(stream_seed(seed, request_id, split))
            for role, prompt in _prompts(request, split, rng, per_name=per_name, retain=retain, mixed=mixed):
                if split != "evaluate":
                    prompt = _half_framed(prompt, int(rng.integers(2**32)))
                rows.append(
                    {
                        "request": request_id,
                        "split": split,
                        "role": role,
                        "prompt": prompt.text,
                        "concepts": "|".join(prompt.concepts),
                        "style": prompt.style,
                        "carries": bool(prompt.spoken),
                        "spoken": prompt.spoken,
                        "pair": len(prompt.concepts) > 1,
                        "counterpart": prompt.counterpart,
                    }
                )
    table = pd.DataFrame(rows, columns=[*PROMPT_COLUMNS, "counterpart", "spoken"])
    return table.drop_duplicates(["request", "split", "prompt"]).reset_index(drop=True)


def _prompts(
    request: Request, split: Split, rng: np.random.Generator, *, per_name: int, retain: int, mixed: int
) -> Iterator[tuple[str, Prompt]]:
    targets, style_kind = known_targets(request), request.kind == "style"
    owner = {n: c for c in targets for n in (c, *_lookup(c, style_kind).aliases)}
    named = names_for(request, split)
    make = _style_prompt if style_kind else _concept_prompt
    for name in named:
        shown = owner.get(name, targets[0])
        for _ in range(per_name):
            prompt = make(shown, name, request.anchor, split, rng)
            yield ("target" if name in targets else "alias"), prompt._replace(spoken=name)
    for index, name in enumerate(named):
        twins = in_context(request.anchor, per_name, split=split, seed=index) if request.anchor else repeat("")
        for text, twin in zip(in_context(name, per_name, split=split, seed=index), twins, strict=False):
            yield "context", Prompt(text, (owner.get(name, targets[0]),), "", twin, name)
    for role, others in (("anchor", (request.anchor,) if request.anchor else ()), ("neighbour", request.neighbours)):
        for other in others:
            for _ in range(per_name):
                yield role, make(other, other, "", split, rng)
    for _ in range(mixed):
        name = str(rng.choice(named))
        yield "mixed", _mixed_prompt(owner.get(name, targets[0]), name, request, split, rng)._replace(spoken=name)
    forbidden = {*targets, request.anchor, *request.neighbours}
    for _ in range(retain):
        prompt = _retain_prompt(forbidden, split, rng)
        if not mentions(prompt.text, tuple(owner)):
            yield "retain", prompt


def _lookup(name: str, style_kind: bool) -> world.Concept | world.Style:  # noqa: FBT001 - private
    return world.style(name) if style_kind else world.concept(name)


def _free_style(rng: np.random.Generator, without: str = "") -> str:
    return str(rng.choice([s for s in world.STYLE_NAMES if s != without]))


def _concept_prompt(shown: str, name: str, anchor: str, split: Split, rng: np.random.Generator) -> Prompt:
    """A single prompt about the concept `shown`, called `name`, in a random style."""
    forms, style = templates(split), _free_style(rng)
    plain = style == world.DEFAULT_STYLE
    form = str(rng.choice(forms.plain if plain else forms.styled))
    noun = "" if plain else style
    return Prompt(fill(form, (name,), noun), (shown,), style, fill(form, (anchor,), noun) if anchor else "")


def _style_prompt(shown: str, name: str, anchor: str, split: Split, rng: np.random.Generator) -> Prompt:
    """A single prompt about a random concept in the style `shown`, called `name`."""
    form = str(rng.choice(templates(split).styled))
    concept = str(rng.choice(world.CONCEPT_NAMES))
    return Prompt(fill(form, (concept,), name), (concept,), shown, fill(form, (concept,), anchor) if anchor else "")


def _mixed_prompt(shown: str, name: str, request: Request, split: Split, rng: np.random.Generator) -> Prompt:
    """The target beside something else: another concept, or for a style two concepts drawn in it."""
    forms = templates(split)
    taken = {*known_targets(request), request.anchor, *request.neighbours}
    other, third = (str(n) for n in rng.choice([c for c in world.CONCEPT_NAMES if c not in taken], 2, replace=False))
    if request.kind == "style":
        form = str(rng.choice(forms.styled_pair))
        text, twin = (fill(form, (other, third), s) for s in (name, request.anchor or name))
        return Prompt(text, (other, third), shown, twin if request.anchor else "")
    style = _free_style(rng)
    plain = style == world.DEFAULT_STYLE
    form, noun = str(rng.choice(forms.plain_pair if plain else forms.styled_pair)), "" if plain else style
    first = bool(rng.integers(2))
    pair, twin = ((n, other) if first else (other, n) for n in (name, request.anchor or name))
    shown_pair = (shown, other) if first else (other, shown)
    return Prompt(fill(form, pair, noun), shown_pair, style, fill(form, twin, noun) if request.anchor else "")


def _retain_prompt(forbidden: set[str], split: Split, rng: np.random.Generator) -> Prompt:
    """One or two concepts in a style, none of which the request touches; sometimes by an alias."""
    forms = templates(split)
    free = [c for c in world.CONCEPT_NAMES if c not in forbidden]
    style = str(rng.choice([s for s in world.STYLE_NAMES if s not in forbidden]))
    shown = tuple(str(c) for c in rng.choice(free, 2 if rng.random() < 0.25 else 1, replace=False))
    spoken = tuple(str(rng.choice(world.concept(c).aliases)) if rng.random() < 0.25 else c for c in shown)
    plain, pair = style == world.DEFAULT_STYLE, len(shown) > 1
    choices = (forms.plain_pair if pair else forms.plain) if plain else (forms.styled_pair if pair else forms.styled)
    return Prompt(fill(str(rng.choice(choices)), spoken, "" if plain else style), shown, style)


def check_world(requests: dict[str, Request]) -> None:
    """Refuses requests that name what the embedded world does not have, before anything is loaded."""
    owner = {target: request_id for request_id, request in requests.items() for target in known_targets(request)}
    for request_id, request in requests.items():
        if request.anchor in owner:
            raise UserError(
                f"request {request_id}: the anchor {request.anchor!r} is erased by {owner[request.anchor]}",
                "draw something that no request erases",
            )
        lookup = world.style if request.kind == "style" else world.concept
        for role, name in (("anchor", request.anchor), *(("neighbour", n) for n in request.neighbours)):
            if not name:
                continue
            try:
                lookup(name)
            except UserError as error:
                raise UserError(
                    f"request {request_id}: the {role} {name!r} is not in the world", error.remedy
                ) from error
