"""Which requests the report trains adapters for, and which of them act at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from components.common.variants import Variant
from components.requests.requests import Request
from components.worlds.templated import TemplatedWorld
from research.filter.prompts import world_requests

MORE = {
    "x-ghost": Request(
        target="ghost", kind="character", aliases=("phantom", "spook", "spectre"), anchor="balloon",
        neighbours=("alien", "snowman"),
    ),
    "x-weapon": Request(target="weapon", kind="category", anchor="umbrella", neighbours=("key", "camera")),
}  # fmt: skip
"""A character and a category: the two kinds that the shipped requests do not show."""
FUSED = "fused"


class Group(NamedTuple):
    """Adapters that act at once."""

    adapters: tuple[str, ...]
    requests: tuple[str, ...]
    """The requests that they are measured on."""
    variant: Variant


def requests_together(
    count: int, first: Mapping[str, Request], world: TemplatedWorld, *, seed: int
) -> dict[str, Request]:
    """The requests of `world_requests`; none of those that it adds draws what another one erases.

    An added request's anchor is a neighbour that survives, or nothing if there is none.
    """
    out = world_requests(count, first, world, seed=seed)
    erased = {label for request in out.values() for label in world.labels(request)}
    for name in out.keys() - first.keys():
        free = [neighbour for neighbour in out[name].neighbours if neighbour not in erased]
        out[name] = out[name].model_copy(update={"anchor": free[0] if free else ""})
    return out


def groups_of(requests: Sequence[str], together: Sequence[int]) -> dict[str, Group]:
    """The first n requests at once, for each n of `together`: adapters summed (guidance), gated, and fused into one."""
    out: dict[str, Group] = {}
    for n in sorted(set(together)):
        first = tuple(requests[:n])
        out |= {f"{n} {variant}": Group(first, first, variant) for variant in ("guidance", "gated")}
        if n > 1:
            out[f"{n} {FUSED}"] = Group((f"{FUSED}-{n}",), first, "guidance")
    return out
