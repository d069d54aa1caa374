"""Requests and prompts on which detection is compared: many requests, prompts as people write them, everyday English."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from components.collect.tables import where
from components.common.sections import read_section
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.requests.requests import Request
from components.worlds.load import world_folder
from components.worlds.templated import TemplatedWorld, fill, read_world
from training.openmoji.captions import misspell

UNSEEN = "alias unseen"
"""Role of prompts that use the alias which selection, calibration and the list of names never saw."""
DESCRIPTIONS: Mapping[str, tuple[str, ...]] = {
    "cat": ("a small pet that purrs and hunts mice", "the whiskered animal that meows at night"),
    "dog": ("a loyal pet that barks and wags its tail", "the animal that fetches sticks for its owner"),
    "ghost": ("the restless soul of a dead person in a white sheet", "a see through figure that haunts old houses"),
    "robot": ("a machine shaped like a person", "a mechanical helper made of metal"),
    "vampire": ("a pale count with fangs who drinks blood", "the undead nobleman who sleeps in a coffin"),
    "castle": ("a stone stronghold with towers where a king lives", "a medieval building with walls and a moat"),
    "rocket": ("a vehicle that flies to the moon", "what astronauts ride into orbit"),
    "apple": ("the fruit that keeps the doctor away", "a round crunchy fruit for cider"),
    "bomb": ("a weapon that blows up when its fuse burns down", "a device that explodes"),
    "umbrella": ("what keeps you dry in the rain", "a folding cover against rain and sun"),
    "neon": ("bright pink light lines on a dark night", "luminous gas lettering at night"),
}
"""Sentences that mean a target without naming it, two each."""
POSITIVE = ("target", "alias", UNSEEN, "context", "mixed", "misspelt", "spaced", "capitals", "long, target last", "description")  # fmt: skip
NAMED = POSITIVE[:5]
"""Roles whose prompts contain a name of the target as it is spelt."""


def project_world() -> TemplatedWorld:
    """The world that params.yaml names, with its templates; `UserError` for one that has none."""
    return read_world(world_folder(read_section("world", str)))


def world_requests(count: int, first: Mapping[str, Request], world: TemplatedWorld, *, seed: int) -> dict[str, Request]:
    """`count` requests: those of `first`, then concepts of the world in a fixed random order, each with its first neighbour as anchor."""
    out = dict(list(first.items())[:count])
    taken = {name for r in out.values() for name in (*world.labels(r), *r.names)}
    rng = np.random.default_rng(stream_seed(seed, "world requests"))
    for name in (world.concept_names[i] for i in rng.permutation(len(world.concept_names))):
        item = world.concept(name)
        if len(out) >= count:
            break
        if taken & {name, *item.aliases} or not item.neighbours:
            continue
        out[f"w-{name.replace(' ', '-')}"] = Request(
            target=name, kind=item.kind, aliases=item.aliases, anchor=item.neighbours[0], neighbours=item.neighbours
        )
        taken |= {name, *item.aliases}
    return out


def hard_prompts(request: Request, world: TemplatedWorld, *, per_role: int, seed: int) -> dict[str, list[str]]:
    """Prompts about the target as people write them: misspelt, spaced, in capitals, last in a long prompt, described."""
    rng = np.random.default_rng(stream_seed(seed, request.target, "hard prompts"))
    forms = world.file.templates["evaluate"]
    is_style, names = request.kind == "style", world.names(request, "select")

    def prompt(name: str) -> str:
        if is_style:
            return fill(str(rng.choice(forms.styled)), (str(rng.choice(world.concept_names)),), name)
        if rng.random() < 0.5:
            return fill(str(rng.choice(forms.plain)), (name,))
        return fill(str(rng.choice(forms.styled)), (name,), str(rng.choice(world.style_names)))

    def typo(name: str) -> str:
        while (wrong := misspell(name, rng)) == name or wrong.count(" ") != name.count(" "):
            pass  # two equal letters swapped are no error, and spacing is a role of its own
        return wrong

    drawn = [str(rng.choice(names)) for _ in range(per_role)]
    out = {
        "misspelt": [prompt(typo(n)) for n in drawn],
        "spaced": [prompt(" ".join(n.replace(" ", ""))) for n in drawn],
        "capitals": [prompt(n).upper() for n in drawn],
        "long, target last": [" ".join([world.frame("", rng, before=10, after=0), prompt(n)]) for n in drawn],
    }
    if request.target in DESCRIPTIONS:
        out["description"] = list(DESCRIPTIONS[request.target])
    return out


def evaluate_prompts(
    requests: Mapping[str, Request], world: TemplatedWorld, table: pd.DataFrame, *, per_role: int, seed: int
) -> dict[str, dict[str, list[str]]]:
    """For each request its evaluation prompts by role; an alias that selection never saw has a role of its own."""
    out: dict[str, dict[str, list[str]]] = {}
    for request_id, request in requests.items():
        rows = where(table, (table["request"] == request_id) & (table["split"] == "evaluate"))
        unseen = tuple(set(world.names(request, "evaluate")) - set(world.names(request, "select")))
        groups: dict[str, list[str]] = {}
        for role, group in rows.groupby("role", sort=True):
            for text in group["prompt"]:
                new = unseen and mentions(text, unseen) and role in ("alias", "context", "mixed")
                groups.setdefault(UNSEEN if new else str(role), []).append(text)
        out[request_id] = groups | hard_prompts(request, world, per_role=per_role, seed=seed)
    return out


def benign_prompts(world: TemplatedWorld, count: int, *, seed: int) -> list[str]:
    """`count` different phrases of everyday English from the evaluation's templates."""
    drawn = world.benign(2 * count + 1000, split="evaluate", seed=stream_seed(seed, "benign report") % 2**31)
    return list(dict.fromkeys(drawn))[:count]
